"""The pre-training model: the VinVL encoder that guesses hidden tokens and tells matched from mismatched triplets.

Shapes: B triplets, L text and tag tokens, R regions, D numbers per region row, H hidden size, V words, C pair classes,
M hidden tokens in the batch.
"""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput

from vinvl.models.captioning import WordModel, masked_rows
from vinvl.models.config import VinVLConfig
from vinvl.models.encoder import EncoderInputs
from vinvl.models.tag_sets import matched_tags
from vinvl.run.errors import UserError

NO_PAIR_LABEL = -1  # a row that has no part in the contrastive loss


@dataclass
class PretrainingOutput(ModelOutput):
    """What `VinVLForPreTraining` returns; parts that were not asked for are None."""

    loss: Tensor | None = None  # () float32, the sum of the two losses that there are labels for
    masked_word_loss: Tensor | None = None  # () float32
    pair_loss: Tensor | None = None  # () float32
    logits: Tensor | None = None  # (M, V), in row-major order of the masked positions
    pair_logits: Tensor | None = None  # (B, C)
    masked_places: Tensor | None = None  # (M,) int64, where these positions are in the flattened (B, L) tokens
    masked_ids: Tensor | None = None  # (M,) int64, the true tokens that the loss takes there


class VinVLForPreTraining(WordModel):
    """Masked tokens and the contrast of (text, tags, regions) triplets (Zhang et al. 2021, section 3.2; Oscar+).

    The contrastive head has C = `config.num_labels` classes (published: `num_contrast_classes`): 3 in Oscar+, 2 in
    Oscar. The word decoder always shares the word embeddings. Parameter names are the published ones.
    """

    def __init__(self, config: VinVLConfig) -> None:
        """Raises UserError for fewer than two classes, or a decoder that should have its own weights."""
        if not config.tie_word_embeddings:
            raise UserError(
                "Pre-training decodes words by their embeddings: set model.config.tie_word_embeddings=true."
            )
        if config.num_labels is None or config.num_labels < 2:
            raise UserError(
                f"A contrast needs two classes at least, and the model's num_labels is {config.num_labels}."
            )
        super().__init__(config, pairs=True)

    def forward(
        self,
        input_ids: Tensor,
        *,
        masked_positions: Tensor | None = None,
        masked_ids: Tensor | None = None,
        pair_labels: Tensor | None = None,
        row_weights: Tensor | None = None,
        match_tags: bool = False,
        **inputs: Unpack[EncoderInputs],
    ) -> PretrainingOutput:
        """Predict the tokens at the masked positions, and at no others, and the class of every triplet.

        Args:
            input_ids: (B, L) int64. `inputs` are those of `VinVLModel.forward`.
            masked_positions: (B, L) bool, M of them true; every position of the text if not given. M may be 0.
            masked_ids: (M,) int64, the true tokens there in row-major order; no masked loss if not given.
            pair_labels: (B,) int64 classes, `NO_PAIR_LABEL` for rows without; no contrastive loss if not given.
            row_weights: (B,) float, see `masked_token_loss` and `contrastive_loss`, or (B, 2), one for each of these;
                1 if not given.
            match_tags: a row's hidden tokens are a set, whose order means nothing (`matched_tags`).

        Raises:
            UserError: shapes that do not fit together.
        """
        encoded = self.bert(input_ids, **inputs)
        length = input_ids.shape[1]
        places = torch.arange(input_ids.numel(), device=input_ids.device)
        if masked_positions is not None:
            places = masked_rows(masked_positions, masked_ids)
        text = encoded.last_hidden_state[:, :length].flatten(0, 1)  # (B·L, H)
        logits = self.cls.predictions(text[places])  # (M, V)
        pair_logits = self.cls.seq_relationship(encoded.pooler_output)  # (B, C)
        if row_weights is not None and row_weights.shape not in ((len(input_ids),), (len(input_ids), 2)):
            raise UserError(
                f"Row weights of shape {tuple(row_weights.shape)} do not fit {len(input_ids)} triplets; give one each, "
                "or two."
            )
        if match_tags and masked_ids is not None:
            masked_ids = matched_tags(logits, masked_ids, places // length, length)
        of_tokens: Tensor | float = 1.0
        of_rows: Tensor | float = 1.0
        if row_weights is not None:
            both = row_weights.unsqueeze(-1).expand(-1, 2) if row_weights.dim() == 1 else row_weights
            of_tokens, of_rows = both[places // length, 0], both[:, 1]
        masked = None if masked_ids is None else masked_token_loss(logits, masked_ids, of_tokens)
        pair = None if pair_labels is None else contrastive_loss(pair_logits, pair_labels, of_rows)
        return PretrainingOutput(
            loss=pair if masked is None else masked if pair is None else masked + pair,
            masked_word_loss=masked,
            pair_loss=pair,
            logits=logits,
            pair_logits=pair_logits,
            masked_places=places,
            masked_ids=masked_ids,
        )


def masked_token_loss(logits: Tensor, masked_ids: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Cross-entropy of the hidden tokens, a float32 scalar: the sum of weight × loss, over M (published for weights 1).

    A batch in which nothing is hidden has the loss 0; the published mean over nothing would be NaN. Weights (M,) do not
    enter the divisor, so that a corpus of weight 0.5 counts half even if it fills a batch.
    """
    losses = masked_token_losses(logits, masked_ids)
    return (losses * weights).sum() / max(len(losses), 1)


def masked_token_losses(logits: Tensor, masked_ids: Tensor) -> Tensor:
    """Cross-entropy of each hidden token, (M,) float32, from logits (M, V) and tokens (M,) int64."""
    return F.cross_entropy(logits.float(), masked_ids, reduction="none")


def contrastive_loss(pair_logits: Tensor, pair_labels: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Cross-entropy of the triplets' classes, a float32 scalar: the sum of weight × loss, over the labelled rows.

    Rows labelled `NO_PAIR_LABEL` do not count; without any other the loss is 0. Weights (B,) as in `masked_token_loss`.
    """
    weighted = contrastive_losses(pair_logits, pair_labels) * weights
    return weighted.sum() / (pair_labels != NO_PAIR_LABEL).sum().clamp(min=1)


def contrastive_losses(pair_logits: Tensor, pair_labels: Tensor) -> Tensor:
    """Cross-entropy of each triplet's class, (B,) float32, 0 where the label is `NO_PAIR_LABEL`."""
    return F.cross_entropy(pair_logits.float(), pair_labels, reduction="none", ignore_index=NO_PAIR_LABEL)
