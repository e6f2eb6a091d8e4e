"""What was found in a video's frames is the same after it was kept, for every kind of model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resnest_det.detector.postprocess import CompactMasks
from resnest_det.inference.images import Picture
from resnest_det.inference.kept_frames import kept_frames
from resnest_det.inference.results import Result

CLASSES = object()
PREDICTOR = SimpleNamespace(classes=CLASSES, backend=SimpleNamespace(source="no such file"))
SIZE = (6, 8)


def objects(seed, **more):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(3, 4, generator=generator) * 6
    return Result("film", *SIZE, CLASSES, boxes, torch.rand(3, generator=generator), torch.tensor([2, 0, 1]), **more)


def kinds():
    yield objects(0)
    yield objects(1, masks=torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.5)
    yield objects(2, masks=CompactMasks(torch.rand(3, 4, 4).to(torch.bfloat16), torch.rand(3, 4), SIZE))
    yield objects(3, keypoints=torch.rand(3, 17, 3))
    segments = [{"id": 1, "category_id": 7, "class_id": 0, "isthing": True, "name": "größer", "area": 4, "score": 0.3}]
    yield objects(4, segment_map=torch.arange(48, dtype=torch.int32).reshape(SIZE), segments=segments)
    yield objects(5, label_map=torch.arange(48).reshape(SIZE)).chosen(torch.zeros(3, dtype=torch.bool))


def test_every_kind_of_result(tmp_path):
    picture = Picture(np.zeros((*SIZE, 3), dtype=np.uint8), "film", lambda: picture.pixels)
    found = list(kinds())
    with pytest.raises(KeyboardInterrupt), kept_frames(str(tmp_path / "a.mp4"), "film", {}, PREDICTOR) as frames:
        assert frames.following(picture) is None
        for result in found:
            frames.add(result)
        assert frames.following(picture) is None, "only what an earlier command kept"
        raise KeyboardInterrupt
    with kept_frames(str(tmp_path / "a.mp4"), "film", {}, PREDICTOR) as frames:
        for result in found:
            again = frames.following(picture)
            for name, expected in vars(result).items():
                got = getattr(again, name)
                if name == "masks" and isinstance(expected, CompactMasks):
                    assert got.image_size == expected.image_size and torch.equal(got.boxes, expected.boxes)
                    got, expected = got.probabilities, expected.probabilities
                if isinstance(expected, torch.Tensor):
                    assert got.dtype == expected.dtype and torch.equal(got, expected), name
                elif name != "rgb":
                    assert got == expected, name
            assert again.rgb is picture.rgb
        assert frames.following(picture) is None
    assert list(tmp_path.iterdir()) == []
