"""Data, training and evaluation in MMDetection's words, from the INPUT, DATASETS, DATALOADER and SOLVER keys."""

import os
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from resnest_det.configuration.data import check_batch_size
from resnest_det.configuration.tables import tasks_of
from resnest_det.data.coco import LabelsMetadata, Metadata
from resnest_det.data.json_files import read_json
from resnest_det.data.panoptic import PanopticMetadata
from resnest_det.errors import UserError
from resnest_det.integrations.mmdet_supported import untranslatable

_META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")


def data_config(cfg: CfgNode, test: Metadata, train: Sequence[Metadata], num_processes: int) -> dict:
    """Data loaders and evaluators.

    Args:
        test, train, num_processes: see `resnest_det.integrations.mmdet_config.mmdet_config`.

    Raises:
        UserError: see there.
    """
    dataset = _dataset(cfg, test, test_pipeline(cfg)) | dict(test_mode=True)
    loader = dict(
        batch_size=1, **_workers(cfg), drop_last=False, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dataset
    )
    evaluator = _evaluator(cfg, test)
    config = dict(
        val_dataloader=loader,
        val_evaluator=evaluator,
        val_cfg=dict(type="ValLoop"),
        test_dataloader=loader,
        test_evaluator=evaluator,
        test_cfg=dict(type="TestLoop"),
    )
    if not train:
        return config
    check_batch_size(cfg, num_processes)
    filter_cfg = dict(filter_empty_gt=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, min_size=0)
    datasets = [_dataset(cfg, metadata, train_pipeline(cfg)) | dict(filter_cfg=filter_cfg) for metadata in train]
    grouping = dict(batch_sampler=dict(type="AspectRatioBatchSampler")) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else {}
    config["train_dataloader"] = dict(
        batch_size=cfg.SOLVER.IMS_PER_BATCH // num_processes,
        **_workers(cfg),
        sampler=dict(type="InfiniteSampler", shuffle=True),
        **grouping,
        dataset=datasets[0] if len(datasets) == 1 else dict(type="ConcatDataset", datasets=datasets),
    )
    return config


def _workers(cfg: CfgNode) -> dict:
    return dict(num_workers=cfg.DATALOADER.NUM_WORKERS, persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0)


def _dataset(cfg: CfgNode, metadata: Metadata, pipeline: list[dict]) -> dict:
    images = dict(img=os.path.abspath(metadata.image_root))
    if tasks_of(cfg).panoptic:
        if not isinstance(metadata, PanopticMetadata):
            raise UserError(f"dataset {metadata.name} has no panoptic PNG files, which MMDetection reads labels of pixels from")
        things, stuff = tuple(metadata.thing_classes), tuple(metadata.stuff_classes[1:])
        ids = [*metadata.thing_dataset_id_to_contiguous_id, *metadata.stuff_dataset_id_to_contiguous_id]
        _check_order(metadata.panoptic_json, ids)
        return dict(
            type="CocoPanopticDataset",
            ann_file=os.path.abspath(metadata.panoptic_json),
            data_prefix=images | dict(seg=os.path.abspath(metadata.panoptic_root)),
            metainfo=dict(classes=things + stuff, thing_classes=things, stuff_classes=stuff),
            pipeline=pipeline,
        )
    json_file = _instances_json(metadata)
    _check_order(json_file, list(metadata.thing_dataset_id_to_contiguous_id))
    return dict(
        type="CocoDataset",
        ann_file=os.path.abspath(json_file),
        data_prefix=images,
        metainfo=dict(classes=tuple(metadata.thing_classes)),
        pipeline=pipeline,
    )


def _instances_json(metadata: Metadata) -> str:
    if metadata.json_file is None:
        raise UserError(f"dataset {metadata.name} has no file of instances, which MMDetection needs; register it with one")
    if isinstance(metadata, LabelsMetadata):
        raise UserError(
            f"dataset {metadata.name}: MMDetection reads COCO's files; write one by `resnest-det convert-data "
            f"{metadata.json_file} OUT.json`, and register it as NAME=OUT.json,{metadata.image_root}"
        )
    return metadata.json_file


