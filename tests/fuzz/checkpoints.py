"""Damage checkpoints at random, and see that reading one gives what was written or one line.

    python -m tests.fuzz.checkpoints --count 10000 --seed 0

reads that many damaged files of each kind, under a limit of memory, and prints those that ended in anything else: other content,
an error that is not `UserError`, a message of several lines, more than `SECONDS`. The file that was read last stays in the folder
of --keep, for a damage that ends the interpreter. A short run of it is in the suite.
"""

import argparse
import io
import pickle
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from resnest_det.errors import UserError, printable
from resnest_det.weights.checkpoint_files import read_checkpoint, save_safetensors, with_digests

SECONDS = 15  # to refuse a file
MEMORY = 6 << 30  # bytes of addresses; importing torch takes up to four


def whole_files() -> dict[str, tuple[bytes, dict]]:
    """Kind of file to its bytes and what reading it gives."""
    generator = torch.Generator().manual_seed(0)
    model = {
        "stem.conv1.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "stem.norm.running_var": torch.rand(4, generator=generator),
        "stem.norm.num_batches_tracked": torch.tensor(7),
    }
    momentum = {index: {"momentum_buffer": torch.randn(4, 3, generator=generator)} for index in range(2)}
    content = {"model": model, "optimizer": {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}, "iteration": 99}
    zoo = {"model": model, "__author__": "resnest_det", "matching_heuristics": True}
    files = {}
    for kind, is_zip in (("zip", True), ("stream", False)):
        buffer = io.BytesIO()
        torch.save(with_digests(content), buffer, _use_new_zipfile_serialization=is_zip)
        files[kind] = buffer.getvalue(), content
    arrays = {name: value.numpy() for name, value in model.items()}
    for protocol in (2, 4):
        files[f"pickle {protocol}"] = pickle.dumps({**with_digests(zoo), "model": arrays}, protocol=protocol), zoo
    files["safetensors"] = save_safetensors(model), model
    return files


def damaged(whole: bytes, random_numbers: random.Random) -> bytes:
    """`whole` with one to four changes: bytes and bits turned, parts cut out, repeated, exchanged, or the end missing."""
    content = bytearray(whole)
    for _ in range(random_numbers.randint(1, 4)):
        if not content:
            break
        at = random_numbers.randrange(len(content))
        length = min(random_numbers.choice((1, 1, 2, 4, 8, 64)), len(content) - at)
        part = bytes(content[at : at + length])
        change = random_numbers.randrange(10)
        if change < 3:
            content[at] ^= 1 << random_numbers.randrange(8)
        elif change < 6:
            content[at : at + length] = random_numbers.randbytes(length)
        elif change == 6:
            content[at : at + length] = random_numbers.choice((b"\0", b"\xff", b"\x7f")) * length
        elif change == 7:
            del content[at : at + length]
        elif change == 8:
            to = random_numbers.randrange(len(content))
            content[to:to] = part
        else:
            del content[at:]
    return bytes(content)


def same(found, expected) -> bool:
    """Whether two contents are equal, types, order of items in lists, and every bit of a tensor included."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or (found.dtype, found.shape) != (expected.dtype, expected.shape):
            return False
        return np.array_equal(found.contiguous().view(-1).view(torch.uint8), expected.contiguous().view(-1).view(torch.uint8))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same(found[key], expected[key]) for key in expected)
        )
    if isinstance(expected, (list, tuple)):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def problem_of(path: Path, expected) -> str:
    """What is wrong with how reading `path` ended, "" if it gave `expected` or one line."""
    start = time.perf_counter()
    try:
        found = read_checkpoint(path)
        problem = "" if same(found, expected) else "another content, without a word"
    except UserError as error:
        problem = (
            ""
            if printable(str(error)) == str(error) and len(str(error)) < 600
            else f"a message of {len(str(error))} characters: {error!s:.200}"
        )
    except BaseException as error:  # a MemoryError, a RecursionError and an exit are findings too
        problem = f"{type(error).__name__}: {error!s:.200}"
    seconds = time.perf_counter() - start
    return problem or (f"took {seconds:.0f} s" if seconds > SECONDS else "")


def run(count: int, seed: int, folder: Path, kinds=None) -> list[str]:
    """Read `count` damaged files of each kind in `folder`; the problems, with what makes the file again."""
    problems = []
    for kind, (whole, expected) in whole_files().items():
        if kinds and kind not in kinds:
            continue
        path = folder / f"{kind.replace(' ', '_')}.bin"
        path.write_bytes(whole)
        if problem := problem_of(path, expected):
            problems.append(f"{kind}, whole: {problem}")
        for index in range(count):
            path.write_bytes(damaged(whole, random.Random(f"{kind} {seed} {index}")))
            if problem := problem_of(path, expected):
                problems.append(f"{kind}, seed {seed}, file {index}: {problem}")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="files of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(whole_files()), help="this kind only; can be repeated")
    parser.add_argument("--keep", type=Path, help="folder for the files (default: a temporary one)")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        problems = run(options.count, options.seed, folder, options.kind)
    for problem in problems:
        print(ascii(problem))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    kinds = len(options.kind or whole_files())
    print(f"{len(problems)} of {options.count * kinds} ended badly; {time.perf_counter() - start:.0f} s, at most {peak:.0f} MiB")


if __name__ == "__main__":
    main()
