"""A configuration of this package as one complete Python file for MMDetection.

The same weights give the same detections there: anchors, box coding, sampling of regions, thresholds, images and datasets are
the same. `DIFFERENCES` lists what is not, and why.
"""

import ast
import keyword
import math
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from resnest_det.data.coco import Metadata
from resnest_det.errors import UserError
from resnest_det.integrations.mmdet_model import is_cascade, model_config
from resnest_det.integrations.mmdet_schedule import data_config, runtime_config, schedule_config
from resnest_det.integrations.mmdet_supported import check_translatable

DIFFERENCES = """\
what is not the same in MMDetection, and why:
  - It ranks proposals by the probability of an object, not by its logit. Where probabilities round to the same number, the order
    may differ.
  - A box may shrink by a factor of 62.5 at most in one step there, and by any here. The limit on growing is the same.
  - Boxes without area at the border of an image are detections there and dropped here.
  - An image of greyscale and alpha (PNG mode LA) is laid on grey there; here its alpha is ignored.
  - A panoptic model returns only the panoptic map there, no boxes or masks, so box AP is not evaluated. Training it and counting
    PQ need the package panopticapi, which MMDetection does not install.
  - A cascade uses this package's head, Detectron2CascadeRoIHead: MMDetection's own averages logits over the stages, not
    probabilities, which gives other scores, and has one mask head for each stage.
in training, where the losses take other paths:
  - No precise batch norm after training (TEST.PRECISE_BN): MMDetection has none.
  - No test-time augmentation (TEST.AUG), no pictures of training (VIS_PERIOD), no check of TEST.EXPECTED_RESULTS.
  - Mask targets are cut from bitmaps even where INPUT.MASK_FORMAT is polygon: when MMDetection reads polygons, it drops every
    object that has a run-length mask.
  - Images for panoptic models are resized by OpenCV, without antialiasing, because MMDetection cannot resize labels of pixels
    with Pillow. The semantic loss is taken at a quarter of the image's size, against every fourth label.
  - Objects less than a pixel wide or high train nothing. The things of a panoptic dataset are the segments of its PNG files.
  - While WarmupCosineLR warms up, the rate is the warm-up times the cosine. With SOLVER.BASE_LR_END above 0 it stays slightly
    higher afterwards.
"""

_HEADER = "# {title}, written by tools/to_mmdet.py. It has no base file; paths are those of the machine it was written on.\n"


def mmdet_config(cfg: CfgNode, *, test: Metadata, train: Sequence[Metadata], num_processes: int, checkpoint: str) -> dict:
    """MMDetection's configuration of the same model, data and training.

    Args:
        cfg: a configuration that `resnest_det.configuration.reading.load_config` has checked.
        test: the dataset of DATASETS.TEST.
        train: those of DATASETS.TRAIN; if empty, the configuration can only be evaluated.
        num_processes: how many will train, each with its share of SOLVER.IMS_PER_BATCH.
        checkpoint: path of the translated weights, which training and evaluation start from.

    Raises:
        UserError: a value that MMDetection has no equal for; the message names its key.
    """
    check_translatable(cfg)
    imports = ["resnest_det.integrations.mmdet"]
    if is_cascade(cfg):
        imports.append("resnest_det.integrations.mmdet_cascade")
    config = dict(
        custom_imports=dict(imports=imports, allow_failed_imports=False), default_scope="mmdet", model=model_config(cfg)
    )
    config |= data_config(cfg, test, train, num_processes)
    if train:
        config |= schedule_config(cfg)
    return config | runtime_config(cfg, checkpoint)


def config_text(config: dict, title: str) -> str:
    """The configuration as a Python file for MMEngine, holding nothing but literals.

    MMEngine runs that file, and names of classes come from data. So the text is parsed again and must give `config`.

    Raises:
        UserError: a value that cannot be written as a literal, or that MMEngine would replace before it reads the file.
    """
    title = "".join(character if character.isprintable() else "?" for character in title)
    lines = [_HEADER.format(title=title)]
    lines += [f"{_identifier(name)} = {_literal(value, '')}\n" for name, value in config.items()]
    text = "".join(lines)
    if "{{" in text:
        raise UserError(
            f"{title}: a name or path contains '{{{{', which MMEngine replaces before it reads the file; choose another"
        )
    if _read_back(text) != config:
        raise UserError(f"{title}: the text written for MMDetection does not read back as the same configuration")
    return text


def _read_back(text: str) -> dict:
    """The values the text assigns, without running it: literals, dict(name=literal) and list(range(literal, literal))."""

    def value(node: ast.expr):
        match node:
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
                return {each.arg: value(each.value) for each in keywords}
            case ast.Call(
                func=ast.Name(id="list"), args=[ast.Call(func=ast.Name(id="range"), args=ends, keywords=[])], keywords=[]
            ):
                return range(*map(value, ends))
            case ast.List(elts=items):
                return [value(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(value(item) for item in items)
        return ast.literal_eval(node)

    return {statement.targets[0].id: value(statement.value) for statement in ast.parse(text).body}


def _identifier(name) -> str:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{ascii(name)} cannot be the name of a setting in MMDetection's configuration")
    return name


def _literal(value, indent: str) -> str:
    """Python source of dictionaries, lists and plain values, wrapped where a line would be too long."""
    if isinstance(value, range):
        return f"list({value!r})"
    if isinstance(value, dict):
        items = [f"{_identifier(key)}={_literal(item, indent + '    ')}" for key, item in value.items()]
        open_, close = "dict(", ")"
    elif isinstance(value, (list, tuple)):
        items, open_, close = [_literal(item, indent + "    ") for item in value], *("[]" if isinstance(value, list) else "()")
        if isinstance(value, tuple) and len(items) == 1:
            close = ",)"
    elif value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return repr(value)
    else:
        raise UserError(
            f"{ascii(value)[:80]} cannot be written into MMDetection's configuration: it is not a plain, finite value"
        )
    short = open_ + ", ".join(items) + close
    if "\n" not in short and len(indent) + len(short) <= 100:
        return short
    return open_ + "\n" + "".join(f"{indent}    {item},\n" for item in items) + indent + close.lstrip(",")
