"""The detector: pictures in, regions with features, classes and attributes out."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vinvl.detection.boxes import BOX_HEAD_WEIGHTS, clip, decode
from vinvl.detection.config import PROPOSALS, Architecture, DetectorConfig
from vinvl.detection.heads import AttributeHead, BoxHead, RegionFeatures, RegionMaps
from vinvl.detection.precision import full_precision
from vinvl.detection.preprocessing import normalised, pad_batch, resized_pixels
from vinvl.detection.regions import DetectedRegions
from vinvl.detection.resnext import Body
from vinvl.detection.rpn import RPN
from vinvl.detection.selection import Selection, select_attributes, select_regions

ImageSize = tuple[int, int]


class Backbone(nn.Module):
    """`backbone` of published checkpoints."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.body = Body(architecture)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features


class RoIHeads(nn.Module):
    """`roi_heads` of published checkpoints."""

    def __init__(self, box: BoxHead) -> None:
        super().__init__()
        self.box = box


class Detector(nn.Module):
    """AttrRCNN: an RPN on C4 features, and a C5 head that classifies, refines and describes each proposal.

    Parameters have the names of the published checkpoints. What may make it faster, at the caller's choice:
    `detector.to(memory_format=torch.channels_last)`; `torch.autocast(device, torch.bfloat16)` around a call, in which
    boxes, scores and choices are still computed in float32 (never `detector.bfloat16()`, which would round the batch
    norms' constants); `detector.compile_networks()`.

    Args:
        config: the architecture, and how it is used; `detector.config` may be replaced by one of the same architecture.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.architecture)
        self.rpn = RPN(config.architecture)
        features = RegionFeatures(config.architecture)
        self.roi_heads = RoIHeads(BoxHead(features, config.architecture))
        self.attribute = AttributeHead(features, config.architecture)

    @property
    def device(self) -> torch.device:
        return self.rpn.head.conv.weight.device

    def compile_networks(self, **options: Any) -> None:
        """torch.compile, at their first use, of the two networks that take nearly all the time.

        options: of `torch.compile`, such as dynamic=True for pictures of many sizes.
        """
        head = self.roi_heads.box.feature_extractor.head
        self.backbone.compile(**options)
        head.after_pooling = torch.compile(head.after_pooling, **options)  # type: ignore[method-assign]

    def detect(self, images: list[Image.Image]) -> list[DetectedRegions]:
        """The regions of pictures, which go through the network as one batch, on the detector's device."""
        pixels = [resized_pixels(image, self.config) for image in images]
        return self.detect_pixels(pixels, [(image.width, image.height) for image in images])

    def detect_pixels(self, pixels: list[Tensor], original_sizes: list[ImageSize]) -> list[DetectedRegions]:
        """The same of pictures that `resized_pixels` has made ready: each uint8 (height, width, 3), on any device.

        original_sizes: (width, height) of each picture before it was resized.
        """
        images = [normalised(one.to(self.device, non_blocking=True)) for one in pixels]
        batch, sizes = pad_batch(images, self.config.pad_multiple)
        return self(batch, sizes, original_sizes)

    @torch.no_grad()
    def forward(self, images: Tensor, sizes: list[ImageSize], original_sizes: list[ImageSize]) -> list[DetectedRegions]:
        """The regions of a batch; for losses, call the parts.

        Args:
            images: (B, 3, H, W) float32, from `pad_batch`.
            sizes: (height, width) of each image in the batch, without the padding.
            original_sizes: (width, height) of each picture before it was resized.
        """
        if self.rpn.head.conv.weight.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        c4 = self.backbone(images)
        proposals = self.propose(c4, sizes)
        maps = self.roi_heads.box.feature_extractor.maps(c4)
        vectors = self.roi_heads.box.feature_extractor.of_boxes(maps, proposals, self.config.boxes_per_pass).float()
        selections, boxes = self.classify(vectors, proposals, sizes)
        attributes = self.describe(maps, vectors, proposals, selections, boxes)
        chosen = _per_image(vectors, proposals)
        return [
            DetectedRegions(
                boxes=boxes[i] * _rescaling(sizes[i], original_sizes[i], boxes[i]),
                network_boxes=boxes[i],
                labels=selections[i].labels,
                scores=selections[i].scores,
                features=chosen[i][selections[i].proposals],
                attribute_labels=attributes[i][0],
                attribute_scores=attributes[i][1],
                image_size=original_sizes[i],
            )
            for i in range(len(sizes))
        ]

    def propose(self, c4: Tensor, sizes: list[ImageSize]) -> list[Tensor]:
        """The RPN's boxes (N, 4) of each image, pixels of the network's input, of C4 features (B, C, H, W)."""
        logits, deltas = self.rpn(c4)
        anchors = self.rpn.anchors(c4)
        return [
            self.rpn.propose(logits[image], deltas[image], anchors, size, self.config).boxes
            for image, size in enumerate(sizes)
        ]

    def classify(
        self, vectors: Tensor, proposals: list[Tensor], sizes: list[ImageSize]
    ) -> tuple[list[Selection], list[Tensor]]:
        """Which proposals of each image are kept as what, and their boxes (n, 4), refined where the config says so.

        Args:
            vectors: (sum of N, c5_channels), of the proposals of all images in turn.
            proposals: for each image (N, 4).
            sizes: (height, width) of each image.
        """
        predictor = self.roi_heads.box.predictor
        with full_precision(vectors):
            probabilities = _per_image(predictor.class_logits(vectors).softmax(dim=1), proposals)
            regressed = self.config.boxes != PROPOSALS
            deltas = _per_image(predictor.box_deltas(vectors), proposals) if regressed else []
        candidates = [boxes[:, None] for boxes in proposals]
        if regressed:
            candidates = [
                clip(decode(of_image, boxes, BOX_HEAD_WEIGHTS), size)
                for of_image, boxes, size in zip(deltas, candidates, sizes, strict=True)
            ]
        selections = [
            select_regions(scores, boxes, self.config) for scores, boxes in zip(probabilities, candidates, strict=True)
        ]
        return selections, [
            boxes[chosen.proposals, chosen.labels if boxes.shape[1] > 1 else 0]
            for boxes, chosen in zip(candidates, selections, strict=True)
        ]

    def describe(
        self,
        maps: RegionMaps,
        vectors: Tensor,
        proposals: list[Tensor],
        selections: list[Selection],
        boxes: list[Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """Attribute indices and probabilities (n, attributes_per_box) of each image's kept regions.

        They are read off the final boxes. Where those are the proposals, their feature vectors are known already.

        Args:
            maps: of the images' C4 features, from `RegionFeatures.maps`.
            vectors, proposals, selections, boxes: as in and from `classify`.
        """
        if self.config.boxes == PROPOSALS:
            of_images = _per_image(vectors, proposals)
            of_boxes = torch.cat([of_images[i][chosen.proposals] for i, chosen in enumerate(selections)])
        else:
            of_boxes = self.attribute.feature_extractor.of_boxes(maps, boxes, self.config.boxes_per_pass).float()
        with full_precision(of_boxes):
            logits = self.attribute.predictor(of_boxes, torch.cat([chosen.labels for chosen in selections]))
        return [select_attributes(of_image, self.config) for of_image in _per_image(logits, boxes)]


def _per_image(rows: Tensor, boxes: list[Tensor]) -> list[Tensor]:
    """Rows of all boxes, in turn, split into those of each image."""
    return list(rows.split([len(of_image) for of_image in boxes]))


def _rescaling(size: ImageSize, original_size: ImageSize, like: Tensor) -> Tensor:
    """What boxes of the network's input are multiplied with, (4,), to be in pixels of the original image."""
    height, width = size
    return like.new_tensor([original_size[0] / width, original_size[1] / height]).repeat(2)
