"""A server under load: 100 clients at a time, some of which send what is no image. Not a test: it prints figures.

python -m tests.inference.measure_serving MODEL IMAGE_DIR [--seconds 60] [--bad 10]
"""

import argparse
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

from tests.helpers.http_load import ask


def clients(port: int, bodies: list[bytes], count: int, end: float, answers: multiprocessing.Queue) -> None:
    """`count` of them, each of which asks again as soon as it is answered; puts (status, seconds) of all answers."""
    found: list[tuple[int, float]] = []

    def one(first: int) -> None:
        turn = first
        while time.time() < end:
            start = time.perf_counter()
            try:
                status, _ = ask(port, "/predict", bodies[turn % len(bodies)])
            except OSError:
                status = 0  # no answer
            found.append((status, time.perf_counter() - start))
            turn += count

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put(found)


def memory(process: subprocess.Popen) -> int:
    """MB that are resident."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--bad", type=int, default=10, help="of the 100 clients")
    args = parser.parse_args()
    images = [path.read_bytes() for path in sorted(Path(args.images).iterdir()) if path.suffix in (".png", ".jpg")][:200]
    # A kind alone is a process of its own, so that no client of one kind waits for the interpreter of the other.
    kinds = {"good": (images, 100 - args.bad), "bad": ([b"no image", b"", images[0][: len(images[0]) // 2]], args.bad)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from resnest_det.commands import main; main()",
        "serve",
        args.model,
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    server = subprocess.Popen(command)
    try:
        while server.poll() is None:
            try:
                if ask(port, "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.2)
        ask(port, "/predict", images[0])
        before = memory(server)
        end, context = time.time() + args.seconds, multiprocessing.get_context("spawn")
        answers = {kind: context.Queue() for kind in kinds}
        processes = [
            context.Process(target=clients, args=(port, *kinds[kind], end, answers[kind])) for kind in kinds if kinds[kind][1]
        ]
        for process in processes:
            process.start()
        time.sleep(min(5, args.seconds / 2))
        early = memory(server)
        found = {kind: answers[kind].get() for kind in kinds if kinds[kind][1]}
        print(json.dumps({"MB at first, after 5 s, at the end": [before, early, memory(server)]}))
    finally:
        server.terminate()
        server.wait(60)
    for kind, of_kind in found.items():
        seconds = [each for _, each in of_kind]
        print(
            f"{kind}: {len(seconds)} answers, {len(seconds) / args.seconds:.1f} a second, by status "
            f"{dict(Counter(status for status, _ in of_kind))}; median {1000 * median(seconds):.1f} ms, "
            f"90th percentile {1000 * quantiles(seconds, n=10)[-1]:.1f} ms, longest {1000 * max(seconds):.0f} ms"
        )


if __name__ == "__main__":
    main()
