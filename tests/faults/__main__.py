"""Disturb runs of the real command, and see that nothing is lost; see the functions of `tests/faults/`.

python -m tests.faults kills --count 100
python -m tests.faults kills --count 50 --processes 2
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults.faults import FAULTS, faults, possible
from tests.faults.kills import kills
from tests.faults.runs import Training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["kills", "all", *FAULTS])
    parser.add_argument("--count", type=int, default=100, help="of each (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of the run that is killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = Training(folder / "training", options.processes)
        if options.what == ["kills"]:
            found = kills(training, folder, options.count, options.seed)
        else:
            names = possible(options.processes) if options.what == ["all"] else options.what
            found = faults(training, folder, names, options.count, options.seed)
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()), f"in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
