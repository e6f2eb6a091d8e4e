"""Configurations of training a classifier: the authors' keys (`resnest/torch/config.py` of ResNeSt), and this project's own.

A file of theirs loads unchanged. `KEYS` has every key with its default and meaning.
"""

import re
from collections.abc import Mapping, Sequence

from fvcore.common.config import CfgNode

from resnest_det.backbone.layers import NORMS
from resnest_det.backbone.variants import find_variant
from resnest_det.configuration.files import BASE_KEY, parse
from resnest_det.configuration.nodes import leaves
from resnest_det.configuration.reading import files_of, merge
from resnest_det.data.class_transforms import CROPS, INTERPOLATIONS, POLICIES, TEST_CROPS
from resnest_det.data.jpeg_decoders import DECODERS
from resnest_det.errors import UserError, shown

OPTIMIZERS = ("sgd", "adamw", "lamb")
SCHEDULES = ("cos",)

# key: (default, meaning)
KEYS: dict[str, tuple[object, str]] = {
    "SEED": (1, "of everything that is drawn; negative: drawn at random"),
    "OUTPUT_DIR": ("./output", "where the run writes"),
    "CUDNN_BENCHMARK": (False, "let cuDNN time its algorithms: quicker, and not the same to the last bit twice"),
    "FLOAT32_PRECISION": ("", "of matrix products on GPUs: highest, high or medium"),
    "DATA.DATASET": ("ImageNet", "a name for the log; the authors' registry had it"),
    "DATA.ROOT": ("", "the folder of images, as --train-on"),
    "DATA.VAL": ("", "a folder of images to evaluate on, where DATA.ROOT has none"),
    "DATA.HELD_OUT": (0.1, "share of each class to evaluate on where there is no folder for it"),
    "DATA.BASE_SIZE": (None, "read and not used: the authors' crops do not use it either"),
    "DATA.CROP_SIZE": (224, "side of the images that are trained on, pixels"),
    "DATA.CROP": ("efficientnet", "how they are cut out: efficientnet, or resized (torchvision's RandomResizedCrop)"),
    "DATA.AREA": ((0.0, 0.0), "least and largest share of the image in a crop; zeros: 0.1 to 1 for efficientnet, 0.08 to 1 else"),
    "DATA.INTERPOLATION": ("bilinear", "of resizing"),
    "DATA.FLIP": (0.5, "probability of mirroring"),
    "DATA.LABEL_SMOOTHING": (0.0, "share of a label that all classes get alike"),
    "DATA.MIXUP": (0.0, "alpha of mixup; 0: none"),
    "DATA.CUTMIX": (0.0, "alpha of CutMix; 0: none; with mixup one of the two is drawn for each batch"),
    "DATA.MIX_OFF_EPOCHS": (0, "last epochs without mixup and CutMix"),
    "DATA.RAND_AUG": (False, "RandAugment, of RAND_AUG_OPS operations and magnitude RAND_AUG_MAGNITUDE"),
    "DATA.RAND_AUG_OPS": (2, "operations of RandAugment"),
    "DATA.RAND_AUG_MAGNITUDE": (12, "magnitude of RandAugment, 0 to 30"),
    "DATA.AUTO_AUGMENT": ("", "policy of AutoAugment: imagenet, cifar10 or svhn; empty: none"),
    "DATA.COLOR_JITTER": (0.4, "how far brightness, contrast and saturation change"),
    "DATA.LIGHTING": (0.1, "strength of AlexNet's lighting"),
    "DATA.TEST_CROP_SIZE": (0, "side of the images that are evaluated; 0: CROP_SIZE"),
    "DATA.TEST_CROP": ("authors", "authors: the centre size / (size + 32) of the short side; resize: to size / TEST_SHARE first"),
    "DATA.TEST_SHARE": (0.875, "of TEST_CROP resize: the share of the short side in the crop"),
    "DATA.TEST_INTERPOLATION": ("", "of resizing in evaluations; empty: INTERPOLATION"),
    "DATA.DECODER": ("pil", "of JPEGs"),
    "DATA.STRICT": (False, "stop at an image that cannot be read, instead of telling of it and going on"),
    "MODEL.NAME": ("resnest50", "see `resnest_det.list_models()`"),
    "MODEL.FINAL_DROP": (0.0, "dropout before the linear layer"),
    "MODEL.NUM_CLASSES": (0, "0: those of the data; another number is held against it"),
    "MODEL.WIDTH": (1.0, "times the channels of everything"),
    "MODEL.NORM": ("BN", "the norm; SyncBN counts over all processes"),
    "MODEL.WEIGHTS": ("", "what training starts from: resnest://NAME, a file or an address; as --pretrained"),
    "MODEL.FREEZE_AT": (0, "this many of stem, res2 ... res5 are not trained"),
    "MODEL.DROP_BLOCK": (0.0, "the rate that DropBlock in res4 and res5 grows to, epoch by epoch"),
    "MODEL.DROP_BLOCK_SIZE": (3, "side of its squares"),
    "MODEL.DROP_PATH": (0.0, "stochastic depth of the last block"),
    "MODEL.CHECKPOINTING": (False, "compute activations again in the backward pass, to save memory"),
    "MODEL.DEVICE": ("auto", "auto, cpu, cuda or cuda:N"),
    "TRAINING.BATCH_SIZE": (64, "images of a step on each process"),
    "TRAINING.TEST_BATCH_SIZE": (256, "images of an evaluation's batch on each process"),
    "TRAINING.LAST_GAMMA": (False, "the last norm of each block begins at 0"),
    "TRAINING.EPOCHS": (120, "passes over the training images"),
    "TRAINING.START_EPOCHS": (0, "only 0: --resume goes on where a run ended"),
    "TRAINING.WORKERS": (4, "processes that read images, for each process that trains"),
    "TRAINING.ACCUMULATE": (1, "parts that a step's images are computed in, to save memory"),
    "TRAINING.AMP": (False, "mixed precision: float16 on GPUs, bfloat16 on CPUs"),
    "TRAINING.CHANNELS_LAST": (True, "the layout of images in memory; quicker on CPUs and with AMP"),
    "TRAINING.COMPILE": (False, "run the network through torch.compile"),
    "TRAINING.EMA": (0.0, "decay of a moving average of the parameters, which is evaluated and used; 0: none"),
    "TRAINING.EVAL_EPOCHS": (1.0, "epochs between evaluations; 0: only at the end"),
    "TRAINING.CHECKPOINT_EPOCHS": (1.0, "epochs between checkpoints"),
    "TRAINING.CHECKPOINTS_KEPT": (2, "periodic checkpoints that stay; 0: all"),
    "TRAINING.PATIENCE": (0, "evaluations without a better top-1 after which training stops; 0: it does not"),
    "OPTIMIZER.NAME": ("sgd", "sgd, adamw, or lamb, which timm has"),
    "OPTIMIZER.LR": (0.025, "learning rate: of a step of LR_BATCH images, to which it is scaled"),
    "OPTIMIZER.LR_BATCH": (0, "images of a step that LR is for; 0, as the authors: BATCH_SIZE, so times the processes"),
    "OPTIMIZER.LR_SCHEDULER": ("cos", "cos: half a cosine to LR_END"),
    "OPTIMIZER.LR_END": (0.0, "the share of LR that remains at the end"),
    "OPTIMIZER.MOMENTUM": (0.9, "of SGD; the first beta of others"),
    "OPTIMIZER.NESTEROV": (False, "Nesterov's momentum"),
    "OPTIMIZER.WEIGHT_DECAY": (1e-4, "of weights"),
    "OPTIMIZER.DISABLE_BN_WD": (False, "no decay of norms and biases"),
    "OPTIMIZER.WARMUP_EPOCHS": (0.0, "epochs in which the rate rises from 0"),
    "OPTIMIZER.LAYER_DECAY": (1.0, "the rate of each stage over that of the next"),
    "OPTIMIZER.CLIP_NORM": (0.0, "the most that each parameter's gradient may be long; 0: any length"),
}

