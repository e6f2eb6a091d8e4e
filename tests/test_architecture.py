"""The floors of the house: imports point downward, and docs/architecture.md says what the code does."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "resnest_det"

# From the ground up. Rooms of one floor do not import each other.
FLOORS = (
    {"contents", "errors", "distributed", "files", "stopping"},
    {"data", "weights"},
    {"backbone"},
    {"evaluation", "engine"},
    {"detector"},
    {"drawing"},
    {"configuration"},
    {"training", "inference", "model_zoo"},
    {"integrations"},
    {"commands"},
)
# On one floor, and still one above the other.
ALLOWED = {("files", "errors"), ("training", "inference"), ("inference", "model_zoo")}
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def imports_between_rooms() -> dict[tuple[str, str], set[str]]:
    """(importing room, imported room) to the files that do it; imports inside functions count as well."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":  # public names, resolved when they are asked for
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "resnest_det" else [node.module]
            for name in names:
                room = room_of(name)
                if name.startswith("resnest_det.") and room in LEVEL and room != own:
                    found.setdefault((own, room), set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_room_has_a_floor():
    rooms = {
        path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == set(LEVEL)


def test_imports_point_downward():
    imports = imports_between_rooms()
    upward = {pair: files for pair, files in imports.items() if LEVEL[pair[0]] <= LEVEL[pair[1]] and pair not in ALLOWED}
    assert not upward


def test_rooms_below_the_border_know_no_configuration():
    """Keys become plain arguments in configuration/; nothing below it takes a configuration node."""
    below = [room for level in FLOORS[: LEVEL["configuration"]] for room in level]
    files = [path for room in below for path in (PACKAGE / room).glob("*.py")]
    assert [path.name for path in files if re.search(r"\bCfgNode\b|\bcfg\.[A-Z]", path.read_text())] == []
    key = r"\b(MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER)\.[A-Z]"
    assert [path.name for path in files if re.search(key, path.read_text())] == []


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "architecture.md").read_text()


def test_the_page_lists_every_room(page):
    table = page[page.index("| room |") :].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)(?:/|\.py)`", table, re.MULTILINE)) == set(LEVEL)


def test_the_page_has_the_imports_of_the_code(page):
    table = page[page.index("| room |") :].split("\n\n")[0]
    listed = set()
    for row in table.splitlines()[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        own = re.match(r"`(\w+)", cells[0]).group(1)
        listed |= {(own, other) for other in re.findall(r"\w+", cells[-1]) if other != "nothing"}
    ground = {(own, other) for own, other in imports_between_rooms() if other in FLOORS[0] and own not in FLOORS[0]}
    assert listed == set(imports_between_rooms()) - ground
