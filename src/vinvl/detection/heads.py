"""What is said of single regions: their feature vector, class, box and attributes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vinvl.detection.config import Architecture
from vinvl.detection.resnext import RegionHead
from vinvl.detection.roi_align import box_bins
from vinvl.errors import UserError


@dataclass(frozen=True)
class RegionMaps:
    """What boxes are read off."""

    c4: Tensor  # (B, c4_channels, H, W)
    projections: tuple[Tensor, Tensor]  # see `RegionHead.projections`


class RegionFeatures(nn.Module):
    """Boxes on C4 features → feature vectors; one module that the box and the attribute heads share."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.head = RegionHead(architecture)
        self.size = architecture.c5_channels

    def forward(self, c4: Tensor, boxes: list[Tensor], boxes_per_pass: int) -> Tensor:
        """(sum of boxes, c5_channels), images in turn.

        Args:
            c4: (B, c4_channels, H, W).
            boxes: for each image (n, 4) in pixels of the network's input.
            boxes_per_pass: how many are held in memory at once.
        """
        return self.of_boxes(self.maps(c4), boxes, boxes_per_pass)

    def maps(self, c4: Tensor) -> RegionMaps:
        """What is the same for all boxes of a batch of images; for `of_boxes`."""
        return RegionMaps(c4, self.head.projections(c4))

    def of_boxes(self, maps: RegionMaps, boxes: list[Tensor], boxes_per_pass: int) -> Tensor:
        """(sum of boxes, c5_channels), images in turn; arguments as of `forward`.

        Raises:
            UserError: a box is not of numbers.
        """
        if not all(of_image.isfinite().all() for of_image in boxes):
            raise UserError("The detector finds boxes of NaN or infinite size: its weights are damaged or diverged.")
        counts = torch.tensor([len(of_image) for of_image in boxes], device=maps.c4.device)
        images = torch.arange(len(boxes), device=maps.c4.device).repeat_interleave(counts)
        passes = zip(torch.cat(boxes).split(boxes_per_pass), images.split(boxes_per_pass), strict=True)
        vectors = [self._of_one_pass(maps, part, of_part) for part, of_part in passes if len(part)]
        return torch.cat(vectors) if vectors else maps.c4.new_zeros(0, self.size)

    def in_one_pass(self, c4: Tensor, boxes: list[Tensor]) -> Tensor:
        """The same of all boxes together, for training: norms that are being trained see them as one batch."""
        return self(c4, boxes, max(1, sum(map(len, boxes))))

    def _of_one_pass(self, maps: RegionMaps, boxes: Tensor, images: Tensor) -> Tensor:
        """(n, c5_channels) of boxes (n, 4) of the images (n,)."""
        bins = box_bins(boxes, images, maps.c4)
        through, around = maps.projections
        vectors: Tensor = self.head.after_pooling(bins.pool(through), bins.every_second().pool(around))
        return vectors


class BoxPredictor(nn.Module):
    """Class and box of a region from its feature vector."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.cls_score = nn.Linear(architecture.c5_channels, architecture.num_classes)
        self.bbox_pred = nn.Linear(architecture.c5_channels, architecture.num_classes * 4)

    def class_logits(self, vectors: Tensor) -> Tensor:
        """(n, c5_channels) → (n, num_classes), background first."""
        logits: Tensor = self.cls_score(vectors)
        return logits

    def box_deltas(self, vectors: Tensor) -> Tensor:
        """(n, c5_channels) → (n, num_classes, 4), the deltas of a proposal for each class."""
        deltas: Tensor = self.bbox_pred(vectors)
        return deltas.unflatten(1, (-1, 4))


class AttributePredictor(nn.Module):
    """Attributes of a region from its feature vector and its class."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size = architecture.class_embedding_size
        self.cls_embedding = nn.Embedding(architecture.num_classes, size)
        self.fc_attr = nn.Linear(architecture.c5_channels + size, architecture.attribute_hidden_size)
        self.attr_score = nn.Linear(architecture.attribute_hidden_size, architecture.num_attributes)

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, num_attributes), "no attribute" first, of feature vectors (n, c5_channels) and classes (n,)."""
        embedded = self.cls_embedding(labels).to(vectors.dtype)
        logits: Tensor = self.attr_score(functional.relu(self.fc_attr(torch.cat([vectors, embedded], dim=1))))
        return logits


class BoxHead(nn.Module):
    """`roi_heads.box` of published checkpoints."""

    def __init__(self, features: RegionFeatures, architecture: Architecture) -> None:
        super().__init__()
        self.feature_extractor = features
        self.predictor = BoxPredictor(architecture)


class AttributeHead(nn.Module):
    """`attribute` of published checkpoints; its feature_extractor is the box head's."""

    def __init__(self, features: RegionFeatures, architecture: Architecture) -> None:
        super().__init__()
        self.feature_extractor = features
        self.predictor = AttributePredictor(architecture)
