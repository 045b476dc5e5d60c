"""Cheap scores from a dual encoder: captions and images become vectors apart from each other, distilled from the model.

It is one VinVL encoder that starts as the model's, and a projection for each side. Shapes: N images, M captions, V
numbers a vector, B pairs of a training batch.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR

from vinvl.data.inputs import RegionText
from vinvl.data.text import RaggedTokens
from vinvl.models.answering import VinVLForAnswering
from vinvl.models.config import VinVLConfig
from vinvl.models.encoder import VinVLModel
from vinvl.models.weight_files import load_published_state_dict
from vinvl.retrieval.data import Fold, RetrievalCandidates, RetrievalPairs, caption_first
from vinvl.retrieval.scoring import PairScorer, caption_chunks
from vinvl.retrieval.two_stage import Cheap, CheapScores
from vinvl.run.checkpoint import load_into
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write

FORMAT = "vinvl dual encoder 1"
# Ours, chosen on the demo world.
VECTOR = 128  # V
BATCH = 24  # images of a step, each with a caption; the model scores all combinations
RATE_TIMES_WIDTH = 0.04  # the learning rate at width 768 is 5e-5
WARMUP, WEIGHT_DECAY, FIRST_SCALE = 50, 0.01, 10.0
ENCODED = 256  # images or captions in one forward pass


class DualEncoder(nn.Module):
    """Captions and images → vectors of length 1, whose product is the cheap score."""

    def __init__(self, config: VinVLConfig) -> None:
        super().__init__()
        self.bert = VinVLModel(config)
        self.caption = nn.Linear(config.hidden_size, VECTOR)
        self.image = nn.Linear(config.hidden_size, VECTOR)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))  # of the products, in training

    def captions(self, tokens: RaggedTokens, captions: np.ndarray, text: RegionText) -> Tensor:
        """(M, V) float32 of the captions (M,) int64, rows of `tokens`."""
        device = self.log_scale.device
        chunks = caption_chunks(
            tokens, captions, max_rows=ENCODED, max_tokens=text.limits.max_tokens, special=text.special, device=device
        )
        pooled = []
        for chunk in chunks:
            mask = torch.arange(chunk.input_ids.shape[1], device=device) < chunk.lengths[chunk.length_index, None]
            pooled.append(self.bert(chunk.input_ids, attention_mask=mask, only_first=True).pooler_output)
        order = torch.cat([chunk.columns for chunk in chunks]).argsort()
        return F.normalize(self.caption(torch.cat(pooled)[order]), dim=-1)

    def images(self, tag_ids: Sequence[np.ndarray], regions: Sequence[Tensor], text: RegionText) -> Tensor:
        """(N, V) float32 of images as `PairScorer.score` takes them, with no caption before their tags."""
        device, none = self.log_scale.device, np.zeros(0, dtype=np.int64)
        pairs = [caption_first(none, ids, max_tokens=text.limits.max_tokens, special=text.special) for ids in tag_ids]
        ids, types = (  # padding is hidden, whatever it is
            pad_sequence(list(map(torch.from_numpy, one)), batch_first=True) for one in zip(*pairs, strict=True)
        )
        rows = pad_sequence(list(regions), batch_first=True)  # (N, R, D)
        words, boxes = torch.tensor([[len(own), len(of)] for (own, _), of in zip(pairs, regions, strict=True)]).T
        mask = torch.cat([torch.arange(of.shape[1]) < n[:, None] for of, n in ((ids, words), (rows, boxes))], dim=1)
        inputs = {"token_type_ids": types, "attention_mask": mask, "region_features": rows}
        on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
        encoded = self.bert(ids.to(device), **on_device, only_first=True)
        return F.normalize(self.image(encoded.pooler_output), dim=-1)


def images_of(text: RegionText, stored: np.ndarray, device: torch.device) -> tuple[list[np.ndarray], list[Tensor]]:
    """Tags and regions of images, as `PairScorer.score` takes them; `stored` (N,): where they are in the store."""
    places = stored.tolist()
    regions = [torch.from_numpy(text.region_rows(place)).to(device) for place in places]
    return [text.tag_ids(place).astype(np.int64) for place in places], regions


def distilled(
    model: VinVLForAnswering, scorer: PairScorer, pairs: RetrievalPairs, *, steps: int, seed: int,
    tell: Callable[[int], None],
) -> DualEncoder:  # fmt: skip
    """A dual encoder of a model, trained to choose as it does among the images and captions of a batch.

    Labels are not looked at: alone or added to this loss they made it agree less with the model on the demo world.

    Args:
        model: in eval mode, on the device to train on.
        scorer: of the model.
        tell: is told of each step, from 1.
    """
    device, generator = model.device, np.random.default_rng(seed)
    batch = min(BATCH, len(pairs.images))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        student = DualEncoder(model.config).to(device).train()
        student.bert.load_state_dict(model.bert.state_dict())
        rate = RATE_TIMES_WIDTH / model.config.hidden_size
        optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
        schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - step / steps))
        for step in range(steps):
            images = generator.choice(len(pairs.images), batch, replace=False)
            captions = generator.integers(pairs.offsets[images], pairs.offsets[images + 1])
            tag_ids, regions = images_of(pairs.region_text, pairs.images[images], device)
            with torch.no_grad():
                taught = scorer.score(tag_ids, regions, pairs.tokens, captions)
            of_images = student.images(tag_ids, regions, pairs.region_text)
            of_captions = student.captions(pairs.tokens, captions, pairs.region_text)
            loss = distillation_loss(student.log_scale.exp() * of_images @ of_captions.T, taught)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tell(step + 1)
    return student.eval()


def distillation_loss(scores: Tensor, taught: Tensor) -> Tensor:
    """How far the choices of captions for images, and of images for captions, are from the model's, a scalar.

    Both are scores (B, B) of the same images with the same captions, those of the model `taught`.
    """
    both = (scores, taught), (scores.T, taught.T)
    parts = [F.kl_div(ours.log_softmax(-1), models.softmax(-1), reduction="batchmean") for ours, models in both]
    return parts[0] + parts[1]


def save_dual_encoder(encoder: DualEncoder, path: Path, model_digest: str) -> None:
    """Writes it whole or not at all; `model_digest` says of which model it is."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(save(tensors, {"format": FORMAT, "model": model_digest}))


