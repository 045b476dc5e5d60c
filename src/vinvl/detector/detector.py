"""The detector: pictures in, regions with features, classes and attributes out."""

from collections.abc import Sequence
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
from vinvl.run.errors import UserError

ImageSize = tuple[int, int]


@dataclass(frozen=True)
class DetectedRegions:
    """The n regions of one image by descending score; with nms_filter=0 by class, then so; given boxes as given.

    Attributes:
        class_probabilities, class_boxes: only where they are asked for.
    """

    boxes: Tensor  # (n, 4) float32, pixels of the original image; where regressed, at most a pixel outside it
    network_boxes: Tensor  # (n, 4) float32, pixels of the network's input
    labels: Tensor  # (n,) int64, class from 1
    scores: Tensor  # (n,) float32, probability of the class
    features: Tensor  # (n, 2048) float32, of the proposals that the boxes were refined from
    attribute_labels: Tensor  # (n, 16) int64, by descending probability; where that is 0 the index means nothing
    attribute_scores: Tensor  # (n, 16) float32; both (n, 0) of a detector without attributes
    image_size: tuple[int, int]  # (width, height) of the original image
    class_probabilities: Tensor | None = None  # (n, C) float32, background first: the published scores_all
    class_boxes: Tensor | None = None  # (n, C, 4) as `boxes`, of given ones (n, 1, 4): the published boxes_all

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


HALVINGS = 10  # of the score threshold, with nms_filter=0, for an image with too few regions


class Selection(NamedTuple):
    """The kept regions of an image in their order: n each."""

    proposals: Tensor  # (n,) int64, which of the image's proposals
    labels: Tensor  # (n,) int64, class from 1
    scores: Tensor  # (n,) float32, probability of that class
    boxes: Tensor  # (n, 4) float32, pixels of the network's input
    probabilities: Tensor  # (N, C) float32, of all proposals
    class_boxes: Tensor  # (N, C, 4), of all proposals for each class, or (N, 1, 4), the same for all


