# MMDetection's recipe of Panoptic FPN, with what its recipes of other detectors change for ResNeSt.
_base_ = "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["resnest_det.integrations.mmdet"])
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    data_preprocessor=dict(mean=[123.68, 116.779, 103.939], std=[58.393, 57.12, 57.375]),
    backbone=dict(
        type="ResNeStDet", stem_channels=64, norm_cfg=norm_cfg, norm_eval=False, init_cfg=dict(checkpoint="resnest://resnest50")
    ),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadPanopticAnnotations", with_bbox=True, with_mask=True, with_seg=True),
    dict(
        type="RandomChoiceResize",
        scales=[(1333, 640), (1333, 672), (1333, 704), (1333, 736), (1333, 768), (1333, 800)],
        keep_ratio=True,
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
