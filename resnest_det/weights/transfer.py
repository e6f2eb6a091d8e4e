"""One file over HTTP into a folder: where a connection broke, the next attempt goes on, and an answer is believed only as far as
it agrees with what was asked and announced.
"""

import os
import re
import stat
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from resnest_det.distributed import is_main_process
from resnest_det.files import open_unlinked

_CHUNK = 1 << 20
_LARGEST_FILE = 16 << 30  # bytes: more are not asked for; a training checkpoint of the largest variant has less than 2 GiB
_LARGEST_UNANNOUNCED = 512 << 20  # bytes of a file whose length the server does not say, which may never end


class Unavailable(Exception):
    """One mirror did not give the file; the message says why."""


class Incomplete(Exception):
    """The connection ended before the last byte."""


def size_of(path: Path) -> int:
    """Bytes of a file that is nothing else: 0 for a link, and for a file that has another name too."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0


def forget(part: Path) -> None:
    """Remove what was received so far."""
    for path in (part, _notes(part)):
        path.unlink(missing_ok=True)


def move_part(part: Path, to: Path) -> None:
    """Give what was received so far another name, if the server can be asked whether it is still that file."""
    if size_of(part) and _read_notes(part)[0]:
        os.replace(part, to)
        os.replace(_notes(part), _notes(to))


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _read_notes(part: Path) -> tuple[str, int | None]:
    """(ETag or date of the file that was begun, "" if none can be sent; its length, None if it was not announced)."""
    if not 0 < size_of(_notes(part)) < 1000:
        return "", None
    validator, _, total = _notes(part).read_text("ascii", errors="replace").partition("\n")
    return _sendable(validator), int(total) if re.fullmatch("[0-9]{1,18}", total) else None


def _write_notes(part: Path, headers, total: int | None) -> None:
    etag = headers.get("ETag", "")
    validator = _sendable(etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", ""))
    if validator:
        with open_unlinked(_notes(part), "w") as file:
            file.write(validator if total is None else f"{validator}\n{total}")


def _sendable(validator: str) -> str:
    return validator if validator.isascii() and validator.isprintable() else ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes from web address to web address only, and never from an encrypted to an open one."""

    def redirect_request(self, request, answer, code, message, headers, url):
        answer.close()  # or its body, which may be endless, would be read whole
        scheme = urllib.parse.urlsplit(url).scheme
        if scheme not in ("http", "https") or (request.type == "https" and scheme == "http"):
            raise urllib.error.URLError(f"redirects from {request.type} to {scheme}, which is not followed")
        return super().redirect_request(request, answer, code, message, headers, url)


def open_web(request: urllib.request.Request, timeout: float):
    """`urlopen`, with the redirects of `_Redirects` only."""
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except ValueError as error:  # of the functions that take an address apart
        raise urllib.error.URLError(f"redirects to what is no address: {error}") from None


def download(url: str, part: Path, timeout: float) -> None:
    """Bring `part` to the full length. `If-Range` makes a server that has another file by now send it from the start.

    Raises:
        Unavailable: the answer cannot be of this file; Incomplete: `part` is kept, and can be completed.
        URLError, HTTPException, TimeoutError, ConnectionError, SSLError: as `urlopen` has them; `part` is kept.
    """
    validator, total = _read_notes(part)
    start = size_of(part) if validator else 0
    request = urllib.request.Request(url, headers={"User-Agent": "resnest_det"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator)
    try:
        response = open_web(request, timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send: either the file is whole, or it is not this one
            whole = re.fullmatch(r"bytes \*/([0-9]{1,18})", error.headers.get("Content-Range", ""))
            if whole and int(whole[1]) == start:
                return
            forget(part)
        raise
    with response:
        if response.status == 206:
            try:
                total = _length_of_rest(response, start, total)
            except Unavailable:
                forget(part)
                raise
        elif response.status == 200:
            start, total = 0, _content_length(response)
            forget(part)
            _write_notes(part, response.headers, total)
        else:
            raise Unavailable(f"HTTP {response.status} {response.reason}"[:200])
        _receive(response, part, start, total)


def _content_length(response) -> int | None:
    lengths = set(response.headers.get_all("Content-Length", []))
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length) for length in lengths):
        raise Unavailable(f"answers with a length of {' and '.join(sorted(lengths))[:80]!r} bytes")
    # In chunks the body has an end of its own.
    return int(lengths.pop()) if lengths and not response.headers.get("Transfer-Encoding") else None


def _length_of_rest(response, start: int, total: int | None) -> int:
    """Length of the whole file by an answer that says to be its bytes from `start` on; `total` is what was announced first."""
    length = _content_length(response)
    header = response.headers.get("Content-Range")
    if header is None:  # as some servers do; then the length has to agree
        end, whole = start + (length or 0), total
    else:
        given = re.fullmatch("bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", header)
        first, last, whole = map(int, given.groups()) if given else (-1, -1, 0)
        # The end may be before the file's: the next attempt asks for the rest.
        end = last + 1 if first == start and last < whole else 0
    agrees = length is None or start + length == end
    if not start or not whole or end <= start or not agrees or (header is None and end != whole) or total not in (None, whole):
        raise Unavailable(f"was asked for the file from byte {start} on and answers with {(header or 'no range')[:80]!r}")
    return whole


def _receive(response, part: Path, start: int, total: int | None) -> None:
    """Append the body to `part`, from `start` on, until `total` bytes are there, or to the end where that is None."""
    if total == 0:
        raise Unavailable("the file is empty (0 bytes)")
    if total is not None and total > _LARGEST_FILE:
        raise Unavailable(f"{total} bytes are more than the {_LARGEST_FILE} that are accepted")
    most = _LARGEST_UNANNOUNCED if total is None else total
    with (
        open_unlinked(part, "ab" if start else "wb") as out,
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
            if out.tell() + len(block) > most:
                forget(part)
                raise Unavailable(f"sends more than {most} bytes" + (" without saying how many" if total is None else ""))
            out.write(block)
            bar.update(len(block))
        if total is not None and out.tell() < total:
            raise Incomplete(f"connection lost after {out.tell()} of {total} bytes")
        if not out.tell():
            raise Unavailable("the file is empty (0 bytes)")
