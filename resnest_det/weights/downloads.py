"""Finding weights: paths, published names, web addresses and the Hugging Face hub; downloads stay in a cache folder.

Downloads resume where they stopped, are checked against the published digest, and try the next mirror if one fails.
"""

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import ssl
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

from resnest_det.errors import UserError, nearest, shown
from resnest_det.files import open_unlinked
from resnest_det.weights import mxnet_files
from resnest_det.weights.published import ALIASES, GLUON_FILES, SHA1_OF_PARAMS, WEIGHT_FILES, WeightFile, digits_in
from resnest_det.weights.transfer import Incomplete, Unavailable, download, forget, move_part, open_web, size_of

_DETECTRON2_STORE = "https://dl.fbaipublicfiles.com/detectron2/"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Under the names in their addresses too, where those are of archives.
_PUBLISHED_FILES = {
    name: file
    for file in (*WEIGHT_FILES.values(), *GLUON_FILES.values())
    for name in (file.filename, *(each.rsplit("/", 1)[-1] for each in file.mirrors if each.endswith(".zip")))
}
_TIMEOUT = 30  # seconds without a byte
_ATTEMPTS = 4  # on one mirror, as long as each makes progress
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """RESNEST_DET_CACHE, or the folder of `torch.hub` (under TORCH_HOME), where the authors' package keeps its files too."""
    own = os.environ.get("RESNEST_DET_CACHE")
    return Path(own).expanduser() if own else Path(torch.hub.get_dir()) / "checkpoints"


def resolve_weights(spec: str | os.PathLike) -> str:
    """The local path of weights, which are downloaded if necessary.

    Args:
        spec: a path; `https://...` (a name that ends in `-HASH.pth` is checked against that sha256); `resnest://NAME` with a
            model's or a published detector's name (`resnest://resnest50`); `gluon://NAME` with one of GluonCV's (`gluon://resnest50`,
            `gluon://deeplab_resnest50_ade`); `hf://owner/name` on the Hugging Face hub
            (`hf://timm/resnest50d.in1k`, a file in it and a revision may follow: `hf://owner/name@revision/file`);
            `detectron2://PATH` in Detectron2's model zoo.

    Raises:
        UserError: unknown name, nothing at the path, a wrong hash, or no mirror answers; then the message lists the
            addresses, the file's name and the folder to put it into.
    """
    if not spec or not isinstance(spec, (str, os.PathLike)):
        raise UserError(f"weights {shown(spec)}: expected a path or an address such as resnest://resnest50")
    spec = os.fspath(spec)
    scheme, separator, rest = spec.partition("://")
    if not separator:
        try:
            path = Path(spec).expanduser()
            exists = path.exists()
        except (OSError, ValueError, RuntimeError):  # a name too long, with a NUL, in the home of nobody
            exists = False
        if not exists:
            hint = f"; did you mean resnest://{spec}?" if spec in WEIGHT_FILES or spec in ALIASES else ""
            raise UserError(f"weights {spec}: no such file{hint}")
        _check_named_hash(path)
        return str(path)
    if scheme == "resnest":
        return fetch(_published(rest, scheme, WEIGHT_FILES))
    if scheme == "gluon":
        return fetch(_published(rest, scheme, GLUON_FILES))
    if scheme == "hf":
        return fetch(WeightFile("", (spec,), ""))
    if scheme == "detectron2":
        return fetch(_web_file(_DETECTRON2_STORE + rest))
    if scheme in ("https", "http"):
        return fetch(_web_file(spec))
    raise UserError(
        f"weights {spec}: unknown scheme {scheme}://; supported: a path, https://, resnest://, gluon://, hf://, detectron2://"
    )


def _published(name: str, scheme: str, files: dict[str, WeightFile]) -> WeightFile:
    name = ALIASES.get(name, name)
    if name not in files:
        near = nearest(name, [*files, *ALIASES])
        raise UserError(f"weights {scheme}://{name}: not published" + (f"; nearest: {', '.join(near)}" if near else ""))
    return files[name]


