"""Finding weights: paths, published names, web addresses and the Hugging Face hub; downloads stay in a cache folder.

Downloads resume where they stopped, are checked against the published sha256, and try the next mirror if one fails.
"""

import hashlib
import http.client
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from iopath.common.file_io import file_lock
from tqdm import tqdm

from resnest_det.distributed import is_main_process
from resnest_det.errors import UserError, nearest
from resnest_det.weights.published import ALIASES, WEIGHT_FILES, WeightFile, sha256_prefix_in

_DETECTRON2_STORE = "https://dl.fbaipublicfiles.com/detectron2/"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_PUBLISHED_FILES = {file.filename: file for file in WEIGHT_FILES.values()}
_TIMEOUT = 30  # seconds without a byte
_ATTEMPTS = 4  # on one mirror, as long as each makes progress
_CHUNK = 1 << 20


class _Unavailable(Exception):
    """A mirror did not give the file; the message says why."""


def cache_folder() -> Path:
    """RESNEST_DET_CACHE, or the folder of `torch.hub` (under TORCH_HOME), where the authors' package keeps its files too."""
    own = os.environ.get("RESNEST_DET_CACHE")
    return Path(own).expanduser() if own else Path(torch.hub.get_dir()) / "checkpoints"


def resolve_weights(spec: str | os.PathLike) -> str:
    """The local path of weights, which are downloaded if necessary.

    Args:
        spec: a path; `https://...` (a name that ends in `-HASH.pth` is checked against that sha256); `resnest://NAME` with a
            model's or a published detector's name (`resnest://resnest50`); `hf://owner/name` on the Hugging Face hub
            (`hf://timm/resnest50d.in1k`, a file in it and a revision may follow: `hf://owner/name@revision/file`);
            `detectron2://PATH` in Detectron2's model zoo.

    Raises:
        UserError: unknown name, nothing at the path, a wrong hash, or no mirror answers; then the message lists the
            addresses, the file's name and the folder to put it into.
    """
    spec = os.fspath(spec)
    scheme, separator, rest = spec.partition("://")
    if not separator:
        path = Path(spec).expanduser()
        if not path.exists():
            hint = f"; did you mean resnest://{spec}?" if spec in WEIGHT_FILES or spec in ALIASES else ""
            raise UserError(f"weights {spec}: no such file{hint}")
        return str(path)
    if scheme == "resnest":
        return fetch(_published(rest))
    if scheme == "hf":
        return fetch(WeightFile("", (spec,), ""))
    if scheme == "detectron2":
        return fetch(_web_file(_DETECTRON2_STORE + rest))
    if scheme in ("https", "http"):
        return fetch(_web_file(spec))
    raise UserError(f"weights {spec}: unknown scheme {scheme}://; supported: a path, https://, resnest://, hf://, detectron2://")


def _published(name: str) -> WeightFile:
    name = ALIASES.get(name, name)
    if name not in WEIGHT_FILES:
        near = nearest(name, [*WEIGHT_FILES, *ALIASES])
        raise UserError(f"weights resnest://{name}: not published" + (f"; nearest: {', '.join(near)}" if near else ""))
    return WEIGHT_FILES[name]


def _web_file(url: str) -> WeightFile:
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path).strip("/")
    # Both become folders of the cache.
    if not parts.hostname or not parts.hostname.strip(".") or not path or ".." in path.split("/"):
        raise UserError(f"weights {url}: not the address of a file")
    published = _PUBLISHED_FILES.get(path.rsplit("/", 1)[-1])
    if published is not None:
        # A link to a known file profits from what is known of it: other mirrors, if this one is dead.
        return replace(published, mirrors=tuple(dict.fromkeys((url, *published.mirrors))))
    # Model zoos call every file model_final.pth; unless the name has a hash, the whole address tells them apart.
    digits = sha256_prefix_in(path)
    filename = path.rsplit("/", 1)[-1] if digits else f"{parts.hostname}/{path}"
    return WeightFile(filename, (url,), digits)


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
            if target.is_file():
                _check_hash(target, file.sha256_prefix)
                return str(target)
        for mirror in file.mirrors:
            try:
                if mirror.startswith("hf://"):
                    return _from_hub(mirror)
                with file_lock(str(target)):
                    if not target.is_file():  # another process may have fetched it meanwhile
                        _from_web(mirror, target, file.sha256_prefix)
                return str(target)
            except _Unavailable as error:
                failures.append(f"{mirror} ({error})")
    except OSError as error:
        raise UserError(f"weights {target}: cannot be written: {error.strerror or error}") from None
    name = file.filename or "the file"
    raise UserError(
        f"weights {name} cannot be downloaded: {'; '.join(failures)}. Fetch {name} by other means"
        + (f" and put it into {target.parent}" if file.filename else " and give its path")
    )


