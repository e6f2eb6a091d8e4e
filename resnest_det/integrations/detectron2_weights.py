"""Weights of any origin for Detectron2's `DetectionCheckpointer`, which reads only one layout."""

import hashlib
from pathlib import Path

import torch
from iopath.common.file_io import PathHandler

from resnest_det.files import atomic_write
from resnest_det.weights.downloads import cache_folder, resolve_weights
from resnest_det.weights.weights import read_weights


def weights_for_detectron2(spec: str) -> str:
    """The local path of a file that `DetectionCheckpointer` loads into a model with a ResNeSt or ResNet backbone.

    Args:
        spec: see `resolve_weights`. Backbones of the authors, timm and MMDetection are translated; a detector in Detectron2's
            layout keeps its heads. The result is kept in the folder `detectron2` of the cache.

    Raises:
        UserError: see `resolve_weights` and `read_checkpoint`; or these are weights of another kind of network.
    """
    path = Path(resolve_weights(spec))
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:12]
    translated = cache_folder() / "detectron2" / f"{path.stem}-{key}.pth"
    if not translated.exists():
        weights = read_weights(path)
        if weights.is_detector:
            content = {"model": weights.state}
        else:
            # This flag makes Detectron2 match names by their endings, whatever prefix the model has.
            content = {
                "model": {name: value for name, value in weights.backbone.items() if not name.startswith("linear.")},
                "matching_heuristics": True,
            }
        translated.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(translated, "wb") as file:
            torch.save(content, file)
    return str(translated)


class WeightsHandler(PathHandler):
    """Teaches Detectron2's PathManager the addresses `resnest://NAME`, `gluon://NAME` and `hf://owner/name`."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["resnest://", "gluon://", "hf://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return weights_for_detectron2(path)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)
