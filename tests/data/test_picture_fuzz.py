"""A short run of `tests/fuzz/pictures.py`."""

import subprocess
import sys

from tests.fuzz.pictures import whole_files


def test_random_damage_within_limits_of_memory():
    command = [sys.executable, "-m", "tests.fuzz.pictures", "--count", "20", "--seed", "1"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith(f"0 of {20 * len(whole_files())} "), ran.stdout + ran.stderr
