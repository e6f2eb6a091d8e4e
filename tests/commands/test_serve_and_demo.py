"""The commands `serve` and `demo`: flags that cannot be used, and packages that are missing."""

import sys

import pytest

from resnest_det.commands import demo, serve
from resnest_det.errors import UserError


@pytest.mark.parametrize("command", [demo, serve])
@pytest.mark.parametrize("arguments, message", [
    ([], "say which model: a run's folder, a checkpoint or a recipe"),
    (["a", "--weights", "b"], "a: give a model, or --config-file and --weights"),
    (["a", "--port", "70000"], "--port 70000: expected a number from 0 to 65535"),
    (["a", "--confidence-threshold", "2"], "--confidence-threshold 2.0: expected a number from 0 to 1"),
    (["a", "--max-upload", "nan"], "--max-upload nan: expected a number from 0.001 to 1000"),
])  # fmt: skip
def test_flags_are_checked_before_anything_is_read(command, arguments, message):
    with pytest.raises(UserError, match=message):
        command.main(arguments)


@pytest.mark.parametrize("flag", ["--batch", "--timeout", "--max-waiting"])
def test_flags_of_serve(flag):
    with pytest.raises(UserError, match=rf"{flag} 0(\.0)?: expected a number from "):
        serve.main(["a", flag, "0"])


@pytest.mark.parametrize("command, package, module, extra", [
    (serve, "fastapi", "server", "serve"), (serve, "uvicorn", "server", "serve"), (demo, "gradio", "demo_page", "demo"),
])  # fmt: skip
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(command, package, module, extra, monkeypatch):
    monkeypatch.delitem(sys.modules, f"resnest_det.inference.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'needs \w+: pip install "resnest_det\[{extra}\]"'):
        command.main(["a"])
