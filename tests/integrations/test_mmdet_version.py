"""What is said where MMDetection or a part of it is absent, broken, or of a version that does not work with the others."""

import importlib.util
import re
import sys
from importlib.machinery import PathFinder

import pytest

from resnest_det.errors import UserError
from resnest_det.integrations.mmdet_version import check_mmdet

BOTH = (
    "onedl-mmcv 2.3, onedl-mmengine 0.10 and onedl-mmdetection 3.5 .*mmcv 2.1, mmengine 0.10 and mmdet 3.3 .*docs/mmdetection.md"
)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Writes packages of these names and versions, and has only these found: `install(mmcv="2.1.0", mmdet="3.3.0")`."""
    names = ("mmcv", "mmengine", "mmdet")
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        monkeypatch.delitem(sys.modules, name)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: PathFinder.find_spec(name, [str(tmp_path)]) if name in names else find_spec(name, *rest),
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(operators="", **versions):
        for name, version in versions.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(f"__version__ = '{version}'\n")
        if operators is not None and "mmcv" in versions:
            (tmp_path / "mmcv" / "_ext.py").write_text(operators)
        importlib.invalidate_caches()
        return tmp_path

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]


def error_line() -> str:
    with pytest.raises(UserError) as error:
        check_mmdet()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "versions", [("2.1.0", "0.10.7", "3.3.0"), ("2.3.6", "0.10.12", "3.5.1")], ids=["original", "continuation"]
)
def test_versions_that_work_together(install, versions):
    install(**dict(zip(("mmcv", "mmengine", "mmdet"), versions, strict=True)))
    check_mmdet()


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ({}, "needs mmcv, mmengine and mmdet, not installed"),
        ({"mmengine": "0.10.7"}, "needs mmcv and mmdet, not installed"),
        ({"mmcv": "2.1.0", "mmengine": "0.10.7"}, "needs mmdet, not installed"),
        ({"mmcv": "2.2.0", "mmengine": "0.10.7", "mmdet": "3.3.0"}, "^mmcv 2.2.0 does not fit"),
        ({"mmcv": "2.10.0", "mmengine": "0.10.7", "mmdet": "3.3.0"}, "^mmcv 2.10.0 does not fit"),
        ({"mmcv": "2.1.0", "mmengine": "0.9.1", "mmdet": "3.3.0"}, "^mmengine 0.9.1 does not fit"),
        ({"mmcv": "2.1.0", "mmengine": "0.10.7", "mmdet": "2.28.2"}, "^mmdet 2.28.2 does not fit"),
        ({"mmcv": "2.1.0", "mmengine": "0.10.7", "mmdet": "3.5.1"}, "^mmcv 2.1.0 and mmdet 3.5.1 do not work together"),
        ({"mmcv": "2.3.6", "mmengine": "0.10.7", "mmdet": "3.3.0"}, "^mmcv 2.3.6 and mmdet 3.3.0 do not work together"),
    ],
)
def test_what_is_absent_or_does_not_fit_is_named_with_the_versions_that_do(install, installed, said):
    install(**installed)
    line = error_line()
    assert re.search(said, line) and re.search(BOTH, line)


def test_a_folder_alone_is_not_an_installed_package(install):
    root = install(mmcv="2.1.0", mmengine="0.10.7")
    (root / "mmdet").mkdir()
    assert "needs mmdet, not installed" in error_line()


def test_mmdet_that_refuses_to_be_imported(install):
    root = install(mmcv="2.3.6", mmengine="0.10.7", mmdet="3.3.0")
    (root / "mmdet" / "__init__.py").write_text("assert False, 'MMCV==2.3.6 is used but incompatible'")
    assert error_line().startswith("mmdet is installed but cannot be imported: MMCV==2.3.6 is used but incompatible; these work")


def test_mmcv_without_operators(install):
    install(mmcv="2.1.0", mmengine="0.10.7", mmdet="3.3.0", operators=None)
    assert "mmcv 2.1.0 has no compiled operators" in error_line()


def test_operators_compiled_for_another_torch(install):
    install(mmcv="2.1.0", mmengine="0.10.7", mmdet="3.3.0", operators="raise ImportError('undefined symbol: _ZN3c10')")
    line = error_line()
    assert "operators of mmcv 2.1.0 cannot be loaded with torch 2." in line and "undefined symbol: _ZN3c10" in line
