"""What a value of a configuration may be: of its default's type, all through lists, and of a size that fits into a message."""

import math
import unicodedata
from collections.abc import Iterable

from resnest_det.errors import UserError, shown

MOST_CHARACTERS = 10_000  # of a value
# Of lists with an entry for each class, which may be thousands.
OF_CLASSES = (
    "DATASETS.THING_CLASSES",
    "DATASETS.THING_IDS",
    "DATASETS.STUFF_CLASSES",
    "DATASETS.STUFF_IDS",
    "MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS",
)
MOST_CHARACTERS_OF_CLASSES = 100_000
MOST_NUMBER = 1e12
ANY_NUMBER = ("SEED",)
INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)

# Values like those that a key takes, where its default does not tell.
EXAMPLES = {
    "DATASETS.TRAIN": [("name",)],
    "DATASETS.TEST": [("name",)],
    "DATASETS.REGISTERED": [({},)],
    "DATASETS.THING_CLASSES": [("name",)],
    "DATASETS.THING_IDS": [(1,)],
    "DATASETS.STUFF_CLASSES": [("name",)],
    "DATASETS.STUFF_IDS": [(1,)],
    "MODEL.FPN.IN_FEATURES": [["res4"]],
    "MODEL.RESNETS.CHECKPOINT_STAGES": [["res4"]],
    "MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS": [[1.0]],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[[32.0]], [32.0]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[[0.5]], [0.5]],
    "MODEL.ANCHOR_GENERATOR.ANGLES": [[[0.0]], [0.0]],
    "SOLVER.STEPS": [(1.0,)],
    "SOLVER.STEPS_EPOCHS": [(1.0,)],
    "SOLVER.WEIGHT_DECAY_BIAS": [0.0, None],
}


def check_value(key: str, value: object, default: object, source: str) -> None:
    """That `value` can stand in the place of `default`.

    Raises:
        UserError: it is of another type, not finite, or too large; the message begins with `source`.
    """
    if not any(_like(value, example) for example in EXAMPLES.get(key, [default])) and (key in EXAMPLES or default is not None):
        raise wrong_type(key, value, default, source)
    for number in _numbers(value):
        most = 2**63 - 1 if key in ANY_NUMBER else math.inf if key in INFINITE else MOST_NUMBER
        if not -most <= number <= most:  # not a number is refused, too
            raise UserError(f"{source}: {key} {shown(value)} is not supported; supported: numbers up to {most:g}")
    most_characters = MOST_CHARACTERS_OF_CLASSES if key in OF_CLASSES else MOST_CHARACTERS
    if len(repr(value)) > most_characters:
        raise UserError(f"{source}: {key} {shown(value)} is too long; supported: {most_characters} characters")
    if not (value.isprintable() if isinstance(value, str) else all(map(_is_one_line, _texts(value)))):
        raise UserError(f"{source}: {key} {shown(value)} has control characters or broken Unicode in it")


def wrong_type(key: str, value: object, default: object, source: str) -> UserError:
    """The error about a value of another type than the key's default."""
    return UserError(f"{source}: {key} takes a {type(default).__name__} like {default!r}, got {shown(value)}")


def _like(value: object, example: object) -> bool:
    if isinstance(example, (list, tuple)):
        listed = isinstance(value, (list, tuple))
        return listed and (not example or all(_like(each, example[0]) for each in value))
    if isinstance(example, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(example)


def _is_one_line(text: str) -> bool:
    # Less than printable: names of classes and of files have spaces of every kind.
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def _numbers(value: object) -> Iterable[int | float]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)):
        yield value
