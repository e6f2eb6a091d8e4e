"""No place of the package runs code, a shell or a pickle that data could bring, but those listed here."""

import ast
import re
from pathlib import Path

import pytest

import resnest_det

PACKAGE = Path(resnest_det.__file__).parent
# Calls that run what they are given, or load objects of any class.
DANGEROUS = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|runpy\..+|code\..+|marshal\.loads?|shelve\.open|dill\..+|joblib\.load|"
    r"(pickle|cPickle|_pickle)\.(load|loads|_?Unpickler)|(torch|numpy|np)\.load|torch\.(jit|export|hub|package)\.load|"
    r"yaml\.(load|load_all|unsafe_load|unsafe_load_all|full_load|full_load_all)|yaml\.(Loader|UnsafeLoader|FullLoader)|"
    r"os\.(system|popen|exec\w+|spawn\w+|posix_spawnp?|startfile)|subprocess\..+|commands\..+|pty\.spawn|ctypes\.(CDLL|cdll.*)|"
    r".*\.load_yaml_with_base|.*\.merge_from_file"
)
# (file, call): why it may stand there.
ALLOWED = {
    ("data/loader.py", "pickle.loads"): "records that the same process has packed",
    ("weights/pickles.py", "pickle._Unpickler"): "the base of the unpickler that calls nothing but a list of its own",
    ("inference/export.py", "torch.jit.load"): "the file that the same process has just written, to compare it",
    ("inference/export.py", "torch.export.load"): "likewise",
    ("inference/exported.py", "torch.jit.load"): "a program that its user exported, and asks to run; see SECURITY.md",
    ("inference/exported.py", "torch.export.load"): "likewise",
    ("commands/__init__.py", "ctypes.CDLL"): "the C library of the system, by a fixed name",
    ("commands/benchmark_measuring.py", "ctypes.CDLL"): "likewise",
}


def calls_of(source: str) -> set[str]:
    """Dotted names of everything that is called, inherited or imported from a module, and "shell=True"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
        if isinstance(node, ast.ClassDef):
            found |= {ast.unparse(base) for base in node.bases}
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
            found |= {"shell=True" for keyword in node.keywords if keyword.arg == "shell"}
    return found


def dangerous(source: str) -> set[str]:
    """Those calls of a source that could run what data says."""
    return {call for call in calls_of(source) if DANGEROUS.fullmatch(call) or call == "shell=True"}


def test_only_the_listed_places():
    found = {
        (path.relative_to(PACKAGE).as_posix(), call) for path in PACKAGE.rglob("*.py") for call in dangerous(path.read_text())
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)",
        "builtins.exec(x)",
        "pickle.load(f)",
        "torch.load(f)",
        "yaml.load(f, Loader=yaml.SafeLoader)",
        "yaml.UnsafeLoader(f)",
        "os.system(x)",
        "f(x, shell=True)",
        "subprocess.run(x)",
        "from pickle import load",
        "CfgNode.load_yaml_with_base(x)",
    ],
)
def test_they_are_seen(source):
    assert dangerous(f"def f():\n    {source}")


def test_harmless_ones_are_not():
    assert dangerous("model.eval()\nre.compile(x)\njson.load(f)\nyaml.SafeLoader(f)\nast.literal_eval(x)") == set()
