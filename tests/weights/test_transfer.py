"""Downloads from servers that answer wrongly on purpose, into caches where others have been: one line, and nothing believed."""

import hashlib
import http.server
import io
import os
import socket
import threading

import pytest

from resnest_det import UserError, resolve_weights
from resnest_det.weights import transfer

CONTENT = bytes(range(256)) * 40
DIGITS = hashlib.sha256(CONTENT).hexdigest()
CUT = 5000  # bytes after which the first answer breaks off


class Server(http.server.ThreadingHTTPServer):
    """`answers`: path to a function of the offset that is asked for (0: all) that gives status, headers and body."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def first_cut_then(self, path, status, headers, body):
        """All bytes are promised and the first `CUT` sent; the second request is answered otherwise."""
        whole = {"ETag": '"1"', "Content-Length": len(CONTENT)}
        self.answers[path] = lambda start: (status, {"ETag": '"1"', **headers}, body) if start else (200, whole, CONTENT[:CUT])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append(dict(self.headers))
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        status, headers, body = self.server.answers[self.path](start)
        self.send_response(status, headers.pop("reason", None))
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.close_connection = True
        try:
            for block in [body] if isinstance(body, bytes) else body:
                self.wfile.write(block)
        except OSError:
            pass  # the other side has heard enough


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def content_of(path):
    with open(path, "rb") as file:
        return file.read()


def whole(_):
    return 200, {"Content-Length": len(CONTENT), "ETag": '"1"'}, CONTENT


def refusal(spec):
    with pytest.raises(UserError) as caught:
        resolve_weights(spec)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    return str(caught.value)


def test_every_part_of_an_address_tells_files_apart(server):
    other = Server()
    server.answers = {
        path: lambda _, path=path: (200, {}, path.encode()) for path in ("/x", "/x?id=1", "/x?id=2", "/a//x", "/a/x")
    }
    other.answers = {"/x": lambda _: (200, {}, b"another server")}
    got = {path: content_of(resolve_weights(server.url + path)) for path in server.answers}
    assert got == {path: path.encode() for path in server.answers}
    assert content_of(resolve_weights(other.url + "/x")) == b"another server"
    other.shutdown()
    other.server_close()


def test_one_address_spelled_in_two_ways_is_one_file(server):
    server.answers["/x"] = whole
    assert resolve_weights(server.url + "/x") == resolve_weights(server.url + "/x#a-part")
    assert len(server.requests) == 1


def test_name_of_a_published_file_without_a_hash_is_not_taken_by_another_address(server, cache):
    name = "mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x.pth"
    server.answers[f"/{name}"] = whole
    resolve_weights(f"{server.url}/{name}")
    assert not (cache / name).exists()


@pytest.mark.parametrize(
    "status, headers, body",
    [
        (206, {"Content-Range": f"bytes 0-{len(CONTENT) - CUT - 1}/{len(CONTENT)}"}, CONTENT[: len(CONTENT) - CUT]),
        (206, {"Content-Range": f"bytes {CUT}-{len(CONTENT) - 1}/*"}, CONTENT[CUT:]),
        (206, {"Content-Range": f"bytes {CUT}-{len(CONTENT)}/{len(CONTENT) + 1}"}, CONTENT[CUT:] + b"x"),
        (206, {"Content-Range": f"bytes {CUT}-{CUT + 9}/{len(CONTENT)}", "Content-Length": 9}, CONTENT[CUT : CUT + 9]),
        (206, {"Content-Length": 100}, CONTENT[CUT : CUT + 100]),
        (206, {}, CONTENT[CUT:]),
    ],
)
def test_part_that_was_not_asked_for(server, cache, status, headers, body):
    server.first_cut_then("/x", status, headers, body)
    assert f"was asked for the file from byte {CUT} on" in refusal(server.url + "/x")
    assert not [path for path in cache.rglob("x*") if path.is_file() and path.suffix != ".lock"]


def test_parts_that_are_short_but_right_are_put_together(server):
    def answer(start):
        end = min(start + 4000, len(CONTENT))
        headers = {"ETag": '"1"', "Content-Length": end - start}
        if not start:
            return 200, headers | {"Content-Length": len(CONTENT)}, CONTENT[:end]
        return 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(CONTENT)}"}, CONTENT[start:end]

    server.answers["/x"] = answer
    assert content_of(resolve_weights(server.url + "/x")) == CONTENT
    assert len(server.requests) == 3


def test_part_that_nobody_asked_for(server):
    server.answers["/x"] = lambda _: (206, {"Content-Range": f"bytes 0-9/{len(CONTENT)}", "Content-Length": 10}, CONTENT[:10])
    assert "was asked for the file from byte 0 on" in refusal(server.url + "/x")


@pytest.mark.parametrize(
    "headers, body, reason",
    [
        ({"Content-Length": 0}, b"", "empty"),
        ({}, b"", "empty"),
        ({"Content-Length": -5}, b"abc", "a length of '-5' bytes"),
        ({"Content-Length": "12x"}, b"abc", "a length of '12x' bytes"),
        ({"Content-Length": 1 << 50}, b"abc", "more than"),
        ({"Transfer-Encoding": "chunked"}, b"zz\r\nabc\r\n", "IncompleteRead"),
    ],
)
def test_lengths_that_cannot_be(server, headers, body, reason):
    server.answers["/x"] = lambda _: (200, dict(headers), body)
    assert reason in refusal(server.url + "/x")


def test_answers_without_a_file(server):
    server.answers = {
        "/416": lambda _: (416, {"Content-Range": "bytes */0"}, b""),
        "/204": lambda _: (204, {}, b""),
        "/404": lambda _: (404, {"reason": "\x1b[2Jowned"}, b""),
    }
    assert "HTTP 416" in refusal(server.url + "/416")
    assert "HTTP 204" in refusal(server.url + "/204")
    assert r"HTTP 404 \x1b[2Jowned" in refusal(server.url + "/404")


def test_body_without_an_end_is_stopped(server, cache, monkeypatch):
    monkeypatch.setattr(transfer, "_LARGEST_UNANNOUNCED", 3 << 20)

    def endless():
        while True:
            yield bytes(1 << 16)

    server.answers["/x"] = lambda _: (200, {}, endless())
    assert f"sends more than {3 << 20} bytes without saying how many" in refusal(server.url + "/x")
    assert not list(cache.rglob("*.part"))


@pytest.mark.parametrize("etag", ['"a\u00e9b"', '"' + "x" * 5000 + '"'])
def test_etag_that_cannot_be_sent_back(server, etag):
    server.answers["/x"] = lambda _: (200, {"ETag": etag, "Content-Length": len(CONTENT)}, CONTENT[:100])
    assert "connection lost after 100 of" in refusal(server.url + "/x")


def test_redirects(server):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    for name, target in {
        "ftp": f"ftp://127.0.0.1:{listener.getsockname()[1]}/x",
        "file": "file:///etc/hostname",
        "data": "data:text/plain,hello",
        "here": "/x",
        "loop": "/loop",
    }.items():
        server.answers[f"/{name}"] = lambda _, target=target: (302, {"Location": target, "Content-Length": 0}, b"")
    server.answers["/x"] = whole
    assert "redirects from http to ftp, which is not followed" in refusal(server.url + "/ftp")
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()
    assert "is not allowed" in refusal(server.url + "/file") and "is not allowed" in refusal(server.url + "/data")
    assert "infinite loop" in refusal(server.url + "/loop")
    assert content_of(resolve_weights(server.url + "/here")) == CONTENT


@pytest.mark.parametrize("start, target, followed", [("https", "http", False), ("http", "https", True), ("https", "https", True)])
def test_no_redirect_leaves_an_encrypted_connection(start, target, followed):
    request = transfer.urllib.request.Request(f"{start}://host/x")
    arguments = (request, io.BytesIO(), 302, "Found", {}, f"{target}://host/x")
    if followed:
        assert transfer._Redirects().redirect_request(*arguments).full_url == f"{target}://host/x"
    else:
        with pytest.raises(transfer.urllib.error.URLError, match="from https to http"):
            transfer._Redirects().redirect_request(*arguments)


@pytest.mark.parametrize("suffix", [".part", ".part.validator", ".lock", ""])
@pytest.mark.parametrize("there", [True, False])
def test_links_in_the_cache_are_not_written_through(server, cache, tmp_path, suffix, there):
    server.answers["/x"] = whole
    path = resolve_weights(server.url + "/x")
    os.unlink(path)
    victim = tmp_path / "victim"
    if there:
        victim.write_text('"secret"')
    link = type(victim)(path + suffix)
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    if suffix == "" and there:
        return  # reading a file through a link is reading a file that someone put there
    server.requests.clear()
    assert content_of(resolve_weights(server.url + "/x")) == CONTENT
    assert victim.read_text() == '"secret"' if there else not victim.exists()
    assert not any("secret" in str(request) for request in server.requests)


def test_hard_link_in_the_cache_is_not_written_through(server, tmp_path):
    server.answers["/x"] = whole
    path = resolve_weights(server.url + "/x")
    os.unlink(path)
    (tmp_path / "victim").write_text("precious")
    os.link(tmp_path / "victim", path + ".part")
    assert content_of(resolve_weights(server.url + "/x")) == CONTENT
    assert (tmp_path / "victim").read_text() == "precious"


def test_folder_of_the_cache_that_is_a_link(server, cache, tmp_path):
    server.answers["/x"] = whole
    path = resolve_weights(server.url + "/x")
    (tmp_path / "elsewhere").mkdir()
    folder = type(cache)(path).parent
    os.unlink(path)
    os.unlink(path + ".lock")
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert "a folder of the cache is a link" in refusal(server.url + "/x")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_pipe_in_the_cache_does_not_wait(server, cache):
    server.answers["/x"] = whole
    path = resolve_weights(server.url + "/x")
    os.unlink(path)
    os.mkfifo(path + ".part")
    assert content_of(resolve_weights(server.url + "/x")) == CONTENT


@pytest.mark.parametrize(
    "address",
    [
        "https://[::1/x",
        "https://a:99999/x.pth",
        "https://a b/x",
        "https://a/x y",
        "https://a/%00.pth",
        "https://a/..%2f..%2fx",
        "https:///x",
        "https://a/\n.pth",
        "https://a/\udc80.pth",
        "https://" + "a" * 100 + "/x",
        "https://a/%ff",
    ],
)
def test_addresses_that_are_none(address):
    assert "not the address of a file" in refusal(address)


@pytest.mark.parametrize(
    "spec",
    [
        "hf://../..",
        "hf://a/b@../c/d",
        "hf://a/b/../../etc/passwd",
        "hf://a/b/\x1b[2J",
        "hf://a/-b-",
        "hf://a/b@..",
        "a\0b",
        "~no-such-user/x",
    ],
)
def test_other_places_that_are_none(spec, monkeypatch):
    monkeypatch.setattr("resnest_det.weights.downloads.constants.ENDPOINT", "http://127.0.0.1:9")
    refusal(spec)


def test_passwords_are_not_repeated(server, cache):
    for address in (
        "https://user:secret@127.0.0.1:1/x.pth",
        "https://secret@127.0.0.1:1/y",
        "https://:secret@[::1/y",
        "ftp://u:secret@h/x",
    ):
        message = refusal(address)
        assert "secret" not in message and "://***@" in message
    assert not list(cache.rglob("*secret*"))
