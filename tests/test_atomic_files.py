"""Files are written whole or not at all."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from resnest_det.errors import UserError
from resnest_det.files import atomic_write, held, open_unlinked, prepare_output_dir, remove_unfinished


def test_content_replaces_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    program = textwrap.dedent("""
        import os, signal, sys
        from resnest_det.files import atomic_write
        with atomic_write(sys.argv[1]) as file:
            file.write("half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -signal.SIGKILL
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    assert len(remove_unfinished(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_those_of_ordinary_files(tmp_path):
    (tmp_path / "ordinary").write_text("")
    with atomic_write(tmp_path / "atomic") as file:
        file.write("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_output_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"OUTPUT_DIR .*file/run cannot be written: Not a directory"):
        prepare_output_dir(tmp_path / "file" / "run")


@pytest.mark.parametrize("there", [True, False])
def test_file_to_append_to_is_not_reached_through_a_link(tmp_path, there):
    victim, link = tmp_path / "victim", tmp_path / "log.txt"
    if there:
        victim.write_text("precious")
    link.symlink_to(victim)
    with open_unlinked(link, "a") as file:
        file.write("line\n")
    assert link.read_text() == "line\n" and not link.is_symlink()
    assert victim.read_text() == "precious" if there else not victim.exists()
    with open_unlinked(link, "a") as file:
        file.write("é\n")
    assert link.read_text(encoding="utf-8") == "line\né\n"


def test_pipe_is_not_written_to(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    with pytest.raises(UserError, match="log.txt is not a file"):
        open_unlinked(tmp_path / "log.txt", "a")


def test_a_lock_is_held_by_one_and_free_when_its_process_is_killed(tmp_path):
    path = tmp_path / "run.lock"
    program = "import os, sys; from resnest_det.files import held\nwith held(sys.argv[1]): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, str(path)])
    assert path.exists()
    with held(path), pytest.raises(UserError, match=rf"held by pid {os.getpid()} on "), held(path):
        pass
    assert not path.exists()
