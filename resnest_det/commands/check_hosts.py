"""List the detectors that can use this backbone here, with their versions; for the others say why not, and what to do.

check_hosts.py
"""

import argparse
import platform
from collections.abc import Callable
from importlib.metadata import version

from resnest_det.errors import UserError
from resnest_det.files import packaged
from resnest_det.integrations.detectron2_version import check_detectron2
from resnest_det.integrations.installed import is_installed
from resnest_det.integrations.mmdet_version import check_mmdet
from resnest_det.integrations.torchvision_version import check_torchvision
from resnest_det.integrations.transformers_version import check_transformers


def builtin_detector() -> str:
    """Versions of what the built-in detector runs on; raises if torchvision's operators do not load with this torch."""
    import torch
    import torchvision

    import resnest_det.configuration.model  # noqa: F401 (imports the rest of what it needs)

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}, {build}, GPU: {', '.join(gpus) or 'none'}"


def detectron2() -> str:
    """Detectron2's version; raises if it cannot be used."""
    check_detectron2()
    import detectron2
    from detectron2 import _C

    operators = f"CUDA {_C.get_cuda_version()}" if _C.has_cuda() else "the CPU"
    return f"detectron2 {detectron2.__version__} in {detectron2.__path__[0]}, operators for {operators}"


def mmdetection() -> str:
    """The versions of MMDetection's parts; raises if they cannot be used."""
    check_mmdet()
    import mmcv
    import mmdet
    import mmengine
    from mmcv.ops import get_compiling_cuda_version

    cuda = get_compiling_cuda_version()
    operators = "the CPU" if cuda == "not available" else f"CUDA {cuda}"
    return (
        f"mmcv {mmcv.__version__}, mmengine {mmengine.__version__}, mmdet {mmdet.__version__} in {mmdet.__path__[0]}, "
        f"operators for {operators}"
    )


def torchvision() -> str:
    """torchvision's version, and how many of its models have this backbone; raises if they cannot be used."""
    check_torchvision()
    import torchvision

    from resnest_det.integrations.torchvision import BUILDERS

    return f"torchvision {torchvision.__version__}, {len(BUILDERS)} models for torchvision.models.get_model"


def transformers() -> str:
    """The version of transformers, and of what its Trainer needs; raises if it cannot be used."""
    check_transformers()
    import transformers

    absent = [name for name in ("accelerate", "scipy") if not is_installed(name)]
    training = f"no training without {' and '.join(absent)}" if absent else f"accelerate {version('accelerate')}"
    return f"transformers {transformers.__version__}, {training}"


def install_lines(document: str) -> list[str]:
    """The commands in the first fenced block of a document."""
    return (packaged("docs") / document).read_text().split("```")[1].splitlines()[1:]


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(arguments)
    print(f"Python {platform.python_version()}")
    report("built-in detector", builtin_detector, ["pip install --upgrade torch torchvision", "pip install -e ."])
    report("Detectron2", detectron2, install_lines("detectron2.md"))
    report("MMDetection", mmdetection, install_lines("mmdetection.md"))
    report("torchvision", torchvision, ["pip install --upgrade torch torchvision", "pip install -e ."])
    report("transformers", transformers, ["pip install -e '.[transformers]'"])


def report(host: str, versions: Callable[[], str], what_to_do: list[str]) -> None:
    try:
        print(f"{host}: usable: {versions()}")
    except (UserError, ImportError, OSError, RuntimeError) as error:
        print(f"{host}: not usable: {' '.join(str(error).split())}")
        print("  what to do, in this project's folder and best in a new environment:")
        for line in what_to_do:
            print(f"    {line}")
