"""The detector: pictures in, regions with features, classes and attributes out."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vinvl.detector.boxes import BOX_HEAD_WEIGHTS, clip, decode, full_precision, nms, nms_within_classes
from vinvl.detector.config import DetectorConfig
from vinvl.detector.networks import (
    RPN,
    AttributePredictor,
    Backbone,
    BoxPredictor,
    Head,
    RegionFeatures,
    RegionMaps,
    RoIHeads,
)

ImageSize = tuple[int, int]


@dataclass(frozen=True)
class DetectedRegions:
    """The regions of one image by descending score; n of them."""

    boxes: Tensor  # (n, 4) float32, pixels of the original image; where regressed, at most a pixel outside it
    network_boxes: Tensor  # (n, 4) float32, pixels of the network's input
    labels: Tensor  # (n,) int64, class from 1
    scores: Tensor  # (n,) float32, probability of the class
    features: Tensor  # (n, 2048) float32, of the proposals that the boxes were refined from
    attribute_labels: Tensor  # (n, 16) int64, by descending probability; where that is 0 the index means nothing
    attribute_scores: Tensor  # (n, 16) float32
    image_size: tuple[int, int]  # (width, height) of the original image

    def __len__(self) -> int:
        return len(self.labels)


# From a picture to the network's input, exactly as the published extractor does it.

COLOUR_ORDER = "BGR"
MEAN = (103.530, 116.280, 123.675)  # of blue, green and red, 0 to 255; the standard deviation is not divided by


def resized_size(width: int, height: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(width, height) that an image is resized to: the shorter side to min_size, less if the longer exceeds max_size.

    Both roundings are the published ones, which leave the longer side a little off max_size.
    """
    short, long = min(width, height), max(width, height)
    size = min_size
    if long / short * min_size > max_size:
        size = max(1, round(max_size * short / long))
    other = int(size * long / short)
    return (size, other) if width <= height else (other, size)


