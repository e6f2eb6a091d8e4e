# MMDetection's own recipe of Cascade Mask R-CNN with ResNeSt-50; its published checkpoints load into this model.
_base_ = "mmdet::resnest/cascade-mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco.py"
custom_imports = dict(imports=["resnest_det.integrations.mmdet"])
model = dict(backbone=dict(type="ResNeStDet", init_cfg=dict(checkpoint="resnest://resnest50")))