def _check_order(json_file: str, category_ids: list[int]) -> None:
    """Refuse a file whose classes MMDetection would number in another order than this package: by id, things before stuff."""
    found = [category["id"] for category in read_json(json_file)["categories"]]
    if found != category_ids:
        raise UserError(
            f'{json_file}: MMDetection numbers classes in the order of the list "categories", which must be sorted by id, things '
            f"before stuff; it starts with {found[:6]}"
        )


def _evaluator(cfg: CfgNode, metadata: Metadata) -> dict:
    if tasks_of(cfg).panoptic:
        return dict(
            type="CocoPanopticMetric",
            ann_file=os.path.abspath(metadata.panoptic_json),
            seg_prefix=os.path.abspath(metadata.panoptic_root),
        )
    return dict(type="CocoMetric", ann_file=os.path.abspath(_instances_json(metadata)), metric=list(tasks_of(cfg).of_objects))


def _load_image() -> dict:
    # JPEG decoders differ by a gray level in places.
    return dict(type="LoadImageFromFile", imdecode_backend="pillow")


def test_pipeline(cfg: CfgNode) -> list[dict]:
    """Steps that read and resize an image for evaluation."""
    if cfg.INPUT.MIN_SIZE_TEST > 0:
        # Pillow's bilinear filter averages all pixels that become one; OpenCV's does not.
        resize = dict(
            type="ResizeShortestEdge", scale=cfg.INPUT.MIN_SIZE_TEST, max_size=cfg.INPUT.MAX_SIZE_TEST, backend="pillow"
        )
    else:
        resize = dict(type="Resize", scale_factor=1.0)
    return [_load_image(), resize, dict(type="PackDetInputs", meta_keys=_META_KEYS)]


def train_pipeline(cfg: CfgNode) -> list[dict]:
    """Steps that read and augment an image for training."""
    given, tasks = cfg.INPUT, tasks_of(cfg)
    if tasks.panoptic:
        annotations = dict(type="LoadPanopticAnnotations")
    else:
        annotations = dict(type="LoadAnnotations", with_bbox=True, with_mask=tasks.masks)
    steps = [_load_image(), annotations]
    if given.CROP.ENABLED:
        # MMDetection takes a fixed size as (width, height), and ranges as they are here.
        fixed = given.CROP.TYPE in ("relative", "absolute")
        steps.append(
            dict(
                type="RandomCrop",
                crop_type=given.CROP.TYPE,
                crop_size=tuple(given.CROP.SIZE)[:: -1 if fixed else 1],
                allow_negative_crop=True,
                recompute_bbox=tasks.masks,
            )
        )
    sizes = given.MIN_SIZE_TRAIN
    if given.MIN_SIZE_TRAIN_SAMPLING == "range":
        sizes = range(sizes[0], sizes[1] + 1)
    if 0 in sizes:
        raise untranslatable("INPUT.MIN_SIZE_TRAIN", tuple(sizes), "supported: lengths above 0")
    # MMDetection cannot resize the labels of pixels with Pillow.
    backend = "cv2" if tasks.panoptic else "pillow"
    steps.append(
        dict(
            type="RandomChoiceResize",
            scales=sizes if isinstance(sizes, range) else list(sizes),
            resize_type="ResizeShortestEdge",
            max_size=given.MAX_SIZE_TRAIN,
            backend=backend,
        )
    )
    if given.RANDOM_FLIP != "none":
        steps.append(dict(type="RandomFlip", prob=0.5, direction=given.RANDOM_FLIP))
    return [*steps, dict(type="PackDetInputs")]


