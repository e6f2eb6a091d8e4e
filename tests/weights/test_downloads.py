"""Finding and downloading weights, from servers on this machine that break off, change their mind, or are not there."""

import hashlib
import http.server
import io
import re
import threading
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from resnest_det import UserError, resolve_weights
from resnest_det.backbone.variants import VARIANTS
from resnest_det.weights import downloads
from resnest_det.weights.published import ALIASES, GLUON_FILES, SHA1_OF_PARAMS, WEIGHT_FILES, WeightFile

CONTENT = bytes(range(256)) * 20000  # 5 MB: several pieces
DIGITS = hashlib.sha256(CONTENT).hexdigest()
DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path to bytes) with ranges; `break_after` bytes it closes the connection, as often as `breaks` says."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.breaks, self.break_after = {}, [], 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        server = self.server
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        digest = hashlib.sha256(content).hexdigest()
        etag = f'"{digest}"'
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range", etag) == etag:
            start = int(asked[1])
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", etag)
        self.send_header("X-Repo-Commit", "0" * 40)  # what the Hugging Face hub adds
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not with_body:
            return
        if server.breaks > 0:
            server.breaks -= 1
            self.wfile.write(content[start : start + server.break_after])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def content_of(path):
    with open(path, "rb") as file:
        return file.read()


def published(monkeypatch, *mirrors, digits=DIGITS[:8]):
    monkeypatch.setitem(WEIGHT_FILES, "resnest50", WeightFile(f"resnest50-{digits}.pth", mirrors, digits))


def test_download_is_checked_kept_and_not_repeated(server, cache):
    name = f"model-{DIGITS[:8]}.pth"
    server.files[f"/some/{name}"] = CONTENT
    path = resolve_weights(f"{server.url}/some/{name}")
    assert path == str(cache / name) and content_of(path) == CONTENT
    assert resolve_weights(f"{server.url}/some/{name}") == path
    assert len(server.requests) == 1
    assert not list(cache.glob("*.part*"))


def test_same_name_at_two_addresses_is_two_files(server, cache):
    server.files.update({"/a/model_final.pth": b"a" * 10, "/b/model_final.pth": b"b" * 10})
    first, second = resolve_weights(f"{server.url}/a/model_final.pth"), resolve_weights(f"{server.url}/b/model_final.pth")
    assert content_of(first) == b"a" * 10 and content_of(second) == b"b" * 10


def test_broken_connection_goes_on_where_it_stopped(server, cache, monkeypatch):
    server.files["/x.pth"] = CONTENT
    server.breaks, server.break_after = 2, 2_000_000
    assert content_of(resolve_weights(f"{server.url}/x.pth")) == CONTENT
    assert [requested for _, _, requested in server.requests] == [None, "bytes=2000000-", "bytes=4000000-"]


def test_next_run_goes_on_where_the_last_stopped(server, cache, monkeypatch):
    server.files["/x.pth"] = CONTENT
    server.breaks, server.break_after = 1, 2_000_000
    monkeypatch.setattr(downloads, "_ATTEMPTS", 1)
    with pytest.raises(UserError, match="connection lost after 2000000 of 5120000 bytes"):
        resolve_weights(f"{server.url}/x.pth")
    assert content_of(resolve_weights(f"{server.url}/x.pth")) == CONTENT
    assert server.requests[-1][2] == "bytes=2000000-"


def test_file_that_changed_meanwhile_is_fetched_from_its_start(server, cache, monkeypatch):
    server.files["/x.pth"] = CONTENT
    server.breaks, server.break_after = 1, 2_000_000
    monkeypatch.setattr(downloads, "_ATTEMPTS", 1)
    with pytest.raises(UserError):
        resolve_weights(f"{server.url}/x.pth")
    server.files["/x.pth"] = CONTENT[::-1]
    assert content_of(resolve_weights(f"{server.url}/x.pth")) == CONTENT[::-1]


def test_part_that_is_whole_needs_nothing_more(server, cache):
    server.files["/x.pth"] = CONTENT
    host = cache / "127.0.0.1"
    host.mkdir(parents=True)
    (host / "x.pth.part").write_bytes(CONTENT)
    (host / "x.pth.part.validator").write_text(f'"{DIGITS}"')
    assert content_of(resolve_weights(f"{server.url}/x.pth")) == CONTENT
    assert [requested for _, _, requested in server.requests] == [f"bytes={len(CONTENT)}-"]


