"""Install with `pip install -e .`; EXTRAS: what else each part needs (docs/mmdetection.md has the lines to run before mmdet)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "resnest_det" / "__init__.py").read_text()).group(1)

# What parts of the package need beyond it; `all` is all of these.
EXTRAS = {
    "export": ["onnx", "onnxruntime", "onnxscript", "openvino", "nncf"],
    "draw": ["supervision>=0.26", "matplotlib>=3.8"],
    "video": ["av>=12"],
    "track": ["trackers>=2.4", "supervision>=0.26"],
    "pandas": ["pandas>=2"],
    "classify": ["webdataset>=0.2.100", "scipy>=1.10"],
    "demo": ["gradio>=6"],
    "serve": ["fastapi>=0.110", "uvicorn>=0.29", "python-multipart>=0.0.13", "httpx>=0.27"],
    "transformers": ["transformers>=5.5", "accelerate>=1.1", "scipy>=1.10"],
}

setup(
    name="resnest_det",
    version=VERSION,
    description="ResNeSt backbones and detectors for dense prediction, alone or inside Detectron2 and MMDetection",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The recipes live in configs/ and travel inside the package, so that they are found by name from any folder.
    # So do the two documents that `resnest-det check-hosts` quotes.
    packages=[*find_packages(include=["resnest_det", "resnest_det.*"]), "resnest_det.configs", "resnest_det.docs"],
    package_dir={"resnest_det.configs": "configs", "resnest_det.docs": "docs"},
    package_data={
        "resnest_det": ["py.typed"],
        "resnest_det.configs": ["*.yaml", "*/*.yaml", "*/*.py", "*/*/*.json"],
        "resnest_det.docs": ["detectron2.md", "mmdetection.md"],
    },
    entry_points={"console_scripts": ["resnest-det = resnest_det.commands:main"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",  # Detectron2 asks for one below 0.1.10
        "portalocker>=2.8",
        "pycocotools>=2.0.7",
        "hotcoco>=1.3",
        "msgspec>=0.22",  # an earlier one fails at whole numbers beyond the range of floats
        "huggingface_hub>=0.24",
        "safetensors>=0.4",
        "tensorboard>=2.14",
        "numpy>=1.24",
        "pillow>=11.0",  # before, the size of a TIFF file that is stored sideways was another before and after decoding
        "pyyaml>=6.0",
        "tqdm>=4.60",
        "tabulate>=0.8.10",
    ],
    extras_require={
        # A later minor version of ruff may format otherwise.
        "test": ["pytest>=8.1", "torchmetrics>=1.4", "pytest-xdist>=3.8", "hypothesis>=6.84", "timm>=1.0.31", "ruff~=0.17.0"],
        **EXTRAS,
        "all": sorted({requirement for requirements in EXTRAS.values() for requirement in requirements}),
        # What resnest_det.integrations.mmdet_version knows to work together.
        "mmdet": ["onedl-mmcv~=2.3.6", "onedl-mmengine~=0.10.12", "onedl-mmdetection~=3.5.1"],
    },
)
