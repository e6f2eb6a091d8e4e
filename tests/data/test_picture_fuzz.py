"""A short run of `tests/fuzz/pictures.py`, and what longer ones found."""

import resource
import subprocess
import sys

import pytest

from resnest_det.errors import UserError
from tests.fuzz.pictures import read, whole_files


def test_random_damage_within_limits_of_memory():
    command = [sys.executable, "-m", "tests.fuzz.pictures", "--count", "20", "--seed", "1"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith(f"0 of {20 * len(whole_files())} "), ran.stdout + ran.stderr


@pytest.mark.parametrize("kind", ["png", "labels", "panoptic", "jpeg 2000"])
def test_a_part_that_says_to_have_gigabytes_gets_no_memory(tmp_path, kind):
    whole = whole_files()[kind]
    # The length of the first part with pixels.
    at = whole.index(b"jp2c" if kind == "jpeg 2000" else b"IDAT") - 4
    (tmp_path / "a").write_bytes(whole[:at] + (0x7FFFFF00).to_bytes(4, "big") + whole[at + 4 :])
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        addresses = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + (1 << 30), before[1]))
    try:
        read(kind, tmp_path / "a", sized=True)
    except UserError:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
