"""The page of `resnest-det demo` through its programming interface."""

import json
import socket
from pathlib import Path


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