def test_dead_and_wrong_mirrors_are_passed_over(server, cache, monkeypatch):
    server.files.update({"/wrong.pth": CONTENT[1:], "/right.pth": CONTENT})
    published(monkeypatch, f"{DEAD}/x.pth", f"{server.url}/absent.pth", f"{server.url}/wrong.pth", f"{server.url}/right.pth")
    path = resolve_weights("resnest://resnest50d.in1k")
    assert path == str(cache / f"resnest50-{DIGITS[:8]}.pth") and content_of(path) == CONTENT


def test_no_mirror_answers(server, cache, monkeypatch):
    server.files["/wrong.pth"] = CONTENT[1:]
    published(monkeypatch, f"{DEAD}/x.pth", f"{server.url}/absent.pth", f"{server.url}/wrong.pth")
    with pytest.raises(UserError) as caught:
        resolve_weights("resnest://resnest50")
    message = str(caught.value)
    for part in (
        f"{DEAD}/x.pth (",
        "refused",
        f"{server.url}/absent.pth (HTTP 404",
        "wrong file: sha256",
        DIGITS[:8],
        f"resnest50-{DIGITS[:8]}.pth",
        f"put it into {cache}",
    ):
        assert part in message
    assert "\n" not in message
    assert not [path for path in cache.iterdir() if path.suffix in (".pth", ".part")]


def test_file_put_there_by_hand_is_used_and_checked(cache, monkeypatch):
    published(monkeypatch, f"{DEAD}/x.pth")
    cache.mkdir()
    path = cache / f"resnest50-{DIGITS[:8]}.pth"
    path.write_bytes(CONTENT)
    assert resolve_weights("resnest://resnest50") == str(path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=f"{path} refused: their sha256 begins with .*published is {DIGITS[:8]}"):
        resolve_weights("resnest://resnest50")


def test_hugging_face_hub(server, cache, monkeypatch):
    server.files["/timm/some.in1k/resolve/main/model.safetensors"] = CONTENT
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (huggingface_hub.constants, huggingface_hub.file_download):  # which has a copy in early releases
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True, raising=False)
    path = resolve_weights("hf://timm/some.in1k")
    assert content_of(path) == CONTENT and path.startswith(str(cache / "huggingface"))
    before = len(server.requests)
    assert resolve_weights("hf://timm/some.in1k") == path
    assert len(server.requests) == before

    blob = next((cache / "huggingface").rglob(f"blobs/{DIGITS}"))
    blob.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="refused: their sha256"):
        resolve_weights("hf://timm/some.in1k")

    published(monkeypatch, f"{DEAD}/x.pth", "hf://timm/absent")
    with pytest.raises(UserError, match=r"hf://timm/absent \("):
        resolve_weights("resnest://resnest50")


def test_hub_without_a_network_says_so_at_once(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", DEAD)
    monkeypatch.setattr(downloads, "hf_hub_download", _only_local)
    with pytest.raises(UserError, match=r"hf://timm/resnest50d.in1k \(.*refused.*give its path"):
        resolve_weights("hf://timm/resnest50d.in1k")


def _only_local(*arguments, **named):
    assert named.get("local_files_only"), "the client's own retries take half a minute"
    return huggingface_hub.hf_hub_download(*arguments, **named)


def test_cache_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("RESNEST_DET_CACHE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert downloads.cache_folder() == tmp_path / "torch" / "hub" / "checkpoints"
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path / "own"))
    assert downloads.cache_folder() == tmp_path / "own"


def test_local_paths(tmp_path):
    (tmp_path / "x.pth").touch()
    assert resolve_weights(tmp_path / "x.pth") == str(tmp_path / "x.pth")
    with pytest.raises(UserError, match="none.pth: no such file"):
        resolve_weights(str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="did you mean resnest://resnest50d?"):
        resolve_weights("resnest50d")


