"""A short run of `tests/fuzz/answers.py`, and what longer ones found."""

import subprocess
import sys

import pytest

from tests.fuzz.answers import problem_with, server


def test_random_changes_within_limits_of_memory():
    command = [sys.executable, "-m", "tests.fuzz.answers", "--count", "150", "--seed", "4"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("0 of 150 "), ran.stdout + ran.stderr


@pytest.mark.parametrize(
    "seed, index",
    [
        (0, 8),  # a redirect to what is no address
        (1, 1144),  # a redirect with a body of 10^400 bytes, which was read
        (1, 1900),
        (2, 16419),  # a reason of thousands of characters
    ],
)
def test_found_earlier(tmp_path, monkeypatch, seed, index):
    for name in ("RESNEST_DET_CACHE", "no_proxy"):
        monkeypatch.setenv(name, "")  # to have it put back
    with server() as one:
        assert problem_with(one, seed, index, tmp_path) == ""
