"""Translate the backbone (and classification head) of a checkpoint into another library's parameter names.

    convert_weights.py resnest50-528c19ca.pth resnest50_d2.pth --to detectron2

IN is a file, or anything MODEL.WEIGHTS takes (resnest://resnest50, hf://timm/resnest50d.in1k, https://...). The suffix of OUT
chooses the format: .pth, .safetensors, or Detectron2's .pkl.
"""

import argparse
import pickle
from pathlib import Path

import torch

from resnest_det.backbone.variants import looks_like
from resnest_det.errors import UserError, printable
from resnest_det.files import atomic_write
from resnest_det.weights.checkpoint_files import save_safetensors, with_digests
from resnest_det.weights.downloads import resolve_weights
from resnest_det.weights.names import LAYOUTS, from_own_names
from resnest_det.weights.weights import errors_naming, read_weights

SUFFIXES = (".pth", ".safetensors", ".pkl")


def write(state: dict[str, torch.Tensor], out: Path, layout: str) -> None:
    state = {name: value.contiguous() for name, value in state.items()}
    # In a model these names have a prefix; with this flag Detectron2 matches them by their endings.
    zoo = {"model": state, "__author__": "resnest_det", "matching_heuristics": True}
    with atomic_write(out, "wb") as file:
        if out.suffix == ".safetensors":
            file.write(save_safetensors(state))
        elif out.suffix == ".pkl":
            arrays = {name: value.numpy() for name, value in state.items()}
            pickle.dump({**with_digests(zoo), "model": arrays}, file, protocol=2)
        else:
            torch.save(zoo if layout == "detectron2" else state, file)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="checkpoint in any known layout")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write: .pth, .safetensors or (detectron2) .pkl")
    parser.add_argument("--to", required=True, choices=LAYOUTS, help="layout to write; the authors' layout is that of `timm`")
    parser.add_argument("--prefix", default="", help="text before every name of the backbone, such as backbone.bottom_up.")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options = parser.parse_args(arguments)

    if options.out.suffix not in SUFFIXES:
        raise UserError(f"{options.out}: unknown suffix {options.out.suffix!r}; supported: {', '.join(SUFFIXES)}")
    if options.out.suffix == ".pkl" and options.to != "detectron2":
        raise UserError(f"{options.out}: only Detectron2 reads .pkl; write .pth or .safetensors for {options.to}")
    if options.out.exists() and not options.overwrite:
        raise UserError(f"{options.out} exists; add --overwrite to replace it")
    if not options.out.parent.is_dir():
        raise UserError(f"{options.out.parent} is not a folder")

    path = resolve_weights(options.source)
    weights = read_weights(path)
    with errors_naming(path):
        translated = from_own_names(weights.backbone, options.to)
    heads = tuple(f"{head}." for head in ("linear", "fc"))
    translated = {name if name.startswith(heads) else options.prefix + name: value for name, value in translated.items()}
    write(translated, options.out, options.to)

    variant = " or ".join(looks_like(weights.backbone)) or "a network outside the family"
    without = f", without {weights.taken_off}" if weights.taken_off else ""
    print(printable(f"{path}: {weights.layout} layout, {variant}{without}"))
    left = sorted(weights.rest)
    if left:
        some = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
        print(printable(f"left out: {len(left)} parameters that are not part of the backbone ({some})"))
    print(f"{options.out}: {options.to} layout, {len(translated)} parameters and buffers")
