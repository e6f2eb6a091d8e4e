"""Change configurations at random, and see that loading one gives a configuration or one line.

    python -m tests.fuzz.configurations --count 10000 --seed 0

loads that many changed files and as many changed overrides, under the limits of `tests/fuzz/limits.py`, and prints those that
ended in anything else. A recipe gets one to four other values, keys or damaged bytes. A short run of it is in the suite.
"""

import copy
import functools
import logging
import random
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from resnest_det.configuration.defaults import DEFAULTS
from resnest_det.configuration.nodes import leaves
from resnest_det.configuration.reading import load_config
from resnest_det.files import packaged
from tests.fuzz.checkpoints import damaged
from tests.fuzz.limits import command, problem_of

RECIPES = ("mask_rcnn_ResNeSt14_FPN_shapes", "panoptic_ResNeSt14_FPN_shapes", "cascade_mask_rcnn_ResNeSt14_FPN_dcn_shapes")
DEFAULT = dict(leaves(DEFAULTS))
KEYS = list(DEFAULT)
# Values as YAML writes them.
VALUES = [
    *(
        "null",
        "~",
        "true",
        "no",
        "0",
        "-1",
        "1",
        "2",
        "7",
        "50",
        "1.5",
        "-0.5",
        "1e-320",
        "1e30",
        "1e308",
        "1e400",
        ".inf",
        "-.inf",
    ),
    *(".nan", "nan", "65536", "100000", "2147483648", "1099511627776", "4611686018427387904", "18446744073709551616"),
    *(
        "-1099511627776",
        "9" * 400,
        "9" * 5000,
        "0x" + "f" * 5000,
        "0o777",
        "1_000",
        "1:1:1",
        ":".join("1" * 300),
        "1e",
        "2001-99-99",
    ),
    *(
        "2001-01-01",
        "2001-01-01 25:00:00",
        "''",
        "' '",
        "x",
        "res2",
        "p2",
        "'a\\0b'",
        '"\\0"',
        '"\\e[2J"',
        '"\\ud800"',
        "W" * 20_000,
    ),
    *("a/../b", "http://127.0.0.1:1/a", "/dev/zero", "%s%n", "{0}", "!!binary '*'", "!!binary aGk=", "!!int abc", "!!float abc"),
    *(
        "!!python/object/apply:os.getcwd []",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!str 5",
        "!!timestamp x",
        "!!bool maybe",
        "[]",
        "[1]",
    ),
    *(
        "[null]",
        "[x]",
        "[[1]]",
        "[[]]",
        "[{}]",
        "{}",
        "{a: 1}",
        "{1: 2}",
        "[1, 2, 3, 4]",
        "[-1]",
        "[0]",
        "[0.0]",
        "[0.5, 0.5]",
        "[1.5]",
    ),
    *(
        "[.nan]",
        "[.inf]",
        "[1e300]",
        "[true]",
        "[65536, 65536]",
        "[1099511627776]",
        "[[1099511627776]]",
        "[[0]]",
        "[[-1]]",
        "[[1e300]]",
    ),
    *("&m {a: *m}", "&l [*l]", "[" * 60 + "]" * 60, "[" * 3000 + "]" * 3000, "{a: " * 300 + "1" + "}" * 300),
    *(
        "[" + "1, " * 9000 + "1]",
        "[" + "[1, 2], " * 2000 + "[1]]",
        "(1,)",
        "('a',)",
        "()",
        "(",
        "1+1j",
        "b'a'",
        "[['p2'], 1]",
        "'{[]: 1}'",
    ),
    *('"' + "-" * 9000 + '1"', '"' + "(" * 9000 + '"', "\"'\\\\d'\"", "__import__('os').getcwd()", "'[1, 2'", "2**40", "10**10"),
    *(
        "[&a [x, x, x, x, x, x, x, x, x, x]"
        + "".join(f", &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]" for i in range(8))
        + "]",
    ),
]
INTEGERS = (-(2**40), -100, -1, 0, 1, 2, 3, 4, 5, 7, 16, 64, 100, 255, 1000, 1024, 4096, 65536, 10**6, 10**9, 2**31, 2**40, 2**62)
FLOATS = (-1e12, -1.0, -1e-9, 0.0, 1e-320, 1e-9, 0.1, 0.5, 1.0, 1.5, 2.0, 100.0, 1e6, 1e12)
TEXTS = (
    "",
    "BN",
    "FrozenBN",
    "GN",
    "SyncBN",
    "LN",
    "res2",
    "res5",
    "p2",
    "p6",
    "stem",
    "avg",
    "sum",
    "giou",
    "ciou",
    "l1",
    "norm",
    "value",
)
TEXTS += (
    "SemanticSegmentor",
    "PanopticFPN",
    "GeneralizedRCNN",
    "WarmupCosineLR",
    "WarmupStepWithFixedGammaLR",
    "linear",
    "constant",
)
TEXTS += (
    "build_resnest_backbone",
    "build_resnet_fpn_backbone",
    "StandardROIHeads",
    "CascadeROIHeads",
    "RGB",
    "L",
    "absolute",
    "range",
)
# Where a mutation goes most often: what decides over sizes.
NUMBERS = [key for key, value in DEFAULT.items() if isinstance(value, (int, float, list, tuple)) and not isinstance(value, bool)]


