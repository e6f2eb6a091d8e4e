"""A local page to try a trained detector on pictures. By Gradio, which is an extra."""

import os
import secrets
import time
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import torch

from resnest_det.data.image import upright_size
from resnest_det.errors import UserError
from resnest_det.inference.predictor import Predictor
from resnest_det.inference.results import Result

# Read when gradio is imported, which else tells its makers of each start and asks them for newer versions.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

try:
    import gradio
except ImportError as error:
    raise UserError(f'the page needs {error.name}: pip install "resnest_det[demo]"') from None

_KEPT = 3600  # seconds until what visitors gave is forgotten
_LONGEST_QUEUE = 32
_HEADERS = ["class", "score", "x0", "y0", "x1", "y1"]
# On a phone what is found is below the picture, and should be seen without scrolling far.
_CSS = """
.gradio-container { max-width: 1400px !important }
@media (max-width: 640px) { #picture, #found { height: 300px !important } }
"""


class _Looked(NamedTuple):
    """What the model says of a visitor's picture, and the file that its JSON is written to."""

    result: Result
    seconds: float
    json: str


def make_page(predictor: Predictor, threshold: float, most_pixels: int, folder: str) -> gradio.Blocks:
    """The page: a picture goes in, what is found comes out, with a threshold and classes to choose.

    Args:
        predictor: with a `score_threshold` of 0, so that the slider shows and hides without the model.
        threshold: where the slider starts.
        most_pixels: of a picture.
        folder: for the files of visitors and their results; the caller removes it in the end.
    """
    os.environ["GRADIO_TEMP_DIR"] = folder
    things = list(predictor.classes.things.names)

    def nothing(why: str = "") -> tuple:
        return None, why, [], gradio.DownloadButton(value=None, interactive=False)

    def look(path: str | None, threshold: float, classes: list[str]) -> tuple:
        """A picture has come, or was taken away."""
        if path is None:
            return None, *nothing()
        try:
            height, width = upright_size(path)
            if height * width > most_pixels:
                raise UserError(f"image {path} is {width} x {height} pixels; at most {most_pixels} are taken")
            start = time.perf_counter()
            result = replace(predictor(path), file_name=os.path.basename(path))
            seconds = time.perf_counter() - start
        except UserError as error:
            # Not an error of the page, after which the results of the picture before would stay.
            return None, *nothing(str(error).replace(path, os.path.basename(path)))
        own = os.path.join(folder, secrets.token_hex(8))
        os.mkdir(own)
        looked = _Looked(result, seconds, os.path.join(own, f"{os.path.splitext(result.file_name)[0]}.json"))
        return looked, *show(looked, threshold, classes)

    def show(looked: _Looked | None, threshold: float, classes: list[str]) -> tuple:
        """The slider or the classes were moved: the picture, a sentence, a table and the file of JSON."""
        if looked is None:
            return nothing()
        result = chosen(looked.result, threshold, classes)
        try:
            result.save(looked.json)
            drawn = result.draw()
        except UserError:  # its files were removed after a while
            return nothing("It was forgotten: give the picture again.")
        button = gradio.DownloadButton(value=looked.json, interactive=True)
        return drawn, _sentence(result, looked.seconds), _rows(result), button

    with gradio.Blocks(title="resnest_det", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as page:
        looked = gradio.State(None, time_to_live=_KEPT)
        with gradio.Row():
            with gradio.Column():
                picture = gradio.Image(label="A picture", sources=["upload", "clipboard"], height=480, elem_id="picture")
                # Gradio would open it with whatever Pillow can, and say nothing of what is wrong with it.
                picture.preprocess = lambda given: None if given is None else given.path
                slider = gradio.Slider(0, 1, threshold, step=0.01, label="Least score", visible=bool(things), elem_id="threshold")
                classes = gradio.Dropdown(
                    things, multiselect=True, label="Classes, all if none is chosen", visible=bool(things), elem_id="classes"
                )
            with gradio.Column():
                drawn = gradio.Image(
                    label="What is found",
                    interactive=False,
                    format="jpeg",
                    height=480,
                    elem_id="found",
                    buttons=["download", "fullscreen"],
                )
                sentence = gradio.Markdown(elem_id="sentence")
                download = gradio.DownloadButton("Download JSON", interactive=False, elem_id="download")
        table = gradio.Dataframe(headers=_HEADERS, interactive=False, label="Found", elem_id="table", max_height=400)
        gradio.Markdown(f"Model: `{predictor.backend.source}` on {predictor.device}")
        outputs = [drawn, sentence, table, download]
        picture.change(look, [picture, slider, classes], [looked, *outputs], concurrency_id="model")
        for choice in (slider, classes):
            choice.change(
                show, [looked, slider, classes], outputs, trigger_mode="always_last", show_progress="hidden", api_name="show"
            )
    page.queue(max_size=_LONGEST_QUEUE, default_concurrency_limit=1)
    return page


def chosen(result: Result, threshold: float, classes: list[str]) -> Result:
    """A result with the objects of these classes, or of all if there are none, that have at least this score; and all stuff."""
    classes = set(classes or result.classes.things.names)
    keep = result.scores >= threshold
    keep &= torch.tensor([name in classes for name in result.names], dtype=torch.bool)
    result = result.chosen(keep)
    if result.segment_map is None:
        return result
    segments = [
        each
        for each in result.segments
        if not each["isthing"] or (each.get("score", 1.0) >= threshold and each["name"] in classes)
    ]
    left = torch.isin(result.segment_map, torch.tensor([each["id"] for each in segments], dtype=result.segment_map.dtype))
    return replace(result, segments=segments, segment_map=result.segment_map * left)


def open_page(page: gradio.Blocks, host: str, port: int, most_bytes: int) -> str:
    """Serve the page from threads of its own, with nothing loaded from the web; its address.

    Raises:
        UserError: it cannot listen there.
    """
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=most_bytes,
            theme=gradio.themes.Default(**fonts),
            css=_CSS,
        )
    except OSError as error:
        reason = error.strerror or "it is in use"
        raise UserError(f"{host} port {port} cannot be listened at ({reason}): give another --host or --port") from None
    return address


def _sentence(result: Result, seconds: float) -> str:
    names = [each["name"] for each in result.segments] if result.segment_map is not None else result.names
    if result.label_map is not None and result.segment_map is None:
        names = [result.classes.stuff.names[index] for index in result.label_map.unique().tolist()]
    counted = ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
    return f"{counted or 'nothing'} in {result.width} x {result.height} pixels; {seconds:.2f} s"


def _rows(result: Result) -> list[list]:
    boxes = [[round(value, 1) for value in box] for box in result.boxes.tolist()]
    return [[name, round(score, 3), *box] for name, score, box in zip(result.names, result.scores.tolist(), boxes)]