def read_dual_encoder(path: Path, config: VinVLConfig, model_digest: str) -> DualEncoder:
    """The dual encoder of the model with this configuration and digest, in eval mode.

    Raises:
        UserError: there is no such file, it is damaged or something else, or it is of another model.
    """
    tensors = load_published_state_dict(path)
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    except (SafetensorError, OSError):  # no .safetensors file, which the name does not say
        said = {}
    if said.get("format") != FORMAT:
        raise UserError(f"{path} is no dual encoder: pass data.rerank_by=dual_encoder, which makes one.")
    if said.get("model") != model_digest:
        raise UserError(
            f"{path} is a dual encoder of another model: pass data.rerank_by=dual_encoder, which makes one of this one."
        )
    encoder = DualEncoder(config)
    load_into(encoder, {"state_dict": tensors}, path)
    return encoder.eval()


def vectors_of(encoder: DualEncoder, candidates: RetrievalCandidates) -> tuple[np.ndarray, np.ndarray]:
    """Those of all candidates: images (N, V) and captions (M, V), float32.

    Raises:
        UserError: a vector is not finite.
    """
    text, device, stored = candidates.region_text, encoder.log_scale.device, candidates.images
    with torch.inference_mode():
        captions = encoder.captions(candidates.tokens, np.arange(len(candidates.tokens)), text)
        parts = [
            encoder.images(*images_of(text, stored[start : start + ENCODED], device), text)
            for start in range(0, len(stored), ENCODED)
        ]
        both = torch.cat(parts).cpu().numpy(), captions.cpu().numpy()
    if not all(np.isfinite(one).all() for one in both):
        raise UserError("The dual encoder gives vectors that are NaN or infinite: remove its file to train it again.")
    return both


def vector_products(images: np.ndarray, captions: np.ndarray) -> Cheap:
    """The products of the vectors (N, V) and (M, V) of all candidates as cheap scores."""
    digest = hashlib.blake2b(images.tobytes() + captions.tobytes(), digest_size=8).hexdigest()

    def of_fold(fold: Fold) -> CheapScores:
        of_images, of_captions = images[fold.images], captions[fold.captions].T
        return lambda start, stop: of_images[start:stop] @ of_captions

    return Cheap(f"dual encoder {digest}", of_fold)
