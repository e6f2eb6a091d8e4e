"""Train a recipe of configs/transformers with Hugging Face's Trainer, and evaluate it as every detector here is evaluated.

    train_transformers.py --recipe rt_detr_v2_resnest14_shapes --train shapes_train --val shapes_val --out output
    train_transformers.py --recipe rt_detr_v2_resnest50 --train coco_2017_train --val coco_2017_val --out output \\
        learning_rate 2e-4 num_train_epochs 12

What is trained is in `--out`, for `from_pretrained`, with its figures in figures.json. The last words set keys of the recipe's
training.json: `backbone_weights` ("" for none, else a file or an address), `backbone_learning_rate`, `task`, and any argument of
transformers' TrainingArguments. Several GPUs: torchrun --nproc-per-node 8 tools/train_transformers.py ...
"""

import argparse
import json

from resnest_det.commands.register import add_register_flags, registered_datasets
from resnest_det.data.catalog import register
from resnest_det.errors import UserError


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a folder of configs/transformers by its name, or your own")
    parser.add_argument("--train", required=True, metavar="DATASET", help="to train on")
    parser.add_argument("--val", required=True, metavar="DATASET", help="to evaluate on")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the model, its processor and the figures")
    add_register_flags(parser)
    parser.add_argument("settings", nargs="*", metavar="KEY VALUE", help="over those of training.json")
    args = parser.parse_args(arguments)
    settings = parse_settings(args.settings)
    for name, files in registered_datasets(args).items():
        register(name, files)
    from resnest_det.integrations.transformers_train import train  # takes seconds

    figures = train(args.recipe, args.train, args.val, args.out, settings)
    for task, values in figures.items():
        print(f"{task}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items() if "-" not in name))
    print(f"Done: the model is in {args.out}")


def parse_settings(words: list[str]) -> dict:
    """KEY VALUE pairs; values are JSON where they can be, else text.

    Raises:
        UserError: a key without a value.
    """
    if len(words) % 2:
        raise UserError(f"settings come in pairs of KEY VALUE; {words[-1]!r} has no value")
    return {key: _value(text) for key, text in zip(words[::2], words[1::2])}


def _value(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text
