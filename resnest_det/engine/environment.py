"""The environment of a run, for its log."""

import os
import platform

import numpy
import torch
import torchvision

from resnest_det.distributed import get_world_size


def environment_summary() -> str:
    """Lines on the libraries, the processor and threads, the GPUs and the processes."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows = {
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "PyTorch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "others": f"torchvision {torchvision.__version__}, NumPy {numpy.__version__}",
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads per process",
        "GPU": ", ".join(gpus) or "none",
        "processes": str(get_world_size()),
    }
    return "\n".join(f"  {name:<10} {value}" for name, value in rows.items())