@pytest.mark.parametrize(
    "spec, reason",
    [
        ("resnest://resnest51", "not published; nearest: resnest50"),
        ("resnest://mask_rcnn_ResNeSt_50_FPN_1x", "nearest: mask_rcnn_ResNeSt_50_FPN_syncBN_1x"),
        ("hf://resnest50", "expected hf://owner/name"),
        ("gluon://resnest51", "weights gluon://resnest51: not published; nearest: resnest50"),
        ("gluon://deeplab_resnest50", "nearest: deeplab_resnest50_ade"),
        ("s3://bucket/x.pth", "unknown scheme s3://; supported: a path, https://"),
        ("https://", "not the address of a file"),
        ("https://example.org/../../x.pth", "not the address of a file"),
    ],
)
def test_addresses_that_cannot_be(spec, reason):
    with pytest.raises(UserError, match=reason):
        resolve_weights(spec)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written"):
        resolve_weights(f"{DEAD}/x.pth")


def test_detectron2_addresses(server, cache, monkeypatch):
    server.files["/ImageNetPretrained/MSRA/R-50.pkl"] = b"weights"
    monkeypatch.setattr(downloads, "_DETECTRON2_STORE", server.url + "/")
    path = resolve_weights("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    assert content_of(path) == b"weights" and path.endswith("ImageNetPretrained/MSRA/R-50.pkl")


def packed(content: bytes, name: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return archive.getvalue()


@pytest.fixture
def in_archive(server, monkeypatch):
    """A semantic model of the authors', which is published in an archive, with the sha1 of what is in it."""
    sha1 = hashlib.sha1(CONTENT, usedforsecurity=False).hexdigest()
    stem = f"deeplab_resnest50_ade-{sha1[:8]}"
    file = WeightFile(f"{stem}.pth", (f"{server.url}/{stem}.zip",), sha1, "sha1")
    monkeypatch.setitem(WEIGHT_FILES, "deeplab_resnest50_ade", file)
    for name in (f"{stem}.pth", f"{stem}.zip"):
        monkeypatch.setitem(downloads._PUBLISHED_FILES, name, file)
    return stem


def test_a_file_in_an_archive_is_unpacked_and_held_against_its_sha1(server, cache, in_archive):
    server.files[f"/{in_archive}.zip"] = packed(CONTENT, f"{in_archive}.pth")
    for spec in ("resnest://deeplab_resnest50_ade", f"{server.url}/{in_archive}.zip"):
        path = resolve_weights(spec)
        assert path == str(cache / f"{in_archive}.pth") and content_of(path) == CONTENT
    assert resolve_weights(path) == path
    assert {file.name for file in cache.iterdir()} == {f"{in_archive}.pth", f"{in_archive}.pth.lock"}
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "inside, message", [(CONTENT[:-1], "wrong file: sha1 "), (None, "not an archive with deeplab_resnest50_ade-")]
)
def test_what_is_not_the_published_file_in_an_archive_is_not_kept(server, cache, in_archive, inside, message):
    server.files[f"/{in_archive}.zip"] = b"<html>" if inside is None else packed(inside, f"{in_archive}.pth")
    with pytest.raises(UserError, match=f"{message}.*Fetch {in_archive}.pth, which is in that archive, by other means"):
        resolve_weights("resnest://deeplab_resnest50_ade")
    assert {file.suffix for file in cache.iterdir()} == {".lock"}


def test_the_archive_itself_is_no_checkpoint(tmp_path, in_archive):
    path = tmp_path / f"{in_archive}.zip"
    path.write_bytes(packed(CONTENT, f"{in_archive}.pth"))
    with pytest.raises(UserError, match=f"the file to give is in this archive: unpack {in_archive}.pth"):
        resolve_weights(path)
    path = tmp_path / f"{in_archive}.pth"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="their sha1 does not begin with"):
        resolve_weights(path)


def test_semantic_models_are_published_with_their_sha1():
    names = [name for name, file in WEIGHT_FILES.items() if file.algorithm == "sha1"]
    assert len(names) == 10 and all(len(WEIGHT_FILES[name].digits) == 40 for name in names)
    assert WEIGHT_FILES["deeplab_resnest50_ade"].mirrors == (
        "https://s3.us-west-1.wasabisys.com/encoding/models/deeplab_resnest50_ade-2225f09d.zip",
    )