@functools.cache
def recipes() -> list[dict]:
    """The contents of the recipes that are changed, whose `_BASE_` lies in the package."""
    contents = []
    for name in RECIPES:
        path = next(packaged("configs").rglob(f"{name}.yaml"))
        content = yaml.safe_load(path.read_text())
        content["_BASE_"] = str((path.parent / content["_BASE_"]).resolve())
        contents.append(content)
    return contents


def similar(value: object, numbers: random.Random) -> object:
    """Another value of the same type, which only its meaning can refuse."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return numbers.choice(INTEGERS if isinstance(value, int) else FLOATS)
    if isinstance(value, str):
        return numbers.choice(TEXTS)
    if not isinstance(value, (list, tuple)) or not value:
        return numbers.choice(([], ["res2"], ["p2"], [1], 0.5, ["a", "a"], [["bbox", "AP", 1.0, 2.0]]))
    parts, change = list(value), numbers.randrange(5)
    at = numbers.randrange(len(parts))
    if change == 0:
        del parts[at]
    elif change == 1:
        parts.insert(at, parts[at])
    elif change == 2:
        parts = parts * numbers.choice((0, 2, 3, 30, 300))
    else:
        parts[at] = similar(parts[at], numbers)
    return parts


def changed(whole: dict, numbers: random.Random) -> bytes:
    """The file of a configuration with one to four values put in, left out or exchanged."""
    content = copy.deepcopy(whole)
    stand_ins = {}
    for index in range(numbers.randint(1, 4)):
        value = f"@value{index}@"
        stand_ins[value] = numbers.choice(VALUES)
        present = [key for key, _ in leaves(content)]
        key = numbers.choice((numbers.choice(KEYS), numbers.choice(NUMBERS), numbers.choice(present or KEYS)))
        if numbers.random() < 0.1:
            key = numbers.choice((key.rpartition(".")[0] or key, key + ".X", key.lower(), "_BASE_", "X"))
        elif numbers.random() < 0.7:
            stand_ins[value] = yaml.safe_dump(similar(DEFAULT.get(key), numbers), default_flow_style=True, width=10**9).split(
                "\n"
            )[0]
        node, *sections = content, *key.split(".")[:-1]
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        change, name = numbers.randrange(8), key.rpartition(".")[2]
        if change == 0 and name in node:
            del node[name]
        elif change == 1 and isinstance(node.get(name), list) and node[name]:
            node[name] = copy.deepcopy(node[name])
            node[name][numbers.randrange(len(node[name]))] = value
        elif change == 2 and isinstance(node.get(name), (int, float)) and not isinstance(node[name], bool):
            node[name] = node[name] * numbers.choice((-1, 0, 2, 0.5, 1000, 10**6, 10**12))
        elif change == 3:
            content[value] = stand_ins.setdefault(value, "1")
        else:
            node[name] = value
    text = yaml.safe_dump(content, width=10**9)
    for name, value in stand_ins.items():
        text = text.replace(f"'{name}'", value).replace(name, value)
    return text.encode(errors="surrogatepass")


def file_of(seed: int, index: int) -> bytes:
    """The changed file of that number."""
    numbers = random.Random(f"file {seed} {index}")
    whole = numbers.choice(recipes())
    return damaged(yaml.safe_dump(whole).encode(), numbers) if index % 5 == 4 else changed(whole, numbers)


def overrides_of(seed: int, index: int) -> list[str]:
    """The changed overrides of that number."""
    numbers = random.Random(f"overrides {seed} {index}")
    overrides = []
    for _ in range(numbers.randint(1, 4)):
        value = numbers.choice(VALUES)
        if numbers.random() < 0.15:
            value = damaged(value.encode(), numbers).decode(errors="surrogateescape") if len(value) < 100 else value
        key = numbers.choice((numbers.choice(KEYS), numbers.choice(NUMBERS)))
        overrides += [key, str(similar(DEFAULT[key], numbers)) if numbers.random() < 0.7 else value]
    if numbers.random() < 0.05:
        overrides[0] = numbers.choice(("", ".", "_BASE_", "MODEL", "MODEL.", "X" * 100_000, "\x1b[2J", "MODEL.X.Y", "__class__"))
    return overrides[: len(overrides) - (numbers.random() < 0.02)]


def run(count: int, seed: int, folder: Path) -> list[str]:
    """Load `count` changed files in `folder` and as many overrides; the problems, with what makes the input again."""
    problems = []
    path = folder / "changed.yaml"
    for index in range(count):
        path.write_bytes(file_of(seed, index))
        if problem := problem_of(lambda: load_config(str(path)), CfgNode):
            problems.append(f"file, seed {seed}, number {index}: {problem}")
        given = overrides_of(seed, index)
        if problem := problem_of(lambda given=given: load_config(RECIPES[0], given), CfgNode):
            problems.append(f"overrides, seed {seed}, number {index}: {problem}")
    return problems


def main() -> None:
    logging.disable(logging.CRITICAL)
    command(__doc__, "files, and overrides", 2, run)


if __name__ == "__main__":
    main()
