"""docs/reliability.md names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_every_promise_has_a_test_that_exists():
    rows = [line for line in PAGE.read_text().split("## ")[0].splitlines() if line.startswith("| ")][1:]
    promises = [line for line in rows if not line.startswith("| **")]
    assert len(promises) > 20
    for line in promises:
        named = re.findall(r"`([\w/]*\.py)?(?:::(\w+))?`", line.split("|")[2])
        assert named, line
        file = ""
        for given, test in named:
            file = given or file
            functions = {
                node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)
            }
            assert not test or test in functions, f"{file}::{test}"
