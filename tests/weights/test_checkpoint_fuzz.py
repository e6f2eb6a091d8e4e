"""A short run of `tests/fuzz/checkpoints.py`."""

import pytest

from tests.fuzz.checkpoints import run, whole_files


@pytest.mark.parametrize("kind", whole_files())
def test_damaged_file_is_read_as_it_was_written_or_refused_in_one_line(tmp_path, kind):
    assert run(120, 1, tmp_path, [kind]) == []
