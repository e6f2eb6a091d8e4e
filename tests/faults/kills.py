"""SIGKILL at random moments."""

import os
import random
import signal
import time
from pathlib import Path

from tests.faults.runs import ITERATIONS, Run, Training, command_line, processes_of, wait_until_gone

# Whoever is left ends by itself: a data worker looks after its parent every 5 s. On a busy machine all takes long.
_ORPHANS = 60.0


def kills(training: Training, folder: Path, count: int, seed: int = 0) -> dict[str, int | float]:
    """Kill runs `count` times, go on after each until they are complete, and see that all is as if nothing had happened.

    Half of the kills hit the whole session, the others one process of it: the launcher, a rank, a data worker.

    Returns:
        how many runs were completed, how many kills came while starting, training and after the last iteration, and the most
        seconds that another process outlived the one that was killed.

    Raises:
        AssertionError: with the number of the kill.
    """
    numbers = random.Random(seed)
    found = {"runs": 0, "starting": 0, "training": 0, "ending": 0, "outlived": 0.0}
    done = 0
    while done < count:
        run = Run(training, folder / f"run{found['runs']}")
        while done < count:
            process = run.start()
            phase = _wait_for_a_moment(run, process, numbers)
            if process.poll() is not None:
                break
            try:
                found["outlived"] = max(found["outlived"], _kill(process.pid, numbers))
                process.wait()
                text = run.printed()
                assert "Traceback" not in text, text
                run.check()
            except AssertionError as error:
                raise AssertionError(f"kill {done}, seed {seed}, while {phase}: {error}") from error
            found[phase] += 1
            done += 1
            print(f"kill {done} while {phase}, {len(run.losses_so_far())} iterations", flush=True)
        run.complete()
        found["runs"] += 1
    return found


def _wait_for_a_moment(run: Run, process, numbers: random.Random) -> str:
    phase = numbers.choices(("starting", "training", "ending"), (2, 6, 2))[0]
    if phase == "starting":
        time.sleep(numbers.uniform(0, run.training.seconds_to_start))
        return phase
    done = len(run.losses_so_far()) if run.out.exists() else 0
    run.wait_for(process, ITERATIONS if phase == "ending" else min(ITERATIONS, done + numbers.randint(0, 5)))
    time.sleep(numbers.uniform(0, 1.0 if phase == "ending" else 0.2))
    return phase


def _kill(session: int, numbers: random.Random) -> float:
    # Python starts the one that tracks semaphores again and complains; nothing of the run is in it.
    living = [pid for pid in processes_of(session) if "resource_tracker" not in command_line(pid)]
    victims = living if numbers.random() < 0.5 else [numbers.choice(living or [session])]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    killed = time.monotonic()
    left = wait_until_gone(session, _ORPHANS)
    assert not left, f"{_ORPHANS} s after a process was killed there are still {left}"
    return time.monotonic() - killed
