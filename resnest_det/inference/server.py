"""A trained detector over HTTP: `POST /predict`, `/health` and `/metrics`. By FastAPI and uvicorn, which are an extra."""

import asyncio
import base64
import io
import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnest_det.data.image import upright_size
from resnest_det.errors import UserError, out_of_memory, printable
from resnest_det.inference.batching import Batcher
from resnest_det.inference.predictor import Predictor
from resnest_det.inference.results import Result

try:
    import python_multipart
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect
except ImportError as error:
    raise UserError(f'serving needs {error.name}: pip install "resnest_det[serve]"') from None

logger = logging.getLogger(__name__)

_THREADS = 4  # that decode images and write answers
_AROUND_A_FILE = 1 << 16  # bytes of a form around its file
_MOST_HELD = 1 << 29  # bytes of uploads that are in memory together
_READING_ON = 1.0  # seconds
_SMALL = 1 << 16  # bytes of an image whose header is looked at at once: to ask a thread takes longer
_HUNG_UP = 499  # nobody reads it but `/metrics`
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # of the histogram


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        upload: bytes of an image's file.
        pixels: of an image.
        seconds: until its answer.
        waiting: requests that are answered at the same time; one more is refused.
    """

    upload: int = 20_000_000
    pixels: int = 64_000_000
    seconds: float = 30
    waiting: int = 256


@dataclass
class _Counts:
    """What `/metrics` tells of requests."""

    statuses: Counter = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=lambda: [0] * len(_SECONDS))
    seconds: float = 0.0
    open: int = 0
    held: int = 0  # bytes of uploads

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds += seconds
        for index, limit in enumerate(_SECONDS):
            self.buckets[index] += seconds <= limit

    def text(self, batcher: Batcher) -> str:
        """In Prometheus' text format."""
        answered = sum(self.statuses.values())
        lines = ["# TYPE resnest_det_requests_total counter"]
        lines += [f'resnest_det_requests_total{{status="{key}"}} {count}' for key, count in sorted(self.statuses.items())]
        lines += ["# TYPE resnest_det_request_seconds histogram"]
        buckets = zip((*_SECONDS, "+Inf"), (*self.buckets, answered))
        lines += [f'resnest_det_request_seconds_bucket{{le="{most}"}} {count}' for most, count in buckets]
        lines += [f"resnest_det_request_seconds_sum {self.seconds:.6f}", f"resnest_det_request_seconds_count {answered}"]
        for name, kind, value in (
            ("requests_open", "gauge", self.open),
            ("images_waiting", "gauge", len(batcher)),
            ("images_total", "counter", batcher.images),
            ("batches_total", "counter", batcher.batches),
            ("model_seconds_total", "counter", f"{batcher.seconds:.6f}"),
        ):
            lines += [f"# TYPE resnest_det_{name} {kind}", f"resnest_det_{name} {value}"]
        return "\n".join(lines) + "\n"


class _Pools(NamedTuple):
    headers: ThreadPoolExecutor  # that look at the first bytes of images
    images: ThreadPoolExecutor  # that decode images, and write answers


def make_app(predictor: Predictor, limits: Limits = Limits(), batch: int = 8, window: float = 0.005) -> FastAPI:
    """The server's application, for uvicorn or any other server that takes ASGI.

    Args:
        batch, window: see `Batcher`.
    """
    batcher, counts = Batcher(predictor, batch, window), _Counts()
    # What is no image at all is told without waiting until others are decoded.
    pools = _Pools(ThreadPoolExecutor(2, "headers"), ThreadPoolExecutor(_THREADS, "images"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)
        for pool in pools:
            pool.shutdown()

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a line for each form that cannot be read
    # The pages of `docs_url` load their scripts from the web.
    app = FastAPI(title="resnest_det", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> dict:
        if not batcher.works:
            raise HTTPException(503, "the model has stopped")
        classes = [*predictor.classes.things.names, *predictor.classes.stuff.names]
        return {"status": "ok", "model": os.path.basename(predictor.backend.source), "classes": classes}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(counts.text(batcher), media_type="text/plain; version=0.0.4")

    @app.post("/predict", openapi_extra=_REQUEST_BODY)
    async def predict(request: Request) -> Response:
        start, status = time.perf_counter(), 500
        upload = _Upload(request, limits, counts)
        counts.open += 1
        try:
            if counts.open > limits.waiting:
                raise HTTPException(503, f"{limits.waiting} requests are being answered: try again", {"Retry-After": "1"})
            response = await _answer(upload, batcher, pools)
            status = response.status_code
            return response
        except HTTPException as error:
            status = error.status_code
            raise
        except Exception as error:
            logger.exception("a request")
            raise HTTPException(500, _line(error)) from None
        finally:
            counts.open -= 1
            counts.held -= upload.held
            counts.add(status, time.perf_counter() - start)

    return app


_BINARY = {"type": "string", "format": "binary"}
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}},
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}