def schedule_config(cfg: CfgNode) -> dict:
    """Optimizer, learning rate and length of training.

    Raises:
        UserError: see `resnest_det.integrations.mmdet_config.mmdet_config`.
    """
    solver = cfg.SOLVER
    config = dict(
        train_cfg=dict(
            type="IterBasedTrainLoop", max_iters=solver.MAX_ITER, val_interval=cfg.TEST.EVAL_PERIOD or solver.MAX_ITER
        ),
        optim_wrapper=dict(
            type="AmpOptimWrapper" if solver.AMP.ENABLED else "OptimWrapper",
            constructor="ResNeStDetOptimWrapperConstructor",
            paramwise_cfg=_by_parameter(solver),
            optimizer=_optimizer(solver),
        ),
        param_scheduler=_learning_rate(cfg),
        auto_scale_lr=dict(enable=False, base_batch_size=solver.IMS_PER_BATCH),
    )
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED:
        if clip.CLIP_TYPE != "value":
            raise untranslatable(
                "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
                clip.CLIP_TYPE,
                "it clips the norm of all gradients together; supported: 'value'",
            )
        config["optim_wrapper"]["clip_grad"] = dict(type="value", clip_value=clip.CLIP_VALUE)
    return config


def _optimizer(solver: CfgNode) -> dict:
    common = dict(lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    if solver.OPTIMIZER == "ADAMW":
        return dict(type="AdamW", betas=(solver.MOMENTUM, 0.999), **common)
    if solver.OPTIMIZER == "MUON":
        return dict(type="ResNeStDetMuon", momentum=solver.MOMENTUM, **common)
    return dict(type="SGD", momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)


def _by_parameter(solver: CfgNode) -> dict:
    """Arguments of `resnest_det.engine.solver.parameter_groups`, with the names that parts have in MMDetection."""
    heads = solver.HEAD_LR_FACTOR
    return dict(
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        lr_factors=dict(rpn_head=heads * solver.RPN_LR_FACTOR, roi_head=heads, semantic_head=heads),
    )


def _learning_rate(cfg: CfgNode) -> list[dict]:
    solver = cfg.SOLVER
    everything = dict(by_epoch=False, begin=0, end=solver.MAX_ITER)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR  # which is above 0, as was checked when it was read
        schedule = dict(type="CosineAnnealingLR", T_max=solver.MAX_ITER, eta_min_ratio=end, **everything)
    else:
        if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
            parts = solver.NUM_DECAYS + 1
            steps = [-(-solver.MAX_ITER * part // parts) for part in range(1, parts)]
        else:
            steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
        schedule = dict(type="MultiStepLR", milestones=steps, gamma=solver.GAMMA, **everything)
    if not solver.WARMUP_ITERS:
        return [schedule]
    # There the last step of the warm-up already has the full rate; here the step after it has.
    warmup = dict(by_epoch=False, begin=0, end=solver.WARMUP_ITERS + 1)
    if solver.WARMUP_METHOD == "linear":
        return [dict(type="LinearLR", start_factor=solver.WARMUP_FACTOR, **warmup), schedule]
    return [dict(type="ConstantLR", factor=solver.WARMUP_FACTOR, **warmup), schedule]


def runtime_config(cfg: CfgNode, checkpoint: str) -> dict:
    """Hooks, logging, folders, and the weights to start from."""
    kept = dict(max_keep_ckpts=cfg.SOLVER.CHECKPOINTS_KEPT) if cfg.SOLVER.CHECKPOINTS_KEPT else {}
    config = dict(
        default_hooks=dict(
            timer=dict(type="IterTimerHook"),
            logger=dict(type="LoggerHook", interval=20),
            param_scheduler=dict(type="ParamSchedulerHook"),
            checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=cfg.SOLVER.CHECKPOINT_PERIOD, **kept),
            sampler_seed=dict(type="DistSamplerSeedHook"),
            visualization=dict(type="DetVisualizationHook"),
        ),
        env_cfg=dict(
            cudnn_benchmark=cfg.CUDNN_BENCHMARK,
            mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
            dist_cfg=dict(backend="nccl"),
        ),
        visualizer=dict(type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"),
        log_processor=dict(type="LogProcessor", window_size=20, by_epoch=False),
        log_level="INFO",
        load_from=checkpoint,
        resume=False,
        work_dir=os.path.join("work_dirs", os.path.splitext(os.path.basename(checkpoint))[0]),
    )
    if cfg.SEED >= 0:
        config["randomness"] = dict(seed=cfg.SEED)
    return config
