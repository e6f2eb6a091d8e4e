"""A training run as a configuration describes it: model, data, checkpoints, evaluation, put together around the loop."""

import logging
import secrets
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnest_det.backbone.layers import GlooSyncBatchNorm2d
from resnest_det.backbone.split_attention import SplitAttentionConv2d
from resnest_det.backbone.weights import check_input_matches, load_weights, resolve_weights
from resnest_det.distributed import all_gather_objects, get_rank, get_world_size, is_main_process, synchronize
from resnest_det.engine.build_data import build_train_loader
from resnest_det.engine.build_model import build_model
from resnest_det.engine.build_solver import build_gradient_clipper, build_lr_scheduler, build_optimizer, scale_to_world_size
from resnest_det.engine.checkpoint import DetectionCheckpointer, periodic_checkpointer, restore_optimizer
from resnest_det.engine.evaluate import Evaluation, flatten_results, verify_results
from resnest_det.engine.events import TrainingLog, keep_earlier_metrics
from resnest_det.engine.picture import training_picture
from resnest_det.engine.precise_bn import update_batch_norm_statistics
from resnest_det.engine.trainer import seed_everything, train_loop
from resnest_det.errors import UserError
from resnest_det.files import remove_unfinished

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, *, resume: bool = False) -> dict:
    """Train as `cfg` says on this process's device, evaluate at the end, and return the results (main process).

    Args:
        resume: go on from the last checkpoint in OUTPUT_DIR if there is one. Losses are then those of a run
            that was never interrupted.

    Raises:
        UserError: anything in the configuration, the data or the checkpoint cannot be used, a loss is not finite, a
            checkpoint cannot be written, or the results are not TEST.EXPECTED_RESULTS.
    """
    cfg = scale_to_world_size(cfg, get_world_size())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    evaluation = Evaluation(cfg)
    seed = choose_seed(cfg.SEED)
    seed_everything(seed)
    model = build_model(cfg)
    check_batch_norm(model, cfg.SOLVER.IMS_PER_BATCH // get_world_size())
    optimizer = build_optimizer(cfg, model)
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.SOLVER.AMP.ENABLED and device.type == "cuda")

    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer, grad_scaler=scaler)
    start = 0
    if resume and checkpointer.has_checkpoint():
        saved = checkpointer.resume()
        start = saved["iteration"] + 1
        restore_optimizer(optimizer, saved["optimizer"])
        if scaler.is_enabled() and saved.get("grad_scaler"):
            scaler.load_state_dict(saved["grad_scaler"])
        seed = resumed_seed(cfg.SEED, seed, saved.get("seed"))
    else:
        load_initial_weights(cfg, model)
    logger.info("Seed %d%s", seed, ", drawn since SEED is negative" if cfg.SEED < 0 and not start else "")

    log = None
    if is_main_process():
        remove_unfinished(cfg.OUTPUT_DIR)
        if not resume:
            keep_earlier_metrics(cfg.OUTPUT_DIR)
        log = TrainingLog(cfg.OUTPUT_DIR, start_iteration=start, max_iter=cfg.SOLVER.MAX_ITER)
    try:
        run = _Run(cfg, model, evaluation, checkpointer, seed, log)
        if start < cfg.SOLVER.MAX_ITER:
            run.train(optimizer, scaler, start)
        else:
            logger.info("Nothing to train: %d iterations are done and SOLVER.MAX_ITER is %d", start, cfg.SOLVER.MAX_ITER)
            # A run can be killed between its last two checkpoints, which are of the same iteration.
            if is_main_process() and not checkpointer.get_checkpoint_file().endswith("model_final.pth"):
                checkpointer.save("model_final", iteration=start - 1, seed=seed)
        results = run.evaluate(max(start, cfg.SOLVER.MAX_ITER), last=True)
    finally:
        if log is not None:
            log.close()
    if is_main_process():
        verify_results(cfg.TEST.EXPECTED_RESULTS, results)
    return results


