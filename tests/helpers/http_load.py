"""Requests to a server on this machine, many at a time."""

import http.client
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def running(server, listening):
    """A uvicorn server in a thread; gives its port."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def ask(port: int, path: str, body=None, headers: dict | None = None, method: str | None = None) -> tuple[int, bytes]:
    """Status and body of one answer, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def as_form(content: bytes, name: str, field: str = "file") -> tuple[bytes, dict]:
    """Body and headers of a form with one file."""
    head = f'--limit\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--limit--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=limit"}


def ask_all(port: int, bodies: Iterable[bytes], at_once: int) -> list[tuple[int, bytes]]:
    """`POST /predict` with each, in their order."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda body: ask(port, "/predict", body), bodies))