def test_catalog_is_complete():
    assert len(VARIANTS) == 13 and len(ALIASES) == 16
    for name in VARIANTS:
        file = WEIGHT_FILES[name]
        assert re.fullmatch("[0-9a-f]{8}", file.digits) and file.filename.endswith(f"-{file.digits}.pth")
        assert len(file.mirrors) >= 2
    for name, file in WEIGHT_FILES.items():
        assert file.filename.startswith(name) or name in ("resnest14", "resnest26")
        ends = (
            "/" + file.filename,
            "/" + file.filename.replace(".pth", ".zip") if file.algorithm == "sha1" else "/" + file.filename,
        )
        assert all(url.startswith("hf://timm/") or url.endswith(ends) for url in file.mirrors)
    assert WEIGHT_FILES["resnest50"].mirrors[0] == (
        "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step1/resnest50-528c19ca.pth"
    )
    assert WEIGHT_FILES["resnest200_detectron"].mirrors == (
        "https://s3.us-west-1.wasabisys.com/resnest/detectron/resnest200_detectron-02644020.pth",
    )


@pytest.mark.parametrize("address", ["https://../x.pth", "https://./x.pth", "https://.../x.pth"])
def test_a_host_of_dots_is_no_folder_beside_the_cache(address):
    with pytest.raises(UserError) as error:
        resolve_weights(address)
    assert address in str(error.value) and "mirror" not in str(error.value)


def gluon_archive(content: bytes, name: str = "resnest50-x.params") -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, content)
    return archive.getvalue()


def test_gluons_archives_are_known_by_the_sha1_of_what_is_in_them(server, cache, monkeypatch):
    digits = hashlib.sha1(CONTENT).hexdigest()
    server.files |= {"/a.zip": gluon_archive(CONTENT[:-1]), "/b.zip": b"<html>moved</html>", "/c.zip": gluon_archive(CONTENT)}
    mirrors = tuple(f"{server.url}/{name}.zip" for name in "abc")
    monkeypatch.setitem(GLUON_FILES, "resnest50", WeightFile(f"resnest50-{digits[:8]}.zip", mirrors[:2], digits, SHA1_OF_PARAMS))
    with pytest.raises(
        UserError, match=rf"a.zip \(wrong file: sha1 of .params [0-9a-f]+, published {digits}; .*b.zip \(wrong file: sha1"
    ):
        resolve_weights("gluon://resnest50")
    monkeypatch.setitem(GLUON_FILES, "resnest50", WeightFile(f"resnest50-{digits[:8]}.zip", mirrors, digits, SHA1_OF_PARAMS))
    path = resolve_weights("gluon://resnest50d")
    assert content_of(path) == server.files["/c.zip"] and path == str(cache / f"resnest50-{digits[:8]}.zip")
    before = len(server.requests)
    assert resolve_weights("gluon://resnest50") == path and len(server.requests) == before
    Path(path).write_bytes(gluon_archive(CONTENT[1:]))
    with pytest.raises(UserError, match="refused: their sha1 of .params begins with"):
        resolve_weights("gluon://resnest50")


def test_gluons_files_that_are_here_already(tmp_path):
    digits = hashlib.sha1(CONTENT).hexdigest()[:8]
    (tmp_path / f"mine-{digits}.params").write_bytes(CONTENT)
    (tmp_path / f"mine-{digits}.zip").write_bytes(gluon_archive(CONTENT))
    for suffix in ("params", "zip"):
        path = tmp_path / f"mine-{digits}.{suffix}"
        assert resolve_weights(path) == str(path)
        path.rename(tmp_path / f"mine-abcdef12.{suffix}")
        with pytest.raises(UserError, match="their sha1 of .params does not begin with the abcdef12 of the name"):
            resolve_weights(tmp_path / f"mine-abcdef12.{suffix}")


def test_gluons_catalog():
    assert len(GLUON_FILES) == 20 and set(VARIANTS) < set(GLUON_FILES)
    for name, file in GLUON_FILES.items():
        assert re.fullmatch("[0-9a-f]{40}", file.digits) and file.filename == f"{name}-{file.digits[:8]}.zip"
        assert all(url.endswith("/" + file.filename) for url in file.mirrors) and len(file.mirrors) in (1, 2)
    assert GLUON_FILES["resnest50"].mirrors == (
        "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/models/resnest50-bcfefe1d.zip",
        "https://github.com/zhanghang1989/ResNeSt/releases/download/weights_step2/resnest50-bcfefe1d.zip",
    )