class _Upload:
    """The image of a request, in the field `file` of a form or as its body."""

    def __init__(self, request: Request, limits: Limits, counts: _Counts):
        self.request, self.limits, self._counts = request, limits, counts
        self.held = 0  # bytes

    async def read(self) -> tuple[bytes, str]:
        """Its content and its name.

        Raises:
            HTTPException: there is none, or it is too large.
        """
        is_form = self.request.headers.get("content-type", "").lower().startswith("multipart/")
        most = self.limits.upload + (_AROUND_A_FILE if is_form else 0)
        declared = self.request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            if "expect" in self.request.headers:  # nothing was sent yet
                raise self._too_large()
            most = 0
        if is_form and most:
            content, name = await self._from_form(most)
        else:
            content, name = b"".join([part async for part in self._parts(most)]), "upload"
        if not content:
            raise HTTPException(400, "there is no image in the request: send it as the body, or as the field `file` of a form")
        if len(content) > self.limits.upload:
            raise self._too_large()
        return content, name

    async def _from_form(self, most: int) -> tuple[bytes, str]:
        try:
            form = await MultiPartParser(self.request.headers, self._parts(most), max_files=1, max_fields=16).parse()
        except (MultiPartException, python_multipart.exceptions.FormParserError, KeyError, ValueError) as error:
            raise HTTPException(400, f"the form cannot be read: {_line(getattr(error, 'message', error))}") from None
        try:
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise HTTPException(400, "the form has no file in its field `file`")
            return await file.read(), printable(os.path.basename(file.filename or "upload"))[-200:]
        finally:
            await form.close()

    async def _parts(self, most: int) -> AsyncIterator[bytes]:
        """What arrives. Of what is too large the rest is read and dropped for a while: who still sends sees no answer."""
        own, end = 0, time.monotonic() + self.limits.seconds
        async for part in self.request.stream():
            if own <= most < own + len(part):
                end = time.monotonic() + _READING_ON
            own += len(part)
            if own > most:
                if own > 5 * self.limits.upload or time.monotonic() > end:
                    break
                continue
            self.held += len(part)
            self._counts.held += len(part)
            if self._counts.held > _MOST_HELD:
                raise HTTPException(503, "too many uploads at a time: try again", {"Retry-After": "1"})
            yield part
        if own > most:
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the image's file is larger than {self.limits.upload} bytes")


async def _answer(upload: _Upload, batcher: Batcher, pools: _Pools) -> Response:
    """What was found, as JSON.

    Raises:
        HTTPException: it cannot be used, or takes too long.
    """
    limits, start = upload.limits, time.monotonic()
    try:
        content, name = await asyncio.wait_for(upload.read(), limits.seconds)
    except asyncio.TimeoutError:  # noqa: UP041 - before Python 3.11 it is another class
        raise HTTPException(408, f"the image did not arrive within {limits.seconds:g} s") from None
    except ClientDisconnect:
        return Response(status_code=_HUNG_UP)
    work = asyncio.create_task(_found(content, name, limits, batcher, pools))
    gone = asyncio.create_task(_hung_up(upload.request))
    try:
        left = max(limits.seconds - (time.monotonic() - start), 0)
        await asyncio.wait({work, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return Response(work.result(), media_type="application/json")
        if gone.done():
            return Response(status_code=_HUNG_UP)
        raise HTTPException(503, f"no answer within {limits.seconds:g} s: try again", {"Retry-After": "1"})
    finally:
        # A model's batch that has begun goes on; what waits is not looked at.
        work.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _found(content: bytes, name: str, limits: Limits, batcher: Batcher, pools: _Pools) -> bytes:
    loop = asyncio.get_running_loop()
    try:
        if len(content) <= _SMALL:
            _check_pixels(content, name, limits)
        else:
            await loop.run_in_executor(pools.headers, _check_pixels, content, name, limits)
        picture, sample = await loop.run_in_executor(pools.images, batcher.prepared, content, name)
        result = await asyncio.wrap_future(batcher.submit(picture, sample))
        return await loop.run_in_executor(pools.images, _json, result)
    except UserError as error:
        raise HTTPException(400, _line(error)) from None
    except Exception as error:
        told = out_of_memory(error)
        if told is None:
            raise
        raise HTTPException(503, _line(told)) from None


def _check_pixels(content: bytes, name: str, limits: Limits) -> None:
    height, width = upright_size(name, content)
    if height * width > limits.pixels:
        raise HTTPException(413, f"image {name} is {width} x {height} pixels; at most {limits.pixels} are taken")


def _json(result: Result) -> bytes:
    found = result.to_json()
    if result.segment_map is not None:
        found["panoptic_png"] = base64.b64encode(result.panoptic_png()).decode()
    elif result.label_map is not None:
        buffer = io.BytesIO()
        kind = np.uint8 if len(result.classes.stuff.names) <= 256 else np.uint16
        Image.fromarray(result.label_map.numpy().astype(kind)).save(buffer, "PNG")
        found["label_png"] = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps(found).encode()


def _line(message: object) -> str:
    return printable(" ".join(str(message).split()))[:500]


def listen(host: str, port: int) -> socket.socket:
    """A socket for a server; port 0 is any that is free.

    Raises:
        UserError: it cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)  # its text has the address once more
        reason = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or error
        raise UserError(f"{host} port {port} cannot be listened at ({reason}): give another --host or --port") from None


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """A server whose `run(sockets=[...])` answers until SIGINT or SIGTERM comes, then what was asked before, and no more."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            lifespan="on",
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(limits.seconds) + 1,
        )
    )
