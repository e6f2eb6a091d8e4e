"""The installed command `resnest-det`: what it lists, which command it runs, and that a wheel has everything it needs."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

import resnest_det
from resnest_det import commands

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_has_a_line_for_each_command(arguments, resnest_det_command):
    done = resnest_det_command(*arguments)
    assert done.status == 0 and not done.stderr
    for name, (_, what) in commands.COMMANDS.items():
        assert any(line.split() == [name, *what.split()] for line in done.stdout.splitlines())


def test_version(resnest_det_command):
    assert resnest_det_command("--version").stdout == f"resnest-det {resnest_det.__version__}\n"


def test_unknown_command_is_one_line_with_the_nearest_one(resnest_det_command):
    done = resnest_det_command("trian")
    assert done.status == 2 and not done.stdout
    assert done.stderr == "error: there is no command 'trian', perhaps you mean 'train'; `resnest-det --help` lists them\n"


def test_bad_input_is_one_line_and_status_2(tmp_path):
    """In processes of their own: the installed command, and a script from another folder."""
    installed = [sys.executable, "-c", "from resnest_det.commands import main; main()", "train"]
    for program in (installed, [sys.executable, ROOT / "tools" / "train_net.py"]):
        done = subprocess.run(
            [*program, "--config-file", "no_such_recipe"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ") and "no_such_recipe" in done.stderr


@pytest.mark.parametrize("number, line", [(signal.SIGINT, "interrupted\n"), (signal.SIGTERM, "terminated\n")])
def test_a_signal_while_importing_is_one_line(number, line):
    code = f"""
import importlib, os, sys, types
from resnest_det import commands
def load(name):
    os.kill(os.getpid(), {int(number)})
importlib.import_module = load
sys.argv = ["resnest-det", "train"]
commands.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (128 + number, line)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_is_also_a_script_in_tools_with_the_same_help(name, ended, resnest_det_command):
    module, _ = commands.COMMANDS[name]
    path = str(ROOT / "tools" / f"{module}.py")
    script = ended(lambda: runpy.run_path(path, run_name="__main__"), [path, "--help"])
    installed = resnest_det_command(name, "--help")
    assert script.status == installed.status == 0, script.stderr + installed.stderr
    # They differ in how the program is called, which moves the line breaks of its usage.
    assert script.stdout.startswith(f"usage: {module}.py") and installed.stdout.startswith(f"usage: resnest-det {name}")
    options = [text[text.index("\n\n") :] for text in (script.stdout, installed.stdout)]
    assert options[0] == options[1]


def test_the_package_and_its_help_do_not_load_torch():
    code = "import sys, resnest_det, resnest_det.commands as c; c.help_text(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
def test_wheel_in_a_bare_environment_trains_three_steps(tmp_path):
    """Nothing of the checkout can be seen: a copy is built, installed, and run from another folder."""
    source, wheels, environment = tmp_path / "source", tmp_path / "wheels", tmp_path / "environment"
    # Only what the build reads, so that nothing which earlier builds left is taken along.
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("resnest_det", "configs", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-c", "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))", str(wheels)]
    wheels.mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    wheel = subprocess.run(build, cwd=source, env=variables, check=True, capture_output=True, text=True).stdout.split()[-1]
    venv.create(environment)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheels / wheel]
    subprocess.run(install, env=variables, check=True, capture_output=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        env=variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # What the package depends on, torch above all, is this environment's: installing it again takes gigabytes.
    Path(site, "dependencies.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    where = subprocess.run(
        [python, "-c", "import resnest_det; print(resnest_det.__file__)"],
        cwd=outside,
        env=variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert where.startswith(site) and Path(site, "resnest_det", "py.typed").is_file()

    run = [
        environment / "bin" / "resnest-det",
        "train",
        "--config-file",
        "mask_rcnn_ResNeSt14_FPN_shapes",
        "--engine",
        "builtin",
        "--num-gpus",
        "0",
        "SOLVER.MAX_ITER",
        "3",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "DATASETS.TEST",
        "()",
        "TEST.PRECISE_BN.ENABLED",
        "False",
        "DATALOADER.NUM_WORKERS",
        "0",
    ]
    done = subprocess.run(run, cwd=outside, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(outside.glob("output/**/model_final.pth"))
    hosts = subprocess.run(
        [environment / "bin" / "resnest-det", "check-hosts"], cwd=outside, env=variables, capture_output=True, text=True
    )
    assert hosts.returncode == 0 and "built-in detector: usable" in hosts.stdout, hosts.stderr


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="the kernel has no huge pages")
def test_large_blocks_of_memory_begin_at_pages():
    """glibc fits aligned blocks into freed ones then; otherwise the memory of a training step grows by half."""
    code = "import resnest_det.commands, torch; print([torch.empty(2**20 + k).data_ptr() % 4096 for k in range(3)])"
    variables = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=variables, cwd=ROOT, check=True, capture_output=True)
    assert found.stdout.decode().strip() == "[0, 0, 0]"
