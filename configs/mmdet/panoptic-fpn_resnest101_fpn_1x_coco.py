_base_ = "./panoptic-fpn_resnest50_fpn_1x_coco.py"
model = dict(backbone=dict(depth=101, stem_channels=128, init_cfg=dict(checkpoint="resnest://resnest101")))
