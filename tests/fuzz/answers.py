"""Change the answers of a web server at random, and see that a download gives the right file or one line.

    python -m tests.fuzz.answers --count 10000 --seed 0

asks a server on this machine that many times, under the limits of `tests/fuzz/limits.py`, and prints what ended in anything else.
Of a file whose name has its hash, nothing but that file may ever be accepted, and after any answers an honest server gives it, at
the second time at the latest. A short run of it is in the suite.
"""

import contextlib
import hashlib
import logging
import os
import random
import re
import shutil
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

from resnest_det.weights import downloads
from tests.fuzz.checkpoints import damaged
from tests.fuzz.limits import command, problem_of

CONTENT = bytes(range(256)) * 12
NAME = f"model-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
ETAG = '"a0b1"'

CODES = (
    100,
    101,
    200,
    200,
    200,
    201,
    204,
    206,
    206,
    206,
    226,
    301,
    302,
    304,
    307,
    308,
    400,
    403,
    404,
    416,
    429,
    500,
    503,
    0,
    99,
    999,
)
LENGTHS = (
    "-1",
    "0",
    "1",
    "3071",
    "3072",
    "3073",
    "9" * 18,
    "9" * 400,
    "0x10",
    "+5",
    " 7 ",
    "3072, 3072",
    "1e3",
    "",
    "\u00b2",
    "abc",
)
RANGES = (
    *(
        "bytes 0-3071/3072",
        "bytes 1000-3071/3072",
        "bytes 1000-2000/3072",
        "bytes 1000-9999/3072",
        "bytes */3072",
        "bytes */*",
        "",
    ),
    *(
        "bytes 1000-3071/*",
        "bytes 3071-1000/3072",
        "bytes -1-5/3072",
        "items 0-1/2",
        f"bytes 0-{'9' * 400}/{'9' * 400}",
        "bytes 1000-999/3072",
    ),
)
PLACES = (
    *(
        "/again",
        "/file.pth",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://[::1",
        "http://127.0.0.1:1/x",
        "//127.0.0.1:99999/x",
        "\x00",
    ),
    *(
        "http://user:secret@127.0.0.1:1/x",
        "javascript:1",
        "http://\u2603.example/",
        "/" + "a" * 60_000,
        "",
        "http://127.0.0.1:0/",
        "/%zz",
    ),
)
TAGS = (ETAG, '"other"', 'W/"a0b1"', "", "x" * 5000, '"a\x01b"', "\xff\xfe", '"a"\r\n b')
HEADERS = (
    *("Connection: close", "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Transfer-Encoding: identity, chunked"),
    *("Accept-Ranges: none", "Set-Cookie: a=b", "Content-Type: text/html", "Retry-After: 99999", ": ", "no colon", " folded"),
    *("X: \x1b[2J", "Trailer: x", "X: " + "y" * 70_000, "\r\n".join(f"X{i}: 1" for i in range(150)), "Content-Length : 5"),
)


