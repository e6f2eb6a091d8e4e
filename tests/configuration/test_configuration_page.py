"""docs/configuration.md and the meanings of keys."""

import pytest

from resnest_det.configuration.classifier import KEYS
from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.meanings import DETECTRON2_IGNORES, MEANINGS, OWN_KEYS
from resnest_det.configuration.nodes import leaves
from tools.make_configuration_docs import AUTHORS_KEYS, CLASSIFIER_PAGE, PAGE, classifier_page, page


def test_every_key_has_a_meaning():
    keys = [key for key, _ in leaves(default_config())]
    assert sorted(MEANINGS) == sorted(keys)
    for prefix in (*OWN_KEYS, *DETECTRON2_IGNORES):
        assert any(key.startswith(prefix) for key in keys), prefix


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text() == page(), "run tools/make_configuration_docs.py"


def test_the_page_of_classifiers_is_what_the_code_says():
    assert set(KEYS) > AUTHORS_KEYS
    assert CLASSIFIER_PAGE.read_text() == classifier_page(), "run tools/make_configuration_docs.py"


def test_the_page_says_who_honours_a_key():
    rows = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| `"):
            cells = line.split(" | ")
            rows[f"{section}.{cells[0][3:-1]}"] = cells[-1].rstrip(" |")
    assert rows["MODEL.RPN.NMS_THRESH"] == "b d m"
    assert rows["MODEL.FPN.FUSE_TYPE"] == "b d m"  # all but one value are refused
    assert rows["MODEL.RETINANET.NUM_CLASSES"] == "d"
    assert rows["TEST.FOLD_NORMS"] == rows["TEST.PRECISION"] == "b d"
    assert rows["SOLVER.ACCUMULATE"] == "b"


@pytest.mark.detectron2
def test_own_keys_are_those_that_detectron2_does_not_have():
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg

    from resnest_det.integrations.detectron2_train import _OWN_KEYS_READ

    theirs = dict(leaves(get_cfg()))
    for key, _ in leaves(default_config()):
        assert (key not in theirs) == key.startswith(OWN_KEYS), key
        if key not in theirs and not key.startswith(DETECTRON2_IGNORES):
            assert key.startswith(_OWN_KEYS_READ), key