def select_regions(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> Selection:
    """The regions of one image: all above the score threshold, but at least min_boxes and at most max_boxes.

    Args:
        probabilities: (N, C) of each proposal's classes, background first.
        boxes: (N, C, 4), a box for every class, or (N, 1, 4), the same for all.
    """
    if config.nms_filter == 0:
        return _selected(*_surviving_classes(probabilities, boxes, config), probabilities, boxes)
    if config.nms_filter == 1:
        scores, labels = _best_surviving_class(probabilities, boxes, config)
        order = scores.argsort(descending=True, stable=True)
        order = order[: int((scores > 0).sum())]
    else:
        scores, labels = probabilities[:, 1:].max(dim=1)
        order = nms(boxes[:, 0], scores, config.agnostic_nms_threshold, limit=config.max_boxes)
    enough = int((scores[order] >= config.score_threshold).sum())
    chosen = order[: min(max(enough, config.min_boxes), config.max_boxes)]
    return _selected(chosen, labels[chosen] + 1, probabilities, boxes)


def given_regions(probabilities: Tensor, boxes: Tensor) -> Selection:
    """All of the boxes, in their order, each of its best class, as the published FORCE_BOXES; as `select_regions`."""
    labels = probabilities[:, 1:].argmax(dim=1) + 1
    return _selected(torch.arange(len(labels), device=labels.device), labels, probabilities, boxes)


def _selected(proposals: Tensor, labels: Tensor, probabilities: Tensor, boxes: Tensor) -> Selection:
    own = boxes[proposals, labels if boxes.shape[1] > 1 else 0]
    return Selection(proposals, labels, probabilities[proposals, labels], own, probabilities, boxes)


def _surviving_classes(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Proposals and their classes, (n,) each, by class, then descending score; a proposal may have several.

    Of all that are above the threshold and survive the suppression within their class, those that score no less than
    the max_boxes-th best. The threshold is halved, ten times at most, while there are fewer than min_boxes.
    """
    foreground, threshold = probabilities[:, 1:], config.score_threshold
    own_boxes = boxes[:, 1:] if boxes.shape[1] > 1 else boxes
    for _ in range(1 + HALVINGS):
        survives = nms_within_classes(own_boxes, foreground, config.agnostic_nms_threshold, threshold)
        survives &= foreground > threshold
        if int(survives.sum()) >= config.min_boxes:
            break
        threshold /= 2
    classes, proposals = survives.T.nonzero(as_tuple=True)
    scores = foreground[proposals, classes]
    if len(scores) > config.max_boxes:
        enough = scores >= scores.topk(config.max_boxes).values[-1]
        classes, proposals, scores = classes[enough], proposals[enough], scores[enough]
    order = scores.argsort(descending=True, stable=True)
    order = order[classes[order].argsort(stable=True)]
    return proposals[order], classes[order] + 1


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

    Without attributes in its architecture it has no head for them, and describes nothing.

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
        self.attribute: Head[AttributePredictor] | None = None
        if config.architecture.num_attributes:
            self.attribute = Head(features, AttributePredictor(config.architecture))

    @property
    def device(self) -> torch.device:
        return self.rpn.head.conv.weight.device

    def compile_networks(self, **options: Any) -> None:
        """torch.compile, with its options, at their first use, of the two networks that take nearly all the time."""
        features = self.roi_heads.box.feature_extractor
        self.backbone.compile(**options)
        features.after_pooling = torch.compile(features.after_pooling, **options)  # type: ignore[method-assign]

    def detect(
        self, images: list[Image.Image], boxes: Sequence[Any] | None = None, *, every_class: bool = False
    ) -> list[DetectedRegions]:
        """The regions of pictures, which go through the network as one batch, on the detector's device.

        Args:
            boxes: for each picture (n, 4), x1 y1 x2 y2 in its pixels, a tensor, an array or lists: these are the
                regions, as they are given but for being clipped to the picture; nothing is proposed or left out.
            every_class: also the probability and the box of each region for every class.

        Raises:
            UserError: boxes that are none.
        """
        pixels = [resized_pixels(image, self.config) for image in images]
        return self.detect_pixels(pixels, [one.size for one in images], boxes, every_class=every_class)

    def detect_pixels(
        self,
        pixels: list[Tensor],
        original_sizes: list[ImageSize],
        boxes: Sequence[Any] | None = None,
        *,
        every_class: bool = False,
    ) -> list[DetectedRegions]:
        """The same of pictures from `resized_pixels`, on any device; `original_sizes`: (width, height) before that."""
        images = [normalised(one.to(self.device, non_blocking=True)) for one in pixels]
        batch, sizes = pad_batch(images, self.config.pad_multiple)
        given = None if boxes is None else checked_boxes(boxes, len(pixels))
        return self(batch, sizes, original_sizes, given, every_class=every_class)

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        sizes: list[ImageSize],
        original_sizes: list[ImageSize],
        boxes: list[Tensor] | None = None,
        *,
        every_class: bool = False,
    ) -> list[DetectedRegions]:
        """The regions of a batch; for losses, call the parts.

        Args:
            images: (B, 3, H, W) float32, from `pad_batch`.
            sizes: (height, width) of each image in the batch, without the padding.
            original_sizes: (width, height) of each picture before it was resized.
            boxes, every_class: as `detect`.
        """
        if self.rpn.head.conv.weight.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        scales = [
            images.new_tensor([original[0] / width, original[1] / height]).repeat(2)
            for (height, width), original in zip(sizes, original_sizes, strict=True)
        ]  # of the picture's pixels to the network's
        c4, extractor = self.backbone(images), self.roi_heads.box.feature_extractor
        if boxes is None:
            proposals = self.propose(c4, sizes)
        else:
            resized = (one.to(scale) / scale for one, scale in zip(boxes, scales, strict=True))
            proposals = [clip(one, size) for one, size in zip(resized, sizes, strict=True)]
        maps = extractor.projections(c4)
        vectors = extractor.of_boxes(maps, proposals, self.config.boxes_per_pass).float()
        selections = self.classify(vectors, proposals, sizes, given=boxes is not None)
        of_images = zip(_per_image(vectors, proposals), selections, strict=True)
        features = [of_image[chosen.proposals] for of_image, chosen in of_images]
        attributes = self.describe(maps, features, selections, given=boxes is not None)
        found = []
        for i, (original, scale, one) in enumerate(zip(original_sizes, scales, selections, strict=True)):
            every: tuple[Tensor, ...] = ()
            if every_class:
                every = one.probabilities[one.proposals], one.class_boxes[one.proposals] * scale
                if boxes is None:
                    every = every[0], every[1].expand(-1, every[0].shape[1], -1)
            regions = one.boxes * scale, one.boxes, one.labels, one.scores, features[i]
            found.append(DetectedRegions(*regions, *attributes[i], original, *every))
        return found

    def propose(self, c4: Tensor, sizes: list[ImageSize]) -> list[Tensor]:
        """The RPN's boxes (N, 4) of each image, pixels of the network's input, of C4 features (B, C, H, W)."""
        logits, deltas, anchors = self.rpn(c4)
        return [self.rpn.propose(logits[i], deltas[i], anchors, size, self.config)[0] for i, size in enumerate(sizes)]

    def classify(
        self, vectors: Tensor, proposals: list[Tensor], sizes: list[ImageSize], *, given: bool = False
    ) -> list[Selection]:
        """Which proposals of each image are kept as what, and their boxes, refined if the config says so.

        Args:
            vectors: (sum of N, c5_channels), of the proposals, for each image (N, 4), in turn.
            sizes: (height, width) of each image.
            given: whether the proposals are boxes that somebody gave: then they are kept as they are.
        """
        predictor = self.roi_heads.box.predictor
        candidates = [boxes[:, None] for boxes in proposals]  # (N, 1, 4), or refined for every class (N, C, 4)
        with full_precision(vectors):
            probabilities = _per_image(predictor.class_logits(vectors).softmax(dim=1), proposals)
            if self.config.boxes == "regressed" and not given:
                deltas = _per_image(predictor.box_deltas(vectors), proposals)
                decoded = (decode(*pair, BOX_HEAD_WEIGHTS) for pair in zip(deltas, candidates, strict=True))
                candidates = [clip(boxes, size) for boxes, size in zip(decoded, sizes, strict=True)]
        pairs = zip(probabilities, candidates, strict=True)
        return [given_regions(*pair) if given else select_regions(*pair, self.config) for pair in pairs]

    def describe(
        self, maps: RegionMaps, features: list[Tensor], selections: list[Selection], *, given: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """Attribute indices and probabilities (n, attributes_per_box) of each image's kept regions.

        They are read off the final boxes. Where those are the proposals, their feature vectors are known already.

        Args:
            maps: of the images' C4 features, from `RegionFeatures.projections`.
            features: (n, c5_channels) of the kept proposals.
            selections, given: of and as `classify`.
        """
        boxes = [chosen.boxes for chosen in selections]
        if self.attribute is None:
            return [(one.new_zeros(len(one), 0, dtype=torch.int64), one.new_zeros(len(one), 0)) for one in boxes]
        if given or self.config.boxes == "proposals":
            of_boxes = torch.cat(features)
        else:
            of_boxes = self.attribute.feature_extractor.of_boxes(maps, boxes, self.config.boxes_per_pass).float()
        with full_precision(of_boxes):
            logits = self.attribute.predictor(of_boxes, torch.cat([chosen.labels for chosen in selections]))
        return [select_attributes(of_image, self.config) for of_image in _per_image(logits, boxes)]


def checked_boxes(boxes: Sequence[Any], pictures: int) -> list[Tensor]:
    """Float32 (n, 4) for each of so many pictures. Raises UserError for what is no x1, y1, x2, y2 of a box."""
    if len(boxes) != pictures:
        raise UserError(f"There are boxes of {len(boxes)} pictures, and {pictures} pictures: give (n, 4) for each.")
    checked = []
    for number, one in enumerate(boxes):
        try:
            tensor = torch.as_tensor(one, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):  # lists of unlike lengths, or of no numbers
            tensor = torch.zeros(1)
        tensor = tensor.reshape(0, 4) if tensor.numel() == 0 else tensor
        bad = tensor.dim() != 2 or tensor.shape[1] != 4 or not bool(tensor.isfinite().all())
        if bad or bool((tensor[:, 2:] < tensor[:, :2]).any()):
            raise UserError(f"The boxes of picture {number} are no (n, 4) of finite x1, y1, x2, y2 in pixels.")
        checked.append(tensor)
    return checked


def _per_image(rows: Tensor, boxes: list[Tensor]) -> list[Tensor]:
    """Rows of all boxes, in turn, split into those of each image."""
    return list(rows.split([len(of_image) for of_image in boxes]))