def _web_file(url: str) -> WeightFile:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
        # As it is sent: without a fragment, in ASCII, and one spelling for each address.
        host = (parts.hostname or "").encode("idna").decode()
        path, query = (urllib.parse.quote(part, safe="/%:@!$&'()*+,;=~?") for part in (parts.path, parts.query))
        name = urllib.parse.unquote(path, errors="strict").strip("/")
    except ValueError:
        raise UserError(f"weights {url}: not the address of a file") from None
    # Both become folders of the cache.
    written = re.fullmatch("[a-z0-9._:-]+", host) and host.strip(".") and name
    if not written or not name.isprintable() or ".." in name.split("/") or re.search(r"[\s\\]", url):
        raise UserError(f"weights {url}: not the address of a file")
    if "@" in parts.netloc:
        raise UserError(f"weights {url}: an address with a user or a password is not supported; fetch the file and give its path")
    default_port = {"http": 80, "https": 443}[parts.scheme]
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port not in (None, default_port) else "")
    url = urllib.parse.urlunsplit((parts.scheme, netloc, path, query, ""))
    filename = name.rsplit("/", 1)[-1]
    published = _PUBLISHED_FILES.get(filename)
    if published is not None and (published.digits or url in published.mirrors):
        # What is known of the file holds for a link to it too: other mirrors, should this one be dead.
        return replace(published, mirrors=tuple(dict.fromkeys((url, *published.mirrors))))
    digits = digits_in(filename)
    if not digits:
        # Model zoos call every file model_final.pth: the whole address keeps them apart, scheme, port and query included.
        filename = f"{host}-{hashlib.sha256(url.encode()).hexdigest()[:16]}/{name}"
    return WeightFile(filename, (url,), digits, _algorithm_of(filename))


def fetch(file: WeightFile) -> str:
    """The local path of a published file, from the cache or from the first mirror that has it.

    Raises:
        UserError: see `resolve_weights`.
    """
    folder = cache_folder()
    failures = []
    target = folder / file.filename
    try:
        if file.filename:
            target.parent.mkdir(parents=True, exist_ok=True)
            _check_inside(folder, target.parent)
            if target.is_file():
                _check_hash(target, file.digits, file.algorithm)
                return str(target)
        for mirror in file.mirrors:
            try:
                if mirror.startswith("hf://"):
                    return _from_hub(mirror)
                with _only_process(target):
                    if not target.is_file():  # another process may have brought it meanwhile
                        _from_web(mirror, target, file)
                return str(target)
            except Unavailable as error:
                failures.append(f"{mirror} ({error})")
    except OSError as error:
        raise UserError(f"weights {target}: cannot be written: {error.strerror or error}") from None
    name = file.filename or "the file"
    if any(mirror.endswith(".zip") for mirror in file.mirrors):
        name += ", which is in that archive,"
    raise UserError(
        f"weights {name} cannot be downloaded: {'; '.join(failures)}. Fetch {name} by other means"
        + (f" and put it into {target.parent}" if file.filename else " and give its path")
    )


def _check_inside(folder: Path, inner: Path) -> None:
    # A cache may be shared: a link in it must not lead what is written elsewhere. The cache itself may be a link.
    if inner.resolve() != folder.resolve() / inner.relative_to(folder):
        raise UserError(f"weights {inner}: a folder of the cache is a link to another place; remove the link")


@contextmanager
def _only_process(target: Path) -> Iterator[None]:
    """Hold the lock of a file in the cache; processes that want the same file wait."""
    with open_unlinked(target.with_name(target.name + ".lock"), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_hash(path: Path, digits: str, algorithm: str = "sha256") -> None:
    digest = _digest(path, algorithm) if digits else ""
    if not digest.startswith(digits):
        raise UserError(
            f"weights {path} refused: their {algorithm} begins with {digest[: len(digits)]}, published is {digits}; "
            "the file is damaged or another one: delete it to have it downloaded again"
        )


def _check_named_hash(path: Path) -> None:
    """Hold a local file against the digest in its name: a published one's, or one that cannot be a date."""
    published = _PUBLISHED_FILES.get(path.name)
    if published and published.filename != path.name:
        raise UserError(f"weights {path}: the file to give is in this archive: unpack {published.filename}")
    digits = published.digits if published else digits_in(path.name)
    algorithm = published.algorithm if published else _algorithm_of(path.name)
    if path.is_file() and digits and (published or not digits.isdecimal()) and not _digest(path, algorithm).startswith(digits):
        raise UserError(
            f"weights {path} refused: their {algorithm} does not begin with the {digits} of the name: it is damaged, or its name "
            "is that of another: rename a file that was changed on purpose"
        )


def _algorithm_of(filename: str) -> str:
    """Of the digest that a name ends in: Gluon has its own."""
    return SHA1_OF_PARAMS if filename.endswith((".params", ".zip")) else "sha256"


def _digest(path: Path, algorithm: str) -> str:
    if algorithm == SHA1_OF_PARAMS:
        return mxnet_files.sha1_of(path)
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "sha1")
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _from_web(url: str, target: Path, file: WeightFile) -> None:
    """Download to `target`; what a broken connection leaves is kept beside it and completed by the next attempt."""
    part = _part(target)
    _adopt_earlier(url, target)
    for attempt in range(_ATTEMPTS):
        before = size_of(part)
        try:
            download(url, part, _TIMEOUT)
            break
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
            ssl.SSLError,
            Incomplete,
        ) as error:
            if size_of(part) <= before or attempt == _ATTEMPTS - 1:
                raise Unavailable(_reason(error)) from None
    whole = _unpack(part, target.name) if url.endswith(".zip") and not file.filename.endswith(".zip") else part
    digest = _digest(whole, file.algorithm)
    if not digest.startswith(file.digits):
        forget(part)
        whole.unlink(missing_ok=True)
        raise Unavailable(f"wrong file: {file.algorithm} {digest[: len(file.digits)]}, published {file.digits}; not kept")
    os.replace(whole, target)
    forget(part)


