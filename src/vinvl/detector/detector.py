"""The detector: pictures in, regions with features, classes and attributes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vinvl.detector.boxes import BOX_HEAD_WEIGHTS, beside, clip, decode, full_precision
from vinvl.detector.config import DetectorConfig
from vinvl.detector.networks import (
    RPN,
    AttributePredictor,
    Backbone,
    BoxPredictor,
    Head,
    Proposals,
    RegionFeatures,
    RegionMaps,
    RoIHeads,
)
from vinvl.detector.selection import Selection, given_regions, select_attributes, select_regions
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

    def on_host(self) -> DetectedRegions:
        """The same in the host's memory, once the device has got so far: this does not wait (see `HostCopy`)."""
        tensors = {one.name: value for one in fields(self) if isinstance(value := getattr(self, one.name), Tensor)}
        copies: dict[str, Any] = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, **copies)


class HostCopy:
    """A tensor on its way to the host. Reading it waits for what was asked of the device until now, nothing later."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


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
    numbers = pixels.flip(-1).float()
    return (numbers - beside(numbers, MEAN)).permute(2, 0, 1).contiguous()


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
        given = None if boxes is None else checked_boxes(boxes, len(pixels))
        return self(*self._input(pixels), original_sizes, given, every_class=every_class)

    @torch.no_grad()
    def detect_ahead(
        self,
        pixels: list[Tensor],
        original_sizes: list[ImageSize],
        boxes: Sequence[Any] | None = None,
        *,
        every_class: bool = False,
    ) -> Iterator[list[DetectedRegions] | None]:
        """`detect_pixels` for a host that is to stay ahead of its device: None, and then the regions.

        None comes when nearly everything has been asked of the device, without waiting for it. What follows waits until
        it has come so far, for the number of regions: ask something else of the device before, and it is never idle.
        With nms_filter=0, which cannot be had so, the regions come at once.
        """
        given = None if boxes is None else checked_boxes(boxes, len(pixels))
        waiting = self.config.nms_filter == 0
        yield from self._look(*self._input(pixels), original_sizes, given, every_class, waiting)

    def _input(self, pixels: list[Tensor]) -> tuple[Tensor, list[ImageSize]]:
        images = [normalised(one.to(self.device, non_blocking=True)) for one in pixels]
        return pad_batch(images, self.config.pad_multiple)

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
        (found,) = self._look(images, sizes, original_sizes, boxes, every_class, waiting=True)
        assert found is not None
        return found

    def _look(
        self,
        images: Tensor,
        sizes: list[ImageSize],
        original_sizes: list[ImageSize],
        boxes: list[Tensor] | None,
        every_class: bool,
        waiting: bool,
    ) -> Iterator[list[DetectedRegions] | None]:
        """`forward`; or `detect_ahead`, where the host is not waiting."""
        if self.rpn.head.conv.weight.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        scales = [
            beside(images, [original[0] / width, original[1] / height] * 2)
            for (height, width), original in zip(sizes, original_sizes, strict=True)
        ]  # of the picture's pixels to the network's
        c4, extractor = self.backbone(images), self.roi_heads.box.feature_extractor
        if boxes is None:
            proposed = self.propose(c4, sizes, waiting)
            proposals, counts = proposed.boxes, None if waiting else proposed.counts
        else:
            resized = (one.to(scale, non_blocking=True) / scale for one, scale in zip(boxes, scales, strict=True))
            proposals, counts = [clip(one, size) for one, size in zip(resized, sizes, strict=True)], None
        maps = extractor.projections(c4)
        vectors = extractor.of_boxes(maps, proposals, self.config.boxes_per_pass, waiting).float()
        selections = self.classify(vectors, proposals, sizes, given=boxes is not None, waiting=waiting, counts=counts)
        if counts is not None:
            told = HostCopy(_numbers_of_regions(proposed, selections))
            yield None
            if min(numbers := told.read().tolist()) == NOT_SOUND:
                yield self(images, sizes, original_sizes, every_class=every_class)
                return
            selections = [one.cut(number) for one, number in zip(selections, numbers, strict=True)]
        of_images = zip(_per_image(vectors, proposals), selections, strict=True)
        features = [of_image[chosen.proposals] for of_image, chosen in of_images]
        attributes = self.describe(maps, features, selections, given=boxes is not None, waiting=waiting)
        found = []
        for i, (original, scale, one) in enumerate(zip(original_sizes, scales, selections, strict=True)):
            every: tuple[Tensor, ...] = ()
            if every_class:
                every = one.probabilities[one.proposals], one.class_boxes[one.proposals] * scale
                if boxes is None:
                    every = every[0], every[1].expand(-1, every[0].shape[1], -1)
            regions = one.boxes * scale, one.boxes, one.labels, one.scores, features[i]
            found.append(DetectedRegions(*regions, *attributes[i], original, *every))
        yield found

    def propose(self, c4: Tensor, sizes: list[ImageSize], waiting: bool = True) -> Proposals:
        """The RPN's boxes of each image, pixels of the network's input, of C4 features (B, C, H, W)."""
        logits, deltas, anchors = self.rpn(c4)
        return self.rpn.propose(logits, deltas, anchors, sizes, self.config, waiting)

    def classify(
        self,
        vectors: Tensor,
        proposals: list[Tensor],
        sizes: list[ImageSize],
        *,
        given: bool = False,
        waiting: bool = True,
        counts: Tensor | None = None,
    ) -> list[Selection]:
        """Which proposals of each image are kept as what, and their boxes, refined if the config says so.

        Args:
            vectors: (sum of N, c5_channels), of the proposals, for each image (N, 4), in turn.
            sizes: (height, width) of each image.
            given: whether the proposals are boxes that somebody gave: then they are kept as they are.
            waiting: whether the host may wait for the device.
            counts: (B,), how many of the proposals there are; None: all.
        """
        predictor = self.roi_heads.box.predictor
        candidates = [boxes[:, None] for boxes in proposals]  # (N, 1, 4), or refined for every class (N, C, 4)
        with full_precision(vectors):
            probabilities = _per_image(predictor.class_logits(vectors).softmax(dim=1), proposals)
            if self.config.boxes == "regressed" and not given:
                deltas = _per_image(predictor.box_deltas(vectors), proposals)
                decoded = (decode(*pair, BOX_HEAD_WEIGHTS) for pair in zip(deltas, candidates, strict=True))
                candidates = [clip(boxes, size) for boxes, size in zip(decoded, sizes, strict=True)]
        pairs = list(zip(probabilities, candidates, strict=True))
        if given:
            return [given_regions(*pair) for pair in pairs]
        numbers = [None] * len(pairs) if counts is None else counts.unbind()
        return [
            select_regions(*pair, self.config, waiting, number) for pair, number in zip(pairs, numbers, strict=True)
        ]

    def describe(
        self,
        maps: RegionMaps,
        features: list[Tensor],
        selections: list[Selection],
        *,
        given: bool = False,
        waiting: bool = True,
    ) -> list[tuple[Tensor, Tensor]]:
        """Attribute indices and probabilities (n, attributes_per_box) of each image's kept regions.

        They are read off the final boxes. Where those are the proposals, their feature vectors are known already.

        Args:
            maps: of the images' C4 features, from `RegionFeatures.projections`.
            features: (n, c5_channels) of the kept proposals.
            selections, given, waiting: of and as `classify`.
        """
        boxes = [chosen.boxes for chosen in selections]
        if self.attribute is None:
            return [(one.new_zeros(len(one), 0, dtype=torch.int64), one.new_zeros(len(one), 0)) for one in boxes]
        if given or self.config.boxes == "proposals":
            of_boxes = torch.cat(features)
        else:
            extractor, size = self.attribute.feature_extractor, self.config.boxes_per_pass
            of_boxes = extractor.of_boxes(maps, boxes, size, waiting).float()
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


NOT_SOUND = -1  # instead of a number of regions: the host must wait, for there were too few rounds, or no numbers


def _numbers_of_regions(proposed: Proposals, selections: list[Selection]) -> Tensor:
    """(B,) int64 of what was chosen without waiting."""
    numbers = []
    for boxes, settled, chosen in zip(proposed.boxes, proposed.settled.unbind(), selections, strict=True):
        assert chosen.number is not None and chosen.sound is not None
        sound = settled & chosen.sound & boxes.isfinite().all() & chosen.boxes.isfinite().all()
        numbers.append(torch.where(sound, chosen.number, NOT_SOUND))
    return torch.stack(numbers)


def _per_image(rows: Tensor, boxes: list[Tensor]) -> list[Tensor]:
    """Rows of all boxes, in turn, split into those of each image."""
    return list(rows.split([len(of_image) for of_image in boxes]))
