"""The page of `resnest-det demo` through its programming interface."""

import gc
import json
import socket
import warnings
from pathlib import Path


def collect_leftovers() -> None:
    """Gradio does not close all of its sockets and event loops. Where they are found is no error of another test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def look(client, path: str, threshold: float = 0.0, classes=()) -> tuple:
    """(picture, sentence, rows, content of the JSON) of a picture."""
    from gradio_client import handle_file

    return opened(client.predict(handle_file(path), threshold, list(classes), api_name="/look"))


def opened(answer) -> tuple:
    picture, sentence, table, download = answer
    path = download.get("value") if isinstance(download, dict) else download
    return picture, sentence, table["data"], json.loads(Path(path).read_text()) if path else None
