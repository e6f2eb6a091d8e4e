# Deformable 3x3 convolutions in the last three stages, as in the authors' recipes.
_base_ = "./cascade-mask-rcnn_resnest50_fpn_1x_coco.py"
model = dict(backbone=dict(dcn=dict(type="DCNv2", deform_groups=2), stage_with_dcn=(False, True, True, True)))
