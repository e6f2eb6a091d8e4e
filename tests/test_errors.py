"""What people are told: one line, from which no terminal takes orders and nobody reads a password."""

import logging
import pickle
import re
import subprocess
import sys

import pytest

from resnest_det.engine.events import setup_logging
from resnest_det.errors import UserError, out_of_memory, printable
from resnest_det.evaluation.tables import format_results


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[2Jname", r"\x1b[2Jname"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x9b31m \x7f \u202egnp \ud800", r"\x9b31m \x7f \u202egnp \ud800"),
        ("Straße, 猫, 👩\u200d🚒", "Straße, 猫, 👩\u200d🚒"),
        (r"C:\path", r"C:\path"),
        ("https://user:se@cret@host:1/x?y", "https://***@host:1/x?y"),
        ("hf://owner/name@revision/x and a@b", "hf://owner/name@revision/x and a@b"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert str(UserError(text)) == shown
    assert str(pickle.loads(pickle.dumps(UserError(text)))) == shown


def test_log_and_tables_show_control_characters(tmp_path, capsys):
    setup_logging(str(tmp_path))
    table = format_results({"bbox": {"AP": 1.0, "AP-\x1b[2J\nperson": 2.0, "AP-dog": 3.0}})
    logging.getLogger("resnest_det").info("image %s of https://me:secret@host\n%s", "\x1b]0;title\x07", table)
    try:
        raise ValueError("\x1b[31m")
    except ValueError:
        logging.getLogger("resnest_det").exception("failed")
    setup_logging(None)
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert not {character for character in text if not character.isprintable()} - {"\n"}
        assert r"\x1b]0;title\x07 of https://***@host" in text and r"\x1b[31m" in text
        assert len([line for line in text.splitlines() if line.startswith("|") and "person" in line]) == 1


def test_command_shows_control_characters_of_an_operating_systems_error():
    program = "from resnest_det.commands import run_tool\ndef main(_):\n    open('no\\x1b[2J\\n/such')\nrun_tool(main)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 2 and "\x1b" not in ran.stderr and len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "error, told",
    [
        (MemoryError(), "memory ran out; fewer images"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
            r"memory ran out \(CUDA out of memory. Tried to allocate 2 GiB\);",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"), "memory ran out .*12 bytes"),
        (RuntimeError("could not execute a primitive"), "memory ran out"),
    ],
)
def test_memory_that_ran_out_is_told_in_a_line(error, told):
    assert re.match(told, str(out_of_memory(error)))


def test_other_errors_are_not_taken_for_it():
    assert out_of_memory(RuntimeError("The size of tensor a must match")) is None