_CHOICES = {
    "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
    "DATA.CROP": CROPS,
    "DATA.INTERPOLATION": INTERPOLATIONS,
    "DATA.TEST_INTERPOLATION": ("", *INTERPOLATIONS),
    "DATA.AUTO_AUGMENT": POLICIES,
    "DATA.TEST_CROP": TEST_CROPS,
    "DATA.DECODER": tuple(DECODERS),
    "MODEL.NORM": tuple(norm for norm in NORMS if norm),
    "OPTIMIZER.NAME": OPTIMIZERS,
    "OPTIMIZER.LR_SCHEDULER": SCHEDULES,
}
# (least, most) of numbers; the classes that take them check the others.
_RANGES = {
    "DATA.HELD_OUT": (0.001, 0.9),
    "DATA.CROP_SIZE": (32, 4096),
    "DATA.TEST_CROP_SIZE": (0, 4096),
    "DATA.FLIP": (0, 1),
    "DATA.MIX_OFF_EPOCHS": (0, 100_000),
    "DATA.COLOR_JITTER": (0, 1),
    "DATA.LIGHTING": (0, 10),
    "DATA.TEST_SHARE": (0.1, 1),
    "DATA.RAND_AUG_OPS": (1, 20),
    "DATA.RAND_AUG_MAGNITUDE": (0, 30),
    "MODEL.NUM_CLASSES": (0, 10_000_000),
    "MODEL.WIDTH": (0.01, 8),
    "MODEL.FREEZE_AT": (0, 5),
    "MODEL.DROP_BLOCK": (0, 0.9),
    "MODEL.DROP_BLOCK_SIZE": (1, 31),
    "TRAINING.BATCH_SIZE": (1, 1_000_000),
    "TRAINING.TEST_BATCH_SIZE": (1, 1_000_000),
    "TRAINING.EPOCHS": (1, 100_000),
    "TRAINING.START_EPOCHS": (0, 0),
    "TRAINING.WORKERS": (0, 1024),
    "TRAINING.ACCUMULATE": (1, 100_000),
    "TRAINING.EMA": (0, 0.999999),
    "TRAINING.EVAL_EPOCHS": (0, 100_000),
    "TRAINING.CHECKPOINT_EPOCHS": (0, 100_000),
    "TRAINING.CHECKPOINTS_KEPT": (0, 1_000_000),
    "TRAINING.PATIENCE": (0, 1_000_000),
    "OPTIMIZER.LR": (0, 1e6),
    "OPTIMIZER.LR_BATCH": (0, 10_000_000),
    "OPTIMIZER.LR_END": (0, 1),
    "OPTIMIZER.WEIGHT_DECAY": (0, 1e3),
    "OPTIMIZER.WARMUP_EPOCHS": (0, 100_000),
    "OPTIMIZER.LAYER_DECAY": (0.01, 1),
    "OPTIMIZER.CLIP_NORM": (0, 1e6),
}


