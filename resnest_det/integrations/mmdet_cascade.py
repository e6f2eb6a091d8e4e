"""Detectron2's Cascade R-CNN built from MMDetection's parts: importing this module registers `Detectron2CascadeRoIHead`."""

from resnest_det.integrations.mmdet_version import check_mmdet

check_mmdet()

import torch  # noqa: E402
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures.bbox import bbox2roi  # noqa: E402
from torch import Tensor  # noqa: E402


@MODELS.register_module()
class Detectron2CascadeRoIHead(CascadeRoIHead):
    """MMDetection's cascade with the scores, the mask head and the gradients of Detectron2's.

    A score is the mean of the stages' probabilities; MMDetection's own head takes the probability of the mean logit. One mask
    head learns in the regions of the first stage and predicts in the boxes of the last; MMDetection's has one for each stage.
    True boxes among the regions are refined like the others, so only the first stage's sampler should add them. The features of
    regions receive the mean of the stages' gradients, so `stage_loss_weights` should be 1. Arguments are those of
    `CascadeRoIHead`, with one `mask_roi_extractor`, one `mask_head`, and class-agnostic box heads.
    """

    init_mask_head = StandardRoIHead.init_mask_head
    predict_mask = StandardRoIHead.predict_mask
    _mask_forward = StandardRoIHead._mask_forward

    def forward(self, x: tuple[Tensor], rpn_results_list: list, batch_data_samples: list) -> tuple:
        """What the heads compute before it becomes detections; counters of multiply-adds call this.

        Returns:
            For each image, logits of the scores (R, classes + 1) and box deltas (R, 4) of its regions; with masks, also their
            logits for the first 100 regions, (100, classes, height, width).
        """
        regions = [results.bboxes for results in rpn_results_list]
        metainfo = [sample.metainfo for sample in batch_data_samples]
        regions, logits, deltas = self._refine_roi(x, bbox2roi(regions), metainfo, tuple(map(len, regions)))
        if not self.with_mask:
            return logits, deltas
        return logits, deltas, self._mask_forward(x, torch.cat(regions)[:100])["mask_preds"]

    def _bbox_forward(self, stage: int, x: tuple[Tensor], rois: Tensor) -> dict[str, Tensor]:
        extractor = self.bbox_roi_extractor[stage]
        features = extractor(x[: extractor.num_inputs], rois)
        if features.requires_grad:
            features.register_hook(lambda gradient: gradient / self.num_stages)
        logits, deltas = self.bbox_head[stage](features)
        return dict(cls_score=logits, bbox_pred=deltas, bbox_feats=features)

    def bbox_loss(self, stage: int, x: tuple[Tensor], sampling_results: list) -> dict:
        for result in sampling_results:
            # A region with this mark would be left out of the next stage.
            result.pos_is_gt = torch.zeros_like(result.pos_is_gt)
        return super().bbox_loss(stage, x, sampling_results)

    def mask_loss(self, stage: int, x: tuple[Tensor], sampling_results: list, batch_gt_instances: list) -> dict:
        if stage > 0:
            return dict(loss_mask={})
        predictions = self._mask_forward(x, bbox2roi([result.pos_priors for result in sampling_results]))["mask_preds"]
        return self.mask_head.loss_and_target(predictions, sampling_results, batch_gt_instances, self.train_cfg[0])

    def _refine_roi(
        self, x: tuple[Tensor], rois: Tensor, batch_img_metas: list[dict], num_proposals_per_img: tuple[int, ...], **kwargs
    ) -> tuple:
        counts = num_proposals_per_img
        results = self._bbox_forward(0, x, rois)
        probabilities, deltas = results["cls_score"].float().softmax(dim=1), results["bbox_pred"].split(counts)
        for stage in range(1, self.num_stages):
            boxes = [
                self.bbox_head[stage - 1].regress_by_class(image_rois[:, 1:], None, image_deltas, meta)
                for image_rois, image_deltas, meta in zip(rois.split(counts), deltas, batch_img_metas)
            ]
            rois = torch.cat((rois[:, :1], torch.cat(boxes)), dim=1)
            results = self._bbox_forward(stage, x, rois)
            probabilities = probabilities + results["cls_score"].float().softmax(dim=1)
            deltas = results["bbox_pred"].split(counts)
        # The caller takes a softmax, which turns logarithms of probabilities back into the probabilities.
        logits = (probabilities / self.num_stages).log()
        return rois.split(counts), logits.split(counts), deltas