def padded_size(width: int, height: int, config: DetectorConfig) -> tuple[int, int]:
    """(width, height) of a batch that holds only an image of this (width, height): resized, then padded."""
    resized = resized_size(width, height, config.min_size, config.max_size)
    across, down = (-(-side // config.pad_multiple) * config.pad_multiple for side in resized)
    return across, down


def resized_pixels(image: Image.Image, config: DetectorConfig) -> Tensor:
    """Uint8 (height, width, 3) of a picture of any mode, red-green-blue, resized; EXIF is not looked at."""
    size = resized_size(image.width, image.height, config.min_size, config.max_size)
    resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


def normalised(pixels: Tensor) -> Tensor:
    """Float32 (3, height, width), blue-green-red less the mean, of `resized_pixels`, on their device."""
    return (pixels.flip(-1).float() - pixels.new_tensor(MEAN, dtype=torch.float32)).permute(2, 0, 1).contiguous()


def pad_batch(images: list[Tensor], multiple: int = 1) -> tuple[Tensor, list[ImageSize]]:
    """(B, 3, H, W), zero at the bottom and right of smaller images, and each image's (height, width) in it.

    `images`: each (3, height, width), from `normalised`; H and W are rounded up to a `multiple`.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


# Which regions and attributes of an image are kept.


class Selection(NamedTuple):
    """The kept regions of an image by descending score: (n,) each."""

    proposals: Tensor  # int64, which of the image's proposals
    labels: Tensor  # int64, class from 1
    scores: Tensor  # float32, probability of that class


def select_regions(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> Selection:
    """The regions of one image: all above the score threshold, but at least min_boxes and at most max_boxes.

    Args:
        probabilities: (N, C) of each proposal's classes, background first.
        boxes: (N, C, 4), a box for every class, or (N, 1, 4), the same for all.
    """
    if config.nms_filter == 1:
        scores, labels = _best_surviving_class(probabilities, boxes, config)
        order = scores.argsort(descending=True, stable=True)
        order = order[: int((scores > 0).sum())]
    else:
        scores, labels = probabilities[:, 1:].max(dim=1)
        order = nms(boxes[:, 0], scores, config.agnostic_nms_threshold, limit=config.max_boxes)
    enough = int((scores[order] >= config.score_threshold).sum())
    chosen = order[: min(max(enough, config.min_boxes), config.max_boxes)]
    return Selection(chosen, labels[chosen] + 1, scores[chosen])


def _best_surviving_class(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Score (0: none) and index among the foreground classes, (N,) each, of each proposal's best class that survived.

    Most of the many classes of a proposal have scores that cannot matter; they are looked at only where better ones do
    not make up the fewest boxes wanted. Scores below the last floor are 0, the others are those of a full search.
    """
    foreground = probabilities[:, 1:]
    own_boxes = boxes[:, 1:] if boxes.shape[1] > 1 else boxes
    for floor in (config.score_threshold, config.score_threshold / 10, 0.0):
        survives = nms_within_classes(own_boxes, foreground, config.class_nms_threshold, floor)
        scores, labels = (foreground * survives).max(dim=1)
        if int((scores > 0).sum()) >= config.min_boxes:
            break
    return scores, labels


def select_attributes(logits: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Attribute indices, int64, and probabilities (n, attributes_per_box), by descending probability.

    Entries of probability 0 stand for no attribute; their index means nothing. Where the detector knows fewer
    attributes than attributes_per_box, there are as many columns as it knows. `logits`: (n, A), "no attribute" first.
    """
    probabilities = logits.float().softmax(dim=1)
    probabilities[:, 0] = 0
    probabilities = probabilities.masked_fill(probabilities <= config.attribute_threshold, 0)
    scores, labels = probabilities.topk(min(config.attributes_per_box, logits.shape[1]), dim=1)
    return labels, scores


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
        self.roi_heads = RoIHeads(Head(features, BoxPredictor(config.architecture)))
        self.attribute = Head(features, AttributePredictor(config.architecture))

    @property
    def device(self) -> torch.device:
        return self.rpn.head.conv.weight.device

    def compile_networks(self, **options: Any) -> None:
        """torch.compile, with its options, at their first use, of the two networks that take nearly all the time."""
        features = self.roi_heads.box.feature_extractor
        self.backbone.compile(**options)
        features.after_pooling = torch.compile(features.after_pooling, **options)  # type: ignore[method-assign]

    def detect(self, images: list[Image.Image]) -> list[DetectedRegions]:
        """The regions of pictures, which go through the network as one batch, on the detector's device."""
        return self.detect_pixels(
            [resized_pixels(image, self.config) for image in images], [one.size for one in images]
        )

    def detect_pixels(self, pixels: list[Tensor], original_sizes: list[ImageSize]) -> list[DetectedRegions]:
        """The same of pictures from `resized_pixels`, on any device; `original_sizes`: (width, height) before that."""
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
        c4, extractor = self.backbone(images), self.roi_heads.box.feature_extractor
        proposals = self.propose(c4, sizes)
        maps = extractor.projections(c4)
        vectors = extractor.of_boxes(maps, proposals, self.config.boxes_per_pass).float()
        selections, boxes = self.classify(vectors, proposals, sizes)
        of_images = zip(_per_image(vectors, proposals), selections, strict=True)
        features = [of_image[chosen.proposals] for of_image, chosen in of_images]
        attributes = self.describe(maps, features, selections, boxes)
        found = []
        for i, ((height, width), original, (_, labels, scores)) in enumerate(
            zip(sizes, original_sizes, selections, strict=True)
        ):
            scaled = boxes[i] * boxes[i].new_tensor([original[0] / width, original[1] / height]).repeat(2)
            found.append(DetectedRegions(scaled, boxes[i], labels, scores, features[i], *attributes[i], original))
        return found

    def propose(self, c4: Tensor, sizes: list[ImageSize]) -> list[Tensor]:
        """The RPN's boxes (N, 4) of each image, pixels of the network's input, of C4 features (B, C, H, W)."""
        logits, deltas, anchors = self.rpn(c4)
        return [self.rpn.propose(logits[i], deltas[i], anchors, size, self.config)[0] for i, size in enumerate(sizes)]

    def classify(
        self, vectors: Tensor, proposals: list[Tensor], sizes: list[ImageSize]
    ) -> tuple[list[Selection], list[Tensor]]:
        """Which proposals of each image are kept as what, and their boxes (n, 4), refined if the config says so.

        Args:
            vectors: (sum of N, c5_channels), of the proposals, for each image (N, 4), in turn.
            sizes: (height, width) of each image.
        """
        predictor = self.roi_heads.box.predictor
        candidates = [boxes[:, None] for boxes in proposals]  # (N, 1, 4), or refined for every class (N, C, 4)
        with full_precision(vectors):
            probabilities = _per_image(predictor.class_logits(vectors).softmax(dim=1), proposals)
            if self.config.boxes == "regressed":
                deltas = _per_image(predictor.box_deltas(vectors), proposals)
                decoded = (decode(*pair, BOX_HEAD_WEIGHTS) for pair in zip(deltas, candidates, strict=True))
                candidates = [clip(boxes, size) for boxes, size in zip(decoded, sizes, strict=True)]
        selections = [select_regions(*pair, self.config) for pair in zip(probabilities, candidates, strict=True)]
        return selections, [
            boxes[chosen.proposals, chosen.labels if boxes.shape[1] > 1 else 0]
            for boxes, chosen in zip(candidates, selections, strict=True)
        ]

    def describe(
        self, maps: RegionMaps, features: list[Tensor], selections: list[Selection], boxes: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Attribute indices and probabilities (n, attributes_per_box) of each image's kept regions.

        They are read off the final boxes. Where those are the proposals, their feature vectors are known already.

        Args:
            maps: of the images' C4 features, from `RegionFeatures.projections`.
            features: (n, c5_channels) of the kept proposals.
            selections, boxes: from `classify`.
        """
        if self.config.boxes == "proposals":
            of_boxes = torch.cat(features)
        else:
            of_boxes = self.attribute.feature_extractor.of_boxes(maps, boxes, self.config.boxes_per_pass).float()
        with full_precision(of_boxes):
            logits = self.attribute.predictor(of_boxes, torch.cat([chosen.labels for chosen in selections]))
        return [select_attributes(of_image, self.config) for of_image in _per_image(logits, boxes)]


def _per_image(rows: Tensor, boxes: list[Tensor]) -> list[Tensor]:
    """Rows of all boxes, in turn, split into those of each image."""
    return list(rows.split([len(of_image) for of_image in boxes]))
