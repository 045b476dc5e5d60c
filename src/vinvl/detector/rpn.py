"""The region proposal network: where in the image something may be."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from vinvl.detector.boxes import RPN_WEIGHTS, AnchorGenerator, clip, decode, full_precision, nms
from vinvl.detector.config import Architecture, DetectorConfig


@dataclass(frozen=True)
class Proposals:
    """What may be something in one image, by descending objectness."""

    boxes: Tensor  # (N, 4) float32, pixels of the network's input
    objectness: Tensor  # (N,) float32, 0 to 1


class RPNHead(nn.Module):
    """Objectness and box deltas of every anchor."""

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.cls_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, kernel_size=1)

    def forward(self, c4: Tensor) -> tuple[Tensor, Tensor]:
        """C4 features (B, C, H, W) → logits (B, A, H, W) and deltas (B, 4·A, H, W), an anchor's four together; float32.

        Ranking thousands of anchors takes finer steps than half precision has; only the convolution before may use it.
        """
        hidden = functional.relu_(self.conv(c4)).float()
        with full_precision(hidden):
            return self.cls_logits(hidden), self.bbox_pred(hidden)


class RPN(nn.Module):
    """Anchors, the head over them, and the choice of proposals."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.anchor_generator = AnchorGenerator(architecture.anchor_sizes, architecture.anchor_ratios)
        self.head = RPNHead(architecture.c4_channels, architecture.num_anchors)

    def forward(self, c4: Tensor) -> tuple[Tensor, Tensor]:
        """C4 features (B, C, H, W) → logits (B, H·W·A) and deltas (B, H·W·A, 4), float32, in the order of `anchors`."""
        logits, deltas = self.head(c4)
        batch, _, height, width = logits.shape
        deltas = deltas.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2)
        return logits.permute(0, 2, 3, 1).flatten(1), deltas.reshape(batch, -1, 4)

    def anchors(self, c4: Tensor) -> Tensor:
        """Anchors (H·W·A, 4) of C4 features (B, C, H, W)."""
        anchors: Tensor = self.anchor_generator(c4.shape[2], c4.shape[3])
        return anchors

    @staticmethod
    def propose(
        logits: Tensor, deltas: Tensor, anchors: Tensor, image_size: tuple[int, int], config: DetectorConfig
    ) -> Proposals:
        """The proposals of one image.

        Args:
            logits: (N,), deltas: (N, 4), anchors: (N, 4), from `forward` and `anchors`.
            image_size: (height, width) without the padding; proposals are clipped to it.
            config: the rpn_ settings are read.
        """
        objectness, best = logits.sigmoid().topk(min(config.rpn_candidates, len(logits)))
        boxes = clip(decode(deltas[best], anchors[best], RPN_WEIGHTS), image_size)
        kept = nms(boxes, objectness, config.rpn_nms_threshold, limit=config.rpn_proposals)
        return Proposals(boxes[kept], objectness[kept])