def honest(path: str, asked: str) -> bytes:
    """The answer of a server that knows ranges and means well."""
    first = int(found[1]) if (found := re.fullmatch(r"bytes=(\d+)-", asked)) else 0
    if first >= len(CONTENT):
        return f"HTTP/1.1 416 Range\r\nContent-Range: bytes */{len(CONTENT)}\r\nContent-Length: 0\r\n\r\n".encode()
    head = (
        f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}" if first else "HTTP/1.1 200 OK"
    )
    body = CONTENT[first:]
    return f"{head}\r\nETag: {ETAG}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def dishonest(path: str, asked: str, numbers: random.Random) -> bytes:
    """An honest answer with some of its lines, or its bytes, changed."""
    head, _, body = honest(path, asked).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    for _ in range(numbers.randint(0, 3)):
        change = numbers.randrange(9)
        if change == 0:
            lines[0] = (
                f"{numbers.choice(('HTTP/1.1', 'HTTP/1.0', 'HTTP/2', 'ICY', '', 'HTTP/1.1' * 9000))} {numbers.choice(CODES)} ok"
            )
        elif change == 1:
            lines[0] = f"HTTP/1.1 {numbers.choice((301, 302, 303, 307, 308))} \x1b[31mgone"
            lines.append(f"Location: {numbers.choice(PLACES)}")
        elif change == 2:
            lines = [line for line in lines if not line.startswith("Content-Length")]
            lines += [f"Content-Length: {numbers.choice(LENGTHS)}" for _ in range(numbers.choice((0, 1, 1, 2)))]
        elif change == 3:
            lines = [line for line in lines if not line.startswith("Content-Range")]
            lines.append(f"Content-Range: {numbers.choice(RANGES)}")
        elif change == 4:
            lines = [line for line in lines if not line.startswith("ETag")] + [f"ETag: {numbers.choice(TAGS)}"]
        elif change == 5:
            lines.insert(numbers.randint(1, len(lines)), numbers.choice(HEADERS))
        elif change == 6:
            body = numbers.choice((b"", body[: numbers.randrange(len(body) + 1)], body * 2, body[::-1], bytes(2**20)))
        elif change == 7:
            size = numbers.choice((b"c00", b"-1", b"ffffffffffffffff", b"0", b"x", b"", b"5;" + b"e" * 70_000, b"C00\r\n\r\n"))
            lines.append("Transfer-Encoding: chunked")
            body = size + b"\r\n" + body + numbers.choice((b"\r\n0\r\n\r\n", b"\r\n", b"", b"0\r\nX: 1\r\n" * 300))
        elif lines:
            del lines[numbers.randrange(len(lines))]
    answer = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body
    if numbers.random() < 0.1:
        answer = b"HTTP/1.1 100 Continue\r\n\r\n" * numbers.choice((1, 3, 2000)) + answer
    if numbers.random() < 0.4:
        kept = numbers.randint(40, 400)
        answer = damaged(answer[:kept], numbers) + answer[kept:]
    return answer[: numbers.randrange(len(answer) + 1)] if numbers.random() < 0.2 else answer


class _Server(socketserver.ThreadingTCPServer):
    """Gives `answers` one after the other, and then honest ones."""

    daemon_threads = allow_reuse_address = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.numbers, self.left = random.Random(0), 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.settimeout(5)
        with contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request and (block := self.request.recv(65536)):
                request += block
            path = request.split(b" ")[1].decode("latin-1") if request.count(b" ") else "/"
            asked = re.search(rb"(?i)\r\nrange: *([^\r]*)", request)
            asked = asked[1].decode("latin-1") if asked else ""
            self.server.left -= 1
            answer = dishonest(path, asked, self.server.numbers) if self.server.left >= 0 else honest(path, asked)
            self.request.sendall(answer)


@contextlib.contextmanager
def server() -> Iterator[_Server]:
    """A server on this machine, and no proxy between."""
    os.environ["no_proxy"] = "127.0.0.1"
    server = _Server()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def problem_with(server: _Server, seed: int, index: int, folder: Path) -> str:
    """What is wrong with how downloading ended from answers of that number; "" if it is as it should be."""
    cache = folder / "outer" / "cache"
    shutil.rmtree(cache.parent, ignore_errors=True)
    os.environ["RESNEST_DET_CACHE"] = str(cache)
    server.numbers = random.Random(f"{seed} {index}")
    # As many as one download asks at most are dishonest; often fewer.
    server.left = server.numbers.choice((1, 1, 2, 3, 4, 60))
    hashed = index % 2 == 0
    url = f"{server.url}/{NAME if hashed else 'file.pth'}"
    for attempt in range(3):
        if attempt:
            server.left = 0
        if problem := problem_of(lambda: downloads.resolve_weights(url), str):
            return problem
        outside = [path for path in cache.parent.iterdir() if path != cache]
        if outside or any(path.is_symlink() for path in cache.rglob("*")):
            return f"wrote {outside} beside the cache"
        accepted = cache / NAME
        if hashed and accepted.exists() and accepted.read_bytes() != CONTENT:
            return "accepted another file"
        # What a liar began and others completed is thrown away by the first honest answer.
        if hashed and attempt == 2 and not accepted.exists():
            return "an honest answer is not accepted afterwards"
    return ""


def run(count: int, seed: int, folder: Path) -> list[str]:
    """Download `count` times into `folder`; the problems, with what makes the answers again."""
    with server() as one:
        problems = [(index, problem_with(one, seed, index, folder)) for index in range(count)]
    return [f"seed {seed}, number {index}: {problem}" for index, problem in problems if problem]


def main() -> None:
    logging.disable(logging.CRITICAL)
    command(__doc__, "downloads", 1, run)


if __name__ == "__main__":
    main()
