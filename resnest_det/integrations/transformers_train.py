"""Training the recipes of configs/transformers with transformers' Trainer, and evaluating what was trained."""

import importlib.util
import json
import logging
from dataclasses import fields
from functools import partial
from pathlib import Path

from resnest_det.integrations.transformers_version import check_transformers

check_transformers()

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoImageProcessor, Trainer, TrainingArguments  # noqa: E402

from resnest_det.data.catalog import get_dataset  # noqa: E402
from resnest_det.data.image_files import check_image_files  # noqa: E402
from resnest_det.errors import UserError, nearest  # noqa: E402
from resnest_det.files import packaged, write_bytes  # noqa: E402
from resnest_det.integrations.transformers import load_backbone_weights  # noqa: E402 (registers as well)
from resnest_det.integrations.transformers_data import TASKS, TrainingSamples, collate, evaluate_transformers, label_names  # noqa: E402

logger = logging.getLogger(__name__)

_package = importlib.util.find_spec("datasets")
if _package is not None and _package.origin is None:
    # A folder ./datasets, where this package looks for COCO, which transformers takes for the package of that name.
    transformers.trainer.is_datasets_available = lambda: False

OWN_SETTINGS = ("task", "backbone_weights", "backbone_learning_rate")  # of training.json; the rest are TrainingArguments


def recipe_names() -> list[str]:
    """The folders of configs/transformers."""
    return sorted(path.parent.name for path in (packaged("configs") / "transformers").glob("*/config.json"))


def find_recipe(recipe: str) -> Path:
    """The folder of a bundled recipe, or one that is given.

    Raises:
        UserError: there is none; the nearest names are listed.
    """
    for folder in (Path(recipe), packaged("configs") / "transformers" / recipe):
        if (folder / "config.json").is_file() and (folder / "training.json").is_file():
            return folder
    near = nearest(recipe, recipe_names()) or recipe_names()
    raise UserError(
        f"{recipe} is no recipe for transformers: no folder with config.json and training.json; nearest: {', '.join(near)}"
    )


def build(folder: Path, names: list[str] | None = None) -> transformers.PreTrainedModel:
    """The model of a recipe's configuration, freshly initialised.

    Args:
        names: of its labels; None leaves those of the file.

    Raises:
        UserError: this version of transformers has no such model.
    """
    labels = {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    config = AutoConfig.from_pretrained(folder, **labels)
    (architecture,) = config.architectures
    if not hasattr(transformers, architecture):
        raise UserError(f"{folder / 'config.json'}: transformers {transformers.__version__} has no {architecture}")
    return getattr(transformers, architecture)(config)


def read_training(folder: Path, settings: dict | None = None) -> dict:
    """What training.json says, with `settings` over it.

    Raises:
        UserError: a setting that there is not.
    """
    path = folder / "training.json"
    try:
        training = json.loads(path.read_text()) | (settings or {})
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    known = {*OWN_SETTINGS, *(field.name for field in fields(TrainingArguments))}
    for name in training:
        if name not in known:
            near = nearest(name, known)
            raise UserError(f"{name} is no setting of training" + (f"; nearest: {', '.join(near)}" if near else ""))
    if training.get("task") not in TASKS:
        raise UserError(f"{path}: task is {training.get('task')!r}; supported: {', '.join(TASKS)}")
    return training


def train(recipe: str, train_dataset: str, val_dataset: str, output_dir: str, settings: dict | None = None) -> dict:
    """Train a recipe on a dataset, save model and processor into `output_dir`, and evaluate on another.

    Args:
        recipe: a bundled one by name, or a folder.
        train_dataset, val_dataset: names of datasets.
        settings: over those of the recipe's training.json, by name: `task`, `backbone_weights` ("" for none, else what
            `resolve_weights` takes), `backbone_learning_rate`, and any of `TrainingArguments`.

    Returns:
        task to figures, in percent.

    Raises:
        UserError: a recipe, setting or dataset that cannot be used.
    """
    folder = find_recipe(recipe)
    training = read_training(folder, settings)
    task, weights, backbone_rate = (training.pop(name, None) for name in OWN_SETTINGS)
    try:
        # First of all: it starts the group of processes that synchronised norms ask for.
        training.setdefault("dataloader_pin_memory", torch.cuda.is_available())  # it warns where there is nothing to copy to
        arguments = TrainingArguments(output_dir=output_dir, remove_unused_columns=False, **training)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"transformers refuses the settings of training: {error}") from None
    truth = get_dataset(train_dataset)
    held_out = get_dataset(val_dataset, keep_truth=True)
    names = label_names(truth, task)
    if label_names(held_out, task) != names:
        raise UserError(f"datasets {train_dataset} and {val_dataset} have other labels, or the same in another order")
    for dataset in (truth, held_out):
        check_image_files(dataset.name, dataset.records, dataset.metadata.image_root)
    transformers.set_seed(arguments.seed)
    model, processor = build(folder, names), AutoImageProcessor.from_pretrained(folder)
    if weights:
        logger.info("Loaded %s", load_backbone_weights(model, weights))
    universal = hasattr(processor, "post_process_panoptic_segmentation") and model.config.model_type == "mask2former"
    make_batch = partial(collate, processor=processor, task=task, universal=universal, things=len(truth.metadata.thing_classes))
    trainer = Trainer(
        model, arguments, train_dataset=TrainingSamples(truth, task), data_collator=make_batch, processing_class=processor
    )
    trainer.optimizer = _optimizer(trainer, backbone_rate)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model(output_dir)
    figures = evaluate_transformers(model.eval(), processor, held_out, task)
    write_bytes(str(Path(output_dir, "figures.json")), json.dumps(figures).encode())
    return figures


def _optimizer(trainer: Trainer, backbone_rate: float | None):
    """The Trainer's, with a learning rate of its own for the backbone."""
    kind, arguments = Trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".resnest." in f".{name}", name in decayed), []).append(parameter)
    rate, decay = trainer.args.learning_rate, trainer.args.weight_decay
    return kind(
        [
            {
                "params": parameters,
                "lr": rate if backbone_rate is None or not of_backbone else backbone_rate,
                "weight_decay": decay if is_decayed else 0.0,
            }
            for (of_backbone, is_decayed), parameters in groups.items()
        ],
        **arguments,
    )