class _Run:
    """The parts of a run that its steps share."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        evaluation: Evaluation,
        checkpointer: DetectionCheckpointer,
        seed: int,
        log: TrainingLog | None,
    ):
        self.cfg = cfg
        self.model = model
        self.evaluation = evaluation
        self.checkpointer = checkpointer
        self.seed = seed
        self.log = log

    def train(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, start: int) -> None:
        """Iterations `start` to SOLVER.MAX_ITER with everything that happens between them."""
        cfg, device = self.cfg, next(self.model.parameters()).device
        scheduler = build_lr_scheduler(cfg, optimizer, start)
        self.checkpointer.add_checkpointable("scheduler", scheduler)
        batches = build_train_loader(cfg, seed=self.seed, start_iteration=start)
        logger.info("Training from iteration %d to %d", start, cfg.SOLVER.MAX_ITER)
        train_loop(
            _distributed(self.model, device),
            batches,
            optimizer,
            scheduler,
            start_iteration=start,
            max_iter=cfg.SOLVER.MAX_ITER,
            seed=self.seed,
            scaler=scaler,
            autocast=torch.autocast(
                device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED
            ),
            clip_gradients=build_gradient_clipper(cfg),
            log=self.log,
            after_step=self._after_step(),
        )

    def evaluate(self, iteration: int, *, last: bool = False) -> dict:
        """Evaluate the model as it is, the `last` time also with test-time augmentation, and record the results."""
        if get_world_size() > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        results = self.evaluation.final(self.model) if last else self.evaluation(self.model)
        if self.log is not None:
            self.log.results(iteration, flatten_results(results))
        synchronize()
        return results

    def _after_step(self) -> list[Callable[[int, list[dict]], None]]:
        # Exact batch-norm statistics come before the checkpoint, which is to hold them, and the evaluation after it: should
        # it fail, the checkpoint is there.
        actions = []
        if self.cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            actions.append(self._precise_bn)
        if is_main_process():
            periodic = periodic_checkpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.SOLVER.MAX_ITER)
            actions.append(lambda iteration, batch: periodic.step(iteration, seed=self.seed))
        actions.append(self._evaluate_if_due)
        if is_main_process() and self.cfg.VIS_PERIOD > 0:
            actions.append(self._show)
        return actions

    def _evaluation_due(self, iteration: int) -> bool:
        period = self.cfg.TEST.EVAL_PERIOD
        return period > 0 and (iteration + 1) % period == 0

    def _precise_bn(self, iteration: int, batch: list[dict]) -> None:
        if not self._evaluation_due(iteration) and iteration + 1 != self.cfg.SOLVER.MAX_ITER:
            return
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        # A stream of its own, the same each time: neither the training data nor a resumed run notices.
        own_seed = int(np.random.SeedSequence((self.seed, 1)).generate_state(1)[0])
        count = cfg.TEST.PRECISE_BN.NUM_ITER
        logger.info("Running precise batch norm over %d batches", count)
        update_batch_norm_statistics(self.model, build_train_loader(cfg, seed=own_seed), count)

    def _evaluate_if_due(self, iteration: int, batch: list[dict]) -> None:
        # The evaluation after the last iteration is not a part of the loop, since a finished run repeats it.
        if self._evaluation_due(iteration) and iteration + 1 != self.cfg.SOLVER.MAX_ITER:
            self.evaluate(iteration)

    def _show(self, iteration: int, batch: list[dict]) -> None:
        if (iteration + 1) % self.cfg.VIS_PERIOD == 0:
            classes = self.evaluation.class_names(self.cfg.DATASETS.TRAIN[0])
            picture = training_picture(self.model, batch[0], self.cfg.INPUT.FORMAT, classes)
            self.log.image(iteration, "truth and prediction", picture)


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    if get_world_size() == 1:
        return model
    with warnings.catch_warnings():
        # The name of the argument changes in newer torch.
        warnings.filterwarnings("ignore", message=".broadcast_buffers. is deprecated", category=FutureWarning)
        # Statistics of plain batch norm stay each process's own in training, as in Detectron2; `evaluate` makes them one.
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False)


def choose_seed(configured: int) -> int:
    """SEED, or one drawn at random for all processes when it is negative."""
    return configured if configured >= 0 else all_gather_objects(secrets.randbits(31))[0]


def resumed_seed(configured: int, chosen: int, saved: int | None) -> int:
    """The seed to go on with: that of the checkpoint, unless the configuration asks for another."""
    if saved is None or configured == saved:
        return chosen
    if configured < 0:
        return saved
    logger.warning("SEED is %d but the run began with %d: losses will not be those of an uninterrupted run", configured, saved)
    return configured


def load_initial_weights(cfg: CfgNode, model: nn.Module, *, whole: bool = False) -> None:
    """Load MODEL.WEIGHTS into `model`; with `whole` a file that leaves parts of it untrained is refused.

    Raises:
        UserError: they cannot be found or read, or do not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        logger.info("MODEL.WEIGHTS is empty: the model starts from random parameters")
        return
    for warning in check_input_matches(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT, cfg.MODEL.WEIGHTS):
        logger.warning(warning)
    # One process downloads, the others find the file.
    if get_rank() != 0:
        synchronize()
    path = resolve_weights(cfg.MODEL.WEIGHTS)
    if get_rank() == 0:
        synchronize()
    report = load_weights(model, path, allow_mismatch=cfg.MODEL.WEIGHTS_ALLOW_MISMATCH)
    if whole and report.fresh:
        names = list(report.fresh)
        raise UserError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} has nothing for {len(names)} parameters of the model ({names[0]}, …): "
            f"{report.fresh[names[0]]}; evaluating needs a checkpoint of a trained detector"
        )
    logger.info("Loaded %s", report)


def check_batch_norm(model: nn.Module, images_per_process: int) -> None:
    """See that split attention can be trained with this batch.

    Its second norm sees one value a channel and image, so that batch norm over one image is undefined.

    Raises:
        UserError: with the settings that would work.
    """
    if images_per_process > 1:
        return
    for module in model.modules():
        if not isinstance(module, SplitAttentionConv2d) or not isinstance(module.bn1, nn.modules.batchnorm._BatchNorm):
            continue
        if isinstance(module.bn1, (nn.SyncBatchNorm, GlooSyncBatchNorm2d)) and get_world_size() > 1:
            continue
        world_size = get_world_size()
        sync = ", MODEL.RESNETS.NORM 'SyncBN'" if world_size > 1 else ""
        raise UserError(
            "batch norm inside split attention cannot be trained on one image a process: use SOLVER.IMS_PER_BATCH "
            f"{2 * world_size} or more{sync}, or MODEL.RESNETS.NORM 'FrozenBN' (with pretrained weights) or 'GN'"
        )