def default_classifier_config() -> CfgNode:
    """Every key with its default."""
    cfg = CfgNode()
    for key, (default, _) in KEYS.items():
        section, _, name = key.rpartition(".")
        node = cfg.setdefault(section, CfgNode()) if section else cfg
        node[name] = default
    return cfg


def load_classifier_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration of a YAML file and `KEY VALUE` overrides, checked and frozen.

    Args:
        config_file: a path, or the name of a bundled one, see `resnest_det.configuration.reading.find_config_file`; "" for the
            defaults.
        overrides: KEY1, VALUE1, KEY2, VALUE2, ...

    Raises:
        UserError: a file or key does not exist, or a value cannot be used.
    """
    return _checked(list(files_of(config_file)) if config_file else [], overrides)


def load_classifier_text(text: str, source: str) -> CfgNode:
    """`load_classifier_config` of what a run has written into a checkpoint; messages begin with `source`."""
    content = parse(text.encode("utf-8", "replace"), source)
    if BASE_KEY in content:
        raise UserError(f"{source}: it has a {BASE_KEY}, which the whole configuration of a run has not")
    return _checked([(source, content)], ())


def _checked(contents: Sequence[tuple[str, Mapping]], overrides: Sequence[str]) -> CfgNode:
    cfg = default_classifier_config()
    known = {key: default for key, (default, _) in KEYS.items()}
    for source, content in contents:
        merge(cfg, _as_known(leaves(content)), source, known)
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE; {shown(overrides[-1])} has no value")
    merge(cfg, _as_known(zip(overrides[::2], overrides[1::2])), "command line", known)
    _check(cfg)
    cfg.freeze()
    return cfg


def _as_known(values):
    """The authors say False where they mean a rate of 0."""
    for key, value in values:
        yield key, 0.0 if key == "MODEL.FINAL_DROP" and value in (False, "False") else value


def _check(cfg: CfgNode) -> None:
    find_variant(cfg.MODEL.NAME)
    values = dict(leaves(cfg))
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"{key} {shown(values[key])} is not supported; supported: {', '.join(map(repr, choices))}")
    for key, (least, most) in _RANGES.items():
        if not least <= values[key] <= most:
            hint = ": --resume goes on where a run ended" if key == "TRAINING.START_EPOCHS" else ""
            raise UserError(f"{key} is {values[key]:g}; it must be from {least:g} to {most:g}{hint}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", cfg.MODEL.DEVICE):
        raise UserError(f"MODEL.DEVICE {shown(cfg.MODEL.DEVICE)} is not supported; supported: 'auto', 'cpu', 'cuda', 'cuda:N'")
    if cfg.DATA.RAND_AUG and cfg.DATA.AUTO_AUGMENT:
        raise UserError(f"DATA.RAND_AUG and DATA.AUTO_AUGMENT {cfg.DATA.AUTO_AUGMENT!r} exclude each other: set one of them")
    if cfg.MODEL.DROP_BLOCK and cfg.DATA.CROP_SIZE < 32 * cfg.MODEL.DROP_BLOCK_SIZE:
        raise UserError(
            f"MODEL.DROP_BLOCK {cfg.MODEL.DROP_BLOCK:g} with squares of {cfg.MODEL.DROP_BLOCK_SIZE} needs a DATA.CROP_SIZE of "
            f"{32 * cfg.MODEL.DROP_BLOCK_SIZE} at least, as the last maps are a 32nd of it; it is {cfg.DATA.CROP_SIZE}"
        )
    if cfg.MODEL.DROP_BLOCK_SIZE % 2 == 0:
        raise UserError(f"MODEL.DROP_BLOCK_SIZE is {cfg.MODEL.DROP_BLOCK_SIZE}; it must be odd")
    if cfg.OPTIMIZER.WARMUP_EPOCHS > cfg.TRAINING.EPOCHS:
        raise UserError(
            f"OPTIMIZER.WARMUP_EPOCHS is {cfg.OPTIMIZER.WARMUP_EPOCHS:g}, more than TRAINING.EPOCHS {cfg.TRAINING.EPOCHS}"
        )
    area = tuple(cfg.DATA.AREA)
    if len(area) != 2 or (area != (0.0, 0.0) and not 0 < area[0] <= area[1] <= 1):
        raise UserError(f"DATA.AREA {shown(area)} is not supported; supported: two shares above 0, up to 1, the lower first")
