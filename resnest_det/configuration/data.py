"""From configuration to data: the only place that reads INPUT, DATASETS and DATALOADER keys."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from resnest_det.configuration.classes import (
    check_classes,
    check_same_names,
    class_names,
    count_classes,
    kept_of_classes,
    match_classes,
)
from resnest_det.configuration.tables import tasks_of
from resnest_det.data import samplers
from resnest_det.data.catalog import get_dataset
from resnest_det.data.coco import Dataset
from resnest_det.data.colors import RandomColor
from resnest_det.data.image_files import check_image_files, check_image_sizes
from resnest_det.data.instance_records import Records, joined, objects_of, sizes_of, with_objects_only
from resnest_det.data.loader import InferenceBatches, in_shared_memory, training_batches
from resnest_det.data.mapper import inference_sample, training_sample
from resnest_det.data.records import Record, Sample
from resnest_det.data.statistics import Statistics, describe, doubts, statistics_of
from resnest_det.data.transforms import (
    Augmentation,
    AugmentationStep,
    PadTo,
    RandomCrop,
    RandomFlip,
    ResizeLongestEdge,
    ResizeShortestEdge,
)
from resnest_det.distributed import all_gather_objects, get_rank, get_world_size
from resnest_det.errors import UserError, naming

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingImages:
    """The images of DATASETS.TRAIN from which there is something to learn.

    Attributes:
        records: see `resnest_det.data.coco.Dataset`.
        repeat_factors: (N,) float64, how often each is shown in an epoch.
        landscape: (N,) bool, whether each is wider than high.
        class_names: of the objects.
    """

    records: Sequence[Record]
    repeat_factors: np.ndarray
    landscape: np.ndarray
    class_names: list[str]


@dataclass(frozen=True)
class RunData:
    """The datasets of a run, each read once: the training images, if it trains, and the datasets of DATASETS.TEST.

    `trained_on` is what a checkpoint keeps of them: {"thing_classes", "stuff_classes": names, "thing_ids", "stuff_ids": ids in
    the first dataset's file, "thing_colors", "stuff_colors": [R, G, B], in the order of the classes, if the model tells them
    apart; "input_format": INPUT.FORMAT}.
    `train_statistics` are of all images of DATASETS.TRAIN together, `test_statistics` of each dataset of DATASETS.TEST.
    """

    train: TrainingImages | None
    test: tuple[Dataset, ...]
    trained_on: dict
    train_statistics: Statistics | None = None
    test_statistics: tuple[Statistics, ...] = ()


def read_run_data(
    cfg, *, train: bool, trained_on: Mapping | None = None, counted: Mapping[str, str] = MappingProxyType({})
) -> RunData:
    """Read every dataset that a run needs. Classes are matched by name: all datasets count them in one order.

    Args:
        cfg: a configuration that `resnest_det.configuration.reading.load_config` has checked.
        train: whether DATASETS.TRAIN is needed.
        counted: keys to take from the data, which is not held against them; see `count_classes`.
        trained_on: of the checkpoint that the data is for; its classes come in its order. None: in the first dataset's.

    Raises:
        UserError: a dataset cannot be read, has nothing to train on, fewer images than there are processes, other classes than
            the model or another dataset, lacks a mask that MODEL.MASK_ON needs, or the file of an image that will be read; or an
            annotation file is another to each process, because it is being changed.
    """
    if train:
        check_training_data(cfg, get_world_size())
    names = dict.fromkeys((*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST))
    datasets = {name: get_dataset(name, keep_truth=name in cfg.DATASETS.TEST) for name in names}
    if not datasets:
        return RunData(None, (), {})
    _check_same_files(datasets.values())
    first = next(iter(datasets.values()))
    cfg = count_classes(cfg, class_names(cfg, first), counted)
    like = trained_on or class_names(cfg, first)
    datasets = {
        name: match_classes(dataset, like, "the checkpoint" if trained_on else first.name) for name, dataset in datasets.items()
    }
    matched = datasets[first.name]
    for name in cfg.DATASETS.TEST:
        check_classes([datasets[name]], cfg)
        _check_enough_images(len(datasets[name].records), name)
        check_image_files(name, datasets[name].records, datasets[name].metadata.image_root)
        check_image_sizes(datasets[name].records)
    images = _training_images(cfg, [datasets[name] for name in cfg.DATASETS.TRAIN]) if train else None
    return RunData(
        images,
        tuple(datasets[name] for name in cfg.DATASETS.TEST),
        kept_of_classes(class_names(cfg, matched), matched.metadata, cfg.INPUT.FORMAT),
        _statistics([datasets[name] for name in cfg.DATASETS.TRAIN]) if train else None,
        tuple(_statistics([datasets[name]]) for name in cfg.DATASETS.TEST),
    )


def _check_same_files(datasets: Iterable[Dataset]) -> None:
    """That every process of the run has read the same: they open files one after the other.

    Raises:
        UserError: one has read something else.
    """
    digests = {
        each.records.instances.file_name: each.records.instances.digest for each in datasets if isinstance(each.records, Records)
    }
    for others in all_gather_objects(digests):
        for json_file, digest in others.items():
            if digests.get(json_file, digest) != digest:
                raise UserError(f"{json_file} was changed while the processes of this run read it; start again")


def _statistics(datasets: list[Dataset]) -> Statistics:
    """Of datasets with the same classes, together."""
    left_out: dict[str, int] = {}
    for dataset in datasets:
        for why, count in dataset.left_out.items():
            left_out[why] = left_out.get(why, 0) + count
    records = joined([dataset.records for dataset in datasets])
    name = " + ".join(dict.fromkeys(dataset.name for dataset in datasets))
    return statistics_of(name, records, datasets[0].metadata.thing_classes, left_out)


def tell_of_data(data: RunData) -> None:
    """What the data is, in a few lines of the log, and what is doubtful about it as warnings."""
    told = {each.name: each for each in (data.train_statistics, *data.test_statistics) if each is not None}
    for statistics in told.values():
        for line in describe(statistics):
            logger.info(line)
    for line in doubts(data.train_statistics, data.test_statistics):
        logger.warning(line)


def hold_against_checkpoint(cfg, data: RunData, trained_on: object, checkpoint: str) -> RunData:
    """The data of a run with its classes in the order in which the model of a checkpoint learned them.

    Args:
        trained_on: what the file has under this name; checkpoints of earlier versions have nothing, and are taken as they are.
        checkpoint: the file.

    Raises:
        UserError: it learned other classes, or with another INPUT.FORMAT.
    """
    lists = ("thing_classes", "stuff_classes")
    if not isinstance(trained_on, Mapping) or not all(
        isinstance(trained_on.get(name, []), list) and all(isinstance(label, str) for label in trained_on.get(name, []))
        for name in lists
    ):
        return data
    if trained_on.get("input_format", cfg.INPUT.FORMAT) != cfg.INPUT.FORMAT:
        raise UserError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, but checkpoint {checkpoint} was trained on {trained_on['input_format']} images"
        )
    own = {name: trained_on[name] for name in lists if name in data.trained_on and name in trained_on}
    for dataset in data.test:
        check_same_names(dataset, own, f"checkpoint {checkpoint}")
    if all(data.trained_on[name] == names for name, names in own.items()):
        return data
    return read_run_data(cfg, train=data.train is not None, trained_on=own)


def build_train_loader(
    cfg, images: TrainingImages, *, seed: int, start_iteration: int = 0, num_workers: int | None = None
) -> Iterator[list[Sample]]:
    """Endless batches of training samples, this process's SOLVER.IMS_PER_BATCH / world size each.

    Batch k depends only on the seed and k: a run started at iteration k sees what a run from the beginning would see from there.

    Args:
        num_workers: processes that read ahead; None takes DATALOADER.NUM_WORKERS.

    Raises:
        UserError: a key's value is wrong; the message names it.
    """
    world_size = get_world_size()
    landscape = images.landscape if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    return training_batches(
        images.records,
        build_training_mapper(cfg),
        samplers.batches(samplers.training_draws(images.repeat_factors, seed), cfg.SOLVER.IMS_PER_BATCH, landscape),
        seed=seed,
        start_iteration=start_iteration,
        rank=get_rank(),
        world_size=world_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS if num_workers is None else num_workers,
    )


def build_training_mapper(cfg) -> Callable[[Record, np.random.Generator], Sample]:
    """What makes a training sample of a record, with the random choices of a generator.

    Raises:
        UserError: a key's value is wrong; the message names it.
    """
    tasks = tasks_of(cfg)
    return partial(
        training_sample,
        augmentation=build_augmentation(cfg),
        image_format=cfg.INPUT.FORMAT,
        mask_format=cfg.INPUT.MASK_FORMAT if tasks.masks else None,
        semantic=tasks.pixels,
        ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )


def check_training_data(cfg, world_size: int) -> None:
    """That there is something to train on, and every one of `world_size` processes gets as many images of a step.

    Raises:
        UserError: there is not.
    """
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name the dataset to train on, for instance ('coco_2017_train',)")
    check_batch_size(cfg, world_size)


def check_batch_size(cfg, world_size: int) -> None:
    """Check that each of `world_size` processes gets the same number of images in a step.

    Raises:
        UserError: SOLVER.IMS_PER_BATCH cannot be divided so.
    """
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; it must be a multiple of the number of processes, {world_size}"
        )


def build_test_loader(cfg, dataset: Dataset) -> InferenceBatches:
    """This process's share of a dataset's images, in order, one in each batch; together the processes see every image once."""
    make_sample = partial(
        inference_sample, short_side=cfg.INPUT.MIN_SIZE_TEST, max_side=cfg.INPUT.MAX_SIZE_TEST, image_format=cfg.INPUT.FORMAT
    )
    share = samplers.inference_indices(len(dataset.records), get_rank(), get_world_size())
    return InferenceBatches(dataset.records[share.start : share.stop], make_sample, cfg.DATALOADER.NUM_WORKERS)


def build_augmentation(cfg) -> Augmentation:
    """What INPUT says of cropping, resizing, colors and mirroring, in Detectron2's order.

    That is the one of its tool for detectors, which crops first, and for a model of pixels alone that of its DeepLab, which
    crops what was resized.

    Raises:
        UserError: an impossible value; the message names the key.
    """
    given, steps = cfg.INPUT, []
    names = {"short_sides": "MIN_SIZE_TRAIN", "max_side": "MAX_SIZE_TRAIN", "sampling": "MIN_SIZE_TRAIN_SAMPLING"}
    names |= {"library": "RESIZE_LIBRARY_TRAIN", "long_sides": "LONG_SIDE_TRAIN"}
    with naming({argument: f"INPUT.{key}" for argument, key in names.items()}):
        if given.LONG_SIDE_TRAIN:
            steps.append(ResizeLongestEdge(tuple(given.LONG_SIDE_TRAIN)))
        else:
            lengths, sampling = tuple(given.MIN_SIZE_TRAIN), given.MIN_SIZE_TRAIN_SAMPLING
            steps.append(ResizeShortestEdge(lengths, given.MAX_SIZE_TRAIN, sampling, given.RESIZE_LIBRARY_TRAIN))
    crop = _crop_steps(cfg)
    steps = steps + crop if tasks_of(cfg).pixels and not tasks_of(cfg).objects else crop + steps
    if given.COLOR_AUG_SSD:
        if given.FORMAT == "L":
            raise UserError("INPUT.COLOR_AUG_SSD True is not supported with INPUT.FORMAT 'L', which has no colors")
        steps.append(RandomColor(bgr=given.FORMAT == "BGR"))
    if given.RANDOM_FLIP != "none":
        with naming({"direction": "INPUT.RANDOM_FLIP"}):
            steps.append(RandomFlip(given.RANDOM_FLIP))
    return Augmentation(tuple(steps))


def _crop_steps(cfg) -> list[AugmentationStep]:
    crop, long_sides = cfg.INPUT.CROP, cfg.INPUT.LONG_SIDE_TRAIN
    if not crop.ENABLED:
        if crop.PAD:
            raise UserError("INPUT.CROP.PAD True needs INPUT.CROP.ENABLED True: it pads to the size of the crop")
        return []
    keys = {"kind": "TYPE", "size": "SIZE", "max_area": "SINGLE_CATEGORY_MAX_AREA"}
    with naming({argument: f"INPUT.CROP.{key}" for argument, key in keys.items()}):
        window = RandomCrop(crop.TYPE, tuple(crop.SIZE), crop.SINGLE_CATEGORY_MAX_AREA)
        if not crop.PAD:
            if crop.TYPE == "absolute" and long_sides and max(crop.SIZE) > max(long_sides):
                raise UserError(
                    f"INPUT.CROP.SIZE {tuple(crop.SIZE)} is larger than any image whose longer side is one of "
                    f"INPUT.LONG_SIDE_TRAIN {tuple(long_sides)}; set INPUT.CROP.PAD True to pad them"
                )
            return [window]
        if crop.TYPE != "absolute":
            raise UserError(f"INPUT.CROP.PAD True needs INPUT.CROP.TYPE 'absolute', not {crop.TYPE!r}")
        return [PadTo(window.size), window]


def _training_images(cfg, datasets: list[Dataset]) -> TrainingImages:
    check_classes(datasets, cfg)
    tasks = tasks_of(cfg)
    shown = [training_records(cfg, dataset) for dataset in datasets]
    records, total = joined(shown), sum(len(dataset.records) for dataset in datasets)
    if total and not len(records):
        raise UserError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}: none of the {total} images has an object to learn from")
    if len(records) < total:
        logger.info("Training images: %d of %d; the others have no object", len(records), total)
    if tasks.masks:
        _check_masks(records)
    _check_enough_images(len(records), "DATASETS.TRAIN")
    for dataset, its_records in zip(datasets, shown):
        check_image_files(dataset.name, its_records, dataset.metadata.image_root)
        check_image_sizes(its_records)
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        threshold, square_root = cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_SQRT
        repeat_factors = samplers.repeat_factors_from_categories(records, threshold, square_root)
    else:
        repeat_factors = np.ones(len(records))
    heights, widths = sizes_of(records).T
    return TrainingImages(in_shared_memory(shown), repeat_factors, widths > heights, datasets[0].metadata.thing_classes)


def training_records(cfg, dataset: Dataset) -> Sequence[Record]:
    """Those of a dataset's images that training shows: not the ones without an object, to a model that learns objects."""
    # For a model that only labels pixels, no image is empty.
    if not (cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and tasks_of(cfg).objects):
        return dataset.records
    return with_objects_only(dataset.records)


def _check_masks(records: Sequence[Record]) -> None:
    objects = objects_of(records)
    for at in objects.record[~objects.mask & ~objects.crowd][:1].tolist():
        record = records[at]
        for annotation in record["annotations"]:
            if "segmentation" not in annotation and not annotation["iscrowd"]:
                raise UserError(
                    f"annotation {annotation['id']} of image {record['file_name']} has no segmentation; "
                    f"set MODEL.MASK_ON False to train only on boxes"
                )


def _check_enough_images(num_images: int, what: str) -> None:
    if num_images == 0:
        raise UserError(f"{what}: there are no images")
    if num_images < get_world_size():
        raise UserError(f"{what}: {get_world_size()} processes but only {num_images} images; use fewer processes")
