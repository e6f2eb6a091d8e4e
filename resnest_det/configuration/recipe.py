"""A first schedule for data of one's own: rules from what the data and the machine are to settings, each with its reason.

docs/recipes.md says what the rules rest on. They choose only keys that nobody has set, and what depends on one that is set goes
by its value: with SOLVER.IMS_PER_BATCH 4 the learning rate is one for 4 images.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from fvcore.common.config import CfgNode

from resnest_det.configuration.anchor_fit import boxes_as_shown
from resnest_det.configuration.model import assemble_model, shapes_only
from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.solver import iterations_of, rate_factor
from resnest_det.configuration.tables import tasks_of
from resnest_det.data.statistics import Statistics
from resnest_det.detector.anchors import overlaps_of_shapes
from resnest_det.errors import UserError

# The published recipes: 16 images a step at a rate of 0.02, short sides of 640 to 800 pixels and at most 1333, anchors from 32.
BATCH, RATE, SHORT, LONG, ANCHOR = 16, 0.02, 800, 1333, 32
MUON_RATE = 0.018  # for 16 images; docs/recipes.md has the runs
_SHRUNK = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)  # of the short side, as 640 to 800 are
# At those sizes a tenth of COCO's objects (of 842 in 100 images) are smaller than this, in pixels.
SMALL = 26
LEAST_SHORT = 224  # of what classifiers are trained on, so of what is pretrained
MOST_ENLARGED = 5  # times; docs/recipes.md has the runs
CPU_SHORT = 480  # a step takes seconds
FEWEST, FEW = 4, "what is not pretrained takes its statistics over so many images at least"
LEAST_STEPS = 20  # in an epoch: of fewer images a batch has fewer
SHORT_RUN = 1000  # steps, below which a higher rate was better; docs/recipes.md has the runs


@dataclass(frozen=True)
class Choice:
    """A setting and why it is so."""

    key: str
    value: object
    reason: str

    def __str__(self) -> str:
        return f"{self.key} {self.value!r}: {self.reason}"


@dataclass(frozen=True)
class Machine:
    """What a run has: the `device` ("cuda" or "cpu") of each of its `processes`, and all CPU `cores`."""

    device: str
    processes: int
    cores: int


@dataclass(frozen=True)
class Pretrained:
    """Which norm the parts that MODEL.WEIGHTS fill were trained with: "BN", "GN", or "" for a part that begins anew."""

    backbone: str = ""
    heads: str = ""


class Plan:
    """A configuration under way, and the choices made for it.

    Args:
        given: keys that are set, and stay as they are.
    """

    def __init__(self, cfg: CfgNode, given: Collection[str]):
        self.cfg = cfg
        self.given = frozenset(given)
        self.choices: list[Choice] = []

    def choose(self, key: str, value: object, reason: str) -> None:
        if key not in self.given:
            self.cfg = with_values(self.cfg, {key: value})
            self.choices.append(Choice(key, value, reason))


def by_data(plan: Plan, data: Statistics, machine: Machine, trained_detector: str = "") -> None:
    """Choose what follows from the data: heads, starting weights, the size of images and anchors.

    Args:
        data: of the training images.
        trained_detector: MODEL.WEIGHTS of a published detector with this architecture, if there is one.
    """
    cfg = plan.cfg
    without_mask = len(data.boxes) - data.masks
    if tasks_of(cfg).masks and not tasks_of(cfg).pixels and without_mask:
        plan.choose("MODEL.MASK_ON", False, f"{without_mask} of {len(data.boxes)} objects have no mask")
    if trained_detector:
        plan.choose(
            "MODEL.WEIGHTS", trained_detector, "a detector that was trained on COCO has to learn less than its backbone alone"
        )
    if data.classes and tasks_of(cfg).objects:
        plan.choose("MODEL.ROI_HEADS.NUM_CLASSES", len(data.classes), "as many as the data has")
    _choose_sizes(plan, data, machine)
    if tasks_of(cfg).objects:
        _choose_anchors(plan, data)
        _choose_sampler(plan, data)


def _choose_sizes(plan: Plan, data: Statistics, machine: Machine) -> None:
    short_sides, sizes = data.image_sizes.min(axis=1), data.sizes[data.sizes > 0]
    short = float(np.median(short_sides))
    most = SHORT if machine.device == "cuda" else CPU_SHORT
    small = float(np.percentile(sizes, 10)) if len(sizes) else SMALL
    wanted = short * min(SMALL / small, MOST_ENLARGED)
    side = int(np.clip(wanted, min(LEAST_SHORT, short), most))
    side = max(32, round(side / 16) * 16)
    reason = f"images of {short:.0f} pixels, a tenth of the objects below {small:.0f}: so they are {small * side / short:.0f}"
    if side == round(most / 16) * 16 and wanted > most:
        reason += f"; {most} at most on {'a GPU' if machine.device == 'cuda' else 'a CPU'}"
    plan.choose("INPUT.MIN_SIZE_TRAIN", tuple(round(side * factor) for factor in _SHRUNK), reason)
    side = max(plan.cfg.INPUT.MIN_SIZE_TRAIN)
    plan.choose("INPUT.MIN_SIZE_TEST", side, "as large as the largest that is trained on")
    longest = float((data.image_sizes.max(axis=1) / short_sides).max())
    longer = round(side * min(longest, LONG / SHORT))
    plan.choose(
        "INPUT.MAX_SIZE_TRAIN", longer, "the longer side of the longest image" + (", cut" if longest > LONG / SHORT else "")
    )
    plan.choose("INPUT.MAX_SIZE_TEST", plan.cfg.INPUT.MAX_SIZE_TRAIN, "as in training")


def _choose_anchors(plan: Plan, data: Statistics) -> None:
    boxes, levels = boxes_as_shown(plan.cfg, data), len(plan.cfg.MODEL.RPN.IN_FEATURES)
    if not len(boxes):
        return
    ratios = plan.cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS

    def fit(first: float, ratios: list) -> float:
        return float(overlaps_of_shapes(boxes, _octaves(first, levels), ratios).max(axis=1).mean())

    fits = {first: fit(first, ratios) for first in (8, 12, 16, 24, 32, 48, 64)}
    # Of equals the published one, else the largest: then objects are looked for in the finest map.
    good = [first for first, value in fits.items() if value >= max(fits.values()) - 0.02]
    first = ANCHOR if ANCHOR in good else max(good)
    plan.choose(
        "MODEL.ANCHOR_GENERATOR.SIZES",
        _octaves(first, levels),
        f"the objects overlap the best of these by {fits[first]:.2f} on average; those from {ANCHOR} by {fits[ANCHOR]:.2f}",
    )
    tall = boxes[:, 1] / boxes[:, 0]
    own = [[round(float(value), 2) for value in np.percentile(tall, (10, 50, 90))]]
    default, with_own = fit(first, ratios), fit(first, own)
    if with_own > default + 0.04:
        plan.choose(
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
            own,
            f"height to width of a tenth, half and nine tenths of the objects: overlap {with_own:.2f}, not {default:.2f}",
        )


def _octaves(first: float, levels: int) -> list[list[float]]:
    return [[first * 2**level] for level in range(levels)]


def _choose_sampler(plan: Plan, data: Statistics) -> None:
    """Show images of classes in fewer than a tenth of them more often, as LVIS does, where others are in half of them."""
    images = len(np.unique(data.image_of))
    pairs = np.unique(np.stack([data.image_of, data.labels]), axis=1)[1] if images else np.zeros(0, dtype=int)
    shares = np.bincount(pairs, minlength=len(data.classes)) / max(images, 1)
    rare = [name for name, share in zip(data.classes, shares) if 0 < share < 0.1]
    if rare and shares.max() > 0.5:
        reason = f"{', '.join(rare[:5])} {'is' if len(rare) == 1 else 'are'} in fewer than a tenth of the images"
        plan.choose("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", reason)
        plan.choose("DATALOADER.REPEAT_THRESHOLD", 0.1, "a class in a hundredth of them is shown about three times as often")


def by_machine(plan: Plan, data: Statistics, machine: Machine, fits: int, pretrained: Pretrained) -> None:
    """Choose what follows from the machine: the batch, and from it norms, learning rate and length.

    Args:
        fits: images that a process has memory for in a step.
    """
    solver, images = plan.cfg.SOLVER, max(1, len(data.image_sizes) - data.without_objects)
    of_steps = max(2 if pretrained.backbone else FEWEST, images // LEAST_STEPS // machine.processes)
    wanted = BATCH if machine.device == "cuda" else BATCH // 2
    each = max(1, min(max(1, wanted // machine.processes), fits, of_steps))
    if each == max(1, wanted // machine.processes):
        why = "as published" if machine.device == "cuda" else "half of what is published, so that a step takes seconds"
    elif each == of_steps:
        why = f"an epoch of {images} images then has {LEAST_STEPS} steps or so" if each > FEWEST or pretrained.backbone else FEW
    else:
        why = f"{fits} fit into the memory of a process"
    plan.choose("SOLVER.IMS_PER_BATCH", each * machine.processes, f"{why}; {machine.processes} on {machine.device}")
    batch = plan.cfg.SOLVER.IMS_PER_BATCH
    _choose_norms(plan, batch // machine.processes, machine.processes, pretrained)
    if solver.MAX_EPOCHS:
        plan.choose("SOLVER.MAX_ITER", iterations_of(solver.MAX_EPOCHS, images, batch), f"{solver.MAX_EPOCHS:g} epochs")
    else:
        shown = images_shown(images, bool(pretrained.backbone))
        why = "" if pretrained.backbone else ", six times as many as with pretrained weights"
        steps = max(50, math.ceil(shown / batch))
        plan.choose("SOLVER.MAX_ITER", steps, f"{shown} images shown, {shown / images:.1f} epochs{why}")
    _choose_rate(plan, batch, bool(pretrained.backbone))
    solver = plan.cfg.SOLVER
    plan.choose("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "needs no steps to be chosen")
    plan.choose("SOLVER.WARMUP_ITERS", min(1000, max(1, solver.MAX_ITER // 10)), "a tenth of the run, 1000 at most")
    epoch = math.ceil(images / batch)
    period = max(epoch, math.ceil(solver.MAX_ITER / 10))
    if plan.cfg.DATASETS.TEST:
        plan.choose("TEST.EVAL_PERIOD", period, "ten times in the run, once in an epoch at most")
        if plan.cfg.TEST.EVAL_PERIOD:
            plan.choose("TEST.PATIENCE", 5, "half of the evaluations without a better one: it will not come")
    plan.choose("SOLVER.CHECKPOINT_PERIOD", period, "with each evaluation")
    plan.choose("SOLVER.CHECKPOINTS_KEPT", 2, "beside the best and the last")
    if any(norm in ("BN", "SyncBN") for norm in _norms_of(plan.cfg)):
        plan.choose("TEST.PRECISE_BN.NUM_ITER", int(np.clip(period // 10, 10, 200)), "a tenth of the steps between evaluations")
    else:
        plan.choose("TEST.PRECISE_BN.ENABLED", False, "there is no batch norm")
    if machine.device == "cuda":
        plan.choose("SOLVER.AMP.ENABLED", True, "half the memory, and twice as fast or more")
        workers, why = min(4, max(1, machine.cores // machine.processes - 1)), f"{machine.cores} cores"
    else:
        workers, why = int(machine.cores > machine.processes), "the cores compute"
    plan.choose("DATALOADER.NUM_WORKERS", workers, why)


def _choose_rate(plan: Plan, batch: int, pretrained: bool) -> None:
    """Choose the optimizer and its learning rate; if one of them is set, no other optimizer."""
    if not plan.given & {"SOLVER.OPTIMIZER", "SOLVER.BASE_LR"}:
        if pretrained and plan.cfg.SOLVER.OPTIMIZER != "SGD":
            plan.choose("SOLVER.OPTIMIZER", "SGD", "better than others where something is pretrained")
            plan.choose("SOLVER.MOMENTUM", 0.9, "as published")
        elif not pretrained:
            plan.choose("SOLVER.OPTIMIZER", "MUON", "nothing is pretrained, and SGD would need many times as many steps")
            plan.choose("SOLVER.MOMENTUM", 0.95, "Muon's usual")
            rate = float(f"{MUON_RATE * rate_factor('MUON', batch / BATCH):.2g}")
            plan.choose("SOLVER.BASE_LR", rate, f"for Muon {MUON_RATE} for {BATCH} images, by the root of their number")
            plan.choose("SOLVER.HEAD_LR_FACTOR", 0.5, "a fast backbone finds more on other images, slow heads fit closer")
            if tasks_of(plan.cfg).objects:
                plan.choose("SOLVER.RPN_LR_FACTOR", 0.5, "of the heads, the proposal network wants the lowest rate")
            # The rate times the decay is the share of the weights that a step forgets (arXiv:2405.13698, section 3).
            decay = 1 / (plan.cfg.SOLVER.BASE_LR * max(1, plan.cfg.SOLVER.MAX_ITER))
            plan.choose("SOLVER.WEIGHT_DECAY", float(f"{decay:.2g}"), "times the rate, one over the number of steps")
    solver = plan.cfg.SOLVER
    if solver.OPTIMIZER == "SGD":  # with another that is set, the rate is the recipe's
        rate, why = RATE, "in proportion"
        if solver.MAX_ITER < SHORT_RUN and batch <= BATCH:
            rate, why = 2 * RATE, f"in proportion; twice as much as published, as there are fewer than {SHORT_RUN} steps"
        plan.choose("SOLVER.BASE_LR", rate * batch / BATCH, f"{rate} for {BATCH} images, {why}")


def images_shown(images: int, pretrained: bool) -> int:
    """How many images a training shows: 12 epochs, as published for COCO, and the more the fewer there are.

    34 epochs of 50 images, 21 of 300, 12 from 3000 on; six times as many of random weights.
    """
    return round(max(12 * images, 90 * images**0.75) * (1 if pretrained else 6))


def _norms_of(cfg: CfgNode) -> list[str]:
    model = cfg.MODEL
    return [model.RESNETS.NORM, model.FPN.NORM, model.ROI_BOX_HEAD.NORM, model.ROI_MASK_HEAD.NORM, model.SEM_SEG_HEAD.NORM]


def _choose_norms(plan: Plan, each: int, processes: int, pretrained: Pretrained) -> None:
    """Batch norm takes its mean over enough images, or is frozen where it has learned already, or is group norm."""
    plan.choose(
        "MODEL.BACKBONE.FREEZE_AT",
        2 if pretrained.backbone else 0,
        "what is pretrained there fits all images" if pretrained.backbone else "nothing is pretrained",
    )
    together = each * processes if plan.cfg.MODEL.RESNETS.NORM == "SyncBN" and each > 1 else each
    heads = ("FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", *(["SEM_SEG_HEAD"] if tasks_of(plan.cfg).pixels else []))
    for parts, trained_with in ((("RESNETS",), pretrained.backbone), (heads, pretrained.heads)):
        few = f"batch norm over {together} images is too noisy"
        if trained_with == "GN":
            norm, why = "GN", "the weights were trained with it"
        elif together >= BATCH // 2:
            continue  # as the recipe has it
        elif trained_with == "BN":
            norm, why = "FrozenBN", f"{few}, and the weights have its statistics"
        elif pretrained.backbone or _can_be_built(plan.cfg, "GN"):
            norm, why = "GN", few
        else:
            continue  # group norm needs multiples of 32 channels
        for part in parts:
            plan.choose(f"MODEL.{part}.NORM", norm, why)


def _can_be_built(cfg: CfgNode, norm: str) -> bool:
    values = {f"MODEL.{part}.NORM": norm for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD")}
    try:
        with shapes_only():
            assemble_model(with_values(cfg, values))
    except UserError:
        return False
    return True