def _check_hash(path: Path, prefix: str) -> None:
    digest = _sha256(path) if prefix else ""
    if not digest.startswith(prefix):
        raise UserError(
            f"weights {path} refused: their sha256 begins with {digest[: len(prefix)]}, published is {prefix}; "
            "the file is damaged or another one: delete it to have it downloaded again"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _from_web(url: str, target: Path, sha256_prefix: str) -> None:
    """Download to `target`; an incomplete file is kept beside it, and the next attempt completes it."""
    part = target.with_name(target.name + ".part")
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.is_file() else 0
        try:
            _download(url, part)
            break
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
            ssl.SSLError,
            _Incomplete,
        ) as error:
            further = part.is_file() and part.stat().st_size > before
            if not further or attempt == _ATTEMPTS - 1:
                raise _Unavailable(_reason(error)) from None
    digest = _sha256(part)
    if not digest.startswith(sha256_prefix):
        _forget(part)
        raise _Unavailable(f"wrong file: sha256 {digest[: len(sha256_prefix)]}, published {sha256_prefix}; not kept")
    os.replace(part, target)
    _forget(part)


class _Incomplete(Exception):
    """The connection ended before the last byte."""


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _forget(part: Path) -> None:
    for path in (part, _validator(part)):
        path.unlink(missing_ok=True)


def _download(url: str, part: Path) -> None:
    """Complete the file `part`. With `If-Range`, a server whose file has changed sends it from the start."""
    start = part.stat().st_size if part.is_file() and _validator(part).is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "resnest_det"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", _validator(part).read_text())
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send: the file is either complete or another one
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if total and int(total.group(1)) == start:
                return
            _forget(part)
        raise
    with response:
        start = start if response.status == 206 else 0
        etag = response.headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        if not start:
            _validator(part).unlink(missing_ok=True)
        if validator:
            _validator(part).write_text(validator)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _receive(response, part, start, total)


def _receive(response, part: Path, start: int, total: int | None) -> None:
    with (
        part.open("ab" if start else "wb") as out,
        tqdm(
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=part.name.removesuffix(".part"),
            disable=None if is_main_process() else True,
        ) as bar,
    ):
        while block := response.read(_CHUNK):
            out.write(block)
            bar.update(len(block))
        if total is not None and out.tell() < total:
            raise _Incomplete(f"connection lost after {out.tell()} of {total} bytes")


def _from_hub(spec: str) -> str:
    """A file on the Hugging Face hub, by the hub's client: resumable, kept in HF_HOME unless RESNEST_DET_CACHE is set."""
    named = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", spec)
    if not named:
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
        return _checked_hub_file(path)
    _check_hub_answers()
    for candidate in candidates:
        try:
            path = hf_hub_download(repository, candidate, revision=revision, cache_dir=cache)
        except LocalEntryNotFoundError as error:  # no connection, and not in the cache
            raise _Unavailable(_reason(error.__cause__ or error)) from None
        except EntryNotFoundError:
            continue
        except Exception as error:  # versions of the client differ in their transport library, and so in its errors
            raise _Unavailable(_reason(error)[:200]) from None
        return _checked_hub_file(path)
    raise _Unavailable(f"the repository has no {' or '.join(candidates)}")


def _check_hub_answers() -> None:
    # For each file the client retries for half a minute; without a network, failure is certain at once.
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except (OSError, http.client.HTTPException) as error:
        raise _Unavailable(_reason(error)) from None


def _checked_hub_file(path: str) -> str:
    # The hub's cache names a large file by its sha256.
    blob = Path(path).resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        _check_hash(blob, blob.name)
    return path