def _unpack(archive: Path, name: str) -> Path:
    """The file of this name in a zip archive, beside the archive."""
    unpacked = archive.with_name(f"{archive.name}.unpacked")
    try:
        with zipfile.ZipFile(archive) as content, content.open(name) as source, open_unlinked(unpacked, "wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        forget(archive)
        unpacked.unlink(missing_ok=True)
        raise Unavailable(f"wrong file: not an archive with {name} in it ({_reason(error)}); not kept") from None
    return unpacked


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        text = f"HTTP {error.code} {error.reason}"
    else:
        text = str(getattr(error, "reason", error)) or type(error).__name__
    return " ".join(text.split())[:200]


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _adopt_earlier(url: str, target: Path) -> None:
    """Go on with what an earlier version began, which called its folder after the host alone; the server says if it fits."""
    folder = cache_folder()
    host, *path = target.relative_to(folder).parts
    if path and not size_of(_part(target)):
        move_part(_part(folder.joinpath(urllib.parse.urlsplit(url).hostname, *path)), _part(target))


def _from_hub(spec: str) -> str:
    """A file on the Hugging Face hub, by its own client: resumable, and under HF_HOME unless RESNEST_DET_CACHE is set."""
    named = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([^\\\x00-\x1f\x7f]+))?", spec)
    if not named or any(part.strip(".") == "" for part in re.split("[/@]", spec.removeprefix("hf://"))):
        raise UserError(f"weights {spec}: expected hf://owner/name, hf://owner/name@revision or hf://owner/name/file")
    repository, revision, filename = named.groups()
    own = os.environ.get("RESNEST_DET_CACHE")
    cache = str(cache_folder() / "huggingface") if own else None
    candidates = [filename] if filename else _HUB_FILES
    for candidate in candidates:
        try:
            path = hf_hub_download(repository, candidate, revision=revision, cache_dir=cache, local_files_only=True)
        except LocalEntryNotFoundError:
            continue
        except ValueError as error:  # the client's own check of the names
            raise UserError(f"weights {spec}: {_reason(error)}") from None
        return _checked_hub_file(path)
    _check_hub_answers()
    for candidate in candidates:
        try:
            path = hf_hub_download(repository, candidate, revision=revision, cache_dir=cache)
        except LocalEntryNotFoundError as error:  # the connection was lost, and it is not in the cache
            raise Unavailable(_reason(error.__cause__ or error)) from None
        except EntryNotFoundError:
            continue
        except Exception as error:  # the client's transport library, and with it the errors, differs between its versions
            raise Unavailable(_reason(error)[:200]) from None
        return _checked_hub_file(path)
    raise Unavailable(f"the repository has no {' or '.join(candidates)}")


def _check_hub_answers() -> None:
    # For each file the client retries for half a minute; without a network, failure is certain at once.
    try:
        open_web(urllib.request.Request(constants.ENDPOINT, method="HEAD"), _TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(_reason(error)) from None


def _checked_hub_file(path: str) -> str:
    # The hub's cache names a large file by its sha256.
    blob = Path(path).resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        _check_hash(blob, blob.name)
    return path
