"""A short run of `tests/fuzz/checkpoints.py`, and what longer ones found."""

import random

import pytest

from tests.fuzz.checkpoints import damaged, problem_of, run, whole_files


@pytest.mark.parametrize("kind", whole_files())
def test_damaged_file_is_read_as_it_was_written_or_refused_in_one_line(tmp_path, kind):
    assert run(120, 1, tmp_path, [kind]) == []


@pytest.mark.parametrize(
    "kind, seed, index",
    [
        ("pickle 2", 0, 84),  # the name of the digests and a number
        ("pickle 4", 0, 3236),
        ("pickle 4", 0, 7073),
        ("pickle 2", 0, 8804),  # a thousand characters of damage in the message
        ("safetensors", 1, 2990),  # the name of the digests in the metadata
        ("safetensors", 1, 8746),
    ],
)
def test_found_earlier(tmp_path, kind, seed, index):
    whole, expected = whole_files()[kind]
    (tmp_path / "x").write_bytes(damaged(whole, random.Random(f"{kind} {seed} {index}")))
    assert problem_of(tmp_path / "x", expected) == ""
