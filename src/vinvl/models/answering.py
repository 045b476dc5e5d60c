"""Models that answer: the VinVL encoder with a classifier over answers, about a picture or two, and its losses.

Shapes: B examples, L text and tag tokens, R regions, D numbers per region row, H hidden size, A answers.
"""

from collections import OrderedDict
from itertools import chain
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from vinvl.models.config import VinVLConfig, canonical_loss_type
from vinvl.models.encoder import EncoderInputs, VinVLModel
from vinvl.run.errors import UserError

MMF_LAYER_NORM_EPS = 1e-6  # of its "mlp" head (mmf/models/transformers/heads/mlp.py), whatever the encoder's is


class _Classifier(BertPreTrainedModel):
    """A = `config.num_labels` answers from the pooled vectors of an example's pictures, put side by side."""

    config_class = VinVLConfig
    config: VinVLConfig
    base_model_prefix = "bert"
    pictures = 1  # of an example

    def __init__(self, config: VinVLConfig) -> None:
        super().__init__(config)
        self.bert = VinVLModel(config)
        own_rate = config.classifier_dropout
        dropout = config.hidden_dropout_prob if own_rate is None else own_rate
        self.dropout = nn.Dropout(dropout)
        self.classifier = _classifier_layers(config, self.pictures, dropout)
        self.post_init()

    def forward(
        self, input_ids: Tensor, *, labels: Tensor | None = None, **inputs: Unpack[EncoderInputs]
    ) -> SequenceClassifierOutput:
        """Logits (B, A) of the answers, loss () if labels are given, hidden_states and attentions as asked for.

        Args:
            input_ids: (B, L) int64, or (2B, L) for pairs: rows 2i and 2i + 1 are the left and the right picture of
                example i. `inputs`, with as many rows, are those of `VinVLModel.forward`.
            labels: for the B examples, what `answer_loss` takes for `config.loss_type`.

        Raises:
            UserError: an odd number of rows for pairs, or shapes that do not fit together.
        """
        if len(input_ids) % self.pictures:
            raise UserError(
                f"A batch of pairs holds {len(input_ids)} rows, which is odd; give two rows per example, the left "
                "picture's and the right one's."
            )
        encoded = self.bert(input_ids, only_first=True, **inputs)
        pooled = self.dropout(encoded.pooler_output)
        logits = self.classifier(pooled.reshape(-1, self.pictures * pooled.shape[-1]))  # (B, A)
        return SequenceClassifierOutput(
            loss=None if labels is None else answer_loss(logits, labels, self.config.loss_type),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class VinVLForAnswering(_Classifier):
    """For VQA, GQA and image-text matching: head, losses and names of Oscar's published sequence classifier."""


class VinVLForPairs(_Classifier):
    """For NLVR2: head, losses and names of Oscar's published model in paired mode.

    Each picture goes through the encoder with the statement; only the classifier sees both.
    """

    pictures = 2


def _classifier_layers(config: VinVLConfig, pictures: int, dropout: float) -> nn.Module:
    """The module from pooled vectors (B, pictures · H) to answer logits (B, A) that `config.classifier` names.

    As published, the "mlp" over pairs has a layer norm before its last layer exactly if the projected regions do.
    """
    answers, width = config.num_labels, config.hidden_size * config.cls_hidden_scale
    assert answers is not None  # transformers fills it in
    if config.classifier == "linear":
        return nn.Linear(pictures * config.hidden_size, answers)
    if config.classifier == "mlp_gelu":
        inputs = [pictures * config.hidden_size] + [width] * (config.cls_hidden_layers - 1)
        # The first dropout is that of the pooled vector.
        dropouts = [nn.Identity(), *(nn.Dropout(dropout) for _ in inputs[1:])]
        pairs = zip(dropouts, (_gelu_layer(before, width) for before in inputs), strict=True)
        return nn.Sequential(*chain.from_iterable(pairs), nn.Linear(width, answers))
    hidden: list[nn.Module] = [nn.Linear(pictures * config.hidden_size, width), nn.ReLU()]
    if pictures > 1 and config.use_img_layernorm:
        hidden.append(nn.LayerNorm(width, eps=config.layer_norm_eps))
    return nn.Sequential(*hidden, nn.Linear(width, answers))


def _gelu_layer(before: int, width: int) -> nn.Module:
    """A hidden layer of MMF's "mlp" head, BERT's transform before words are predicted, with MMF's names."""
    layer_norm = nn.LayerNorm(width, eps=MMF_LAYER_NORM_EPS)
    return nn.Sequential(OrderedDict(dense=nn.Linear(before, width), gelu=nn.GELU(), LayerNorm=layer_norm))


def answer_loss(logits: Tensor, labels: Tensor, loss_type: str) -> Tensor:
    """The mean of `answer_loss_per_example` over the batch, a scalar."""
    return answer_loss_per_example(logits, labels, loss_type).mean()


def answer_loss_per_example(logits: Tensor, labels: Tensor, loss_type: str) -> Tensor:
    """The loss of each example, (B,) float32, so that any split of the data into batches sums to the same.

    Args:
        logits: (B, A) float. With A = 1 the loss is the squared error, whatever `loss_type` says.
        labels: "bce" and "kl": (B, A) float target scores. "ce": (B,) or (B, 1) int64 answer numbers, or (B, A) float
            weights of the answers. One logit: (B,) or (B, 1) float.
        loss_type: "bce" is the mean binary cross-entropy times A, thus its sum over the answers; "kl" the divergence of
            the softmax from the targets, as summed by torch's "batchmean"; "ce" the cross-entropy.

    Raises:
        UserError: an unknown loss, or labels for another number of answers or examples.
    """
    loss_type = canonical_loss_type(loss_type)
    logits = logits.float()  # sums over thousands of answers need more than half precision
    if logits.shape[-1] == 1:
        _check_labels(labels.view(-1, 1), logits, loss_type)
        return (logits.view(-1) - labels.view(-1).float()).square()
    log_probabilities = torch.log_softmax(logits, dim=-1)
    if loss_type == "ce" and not labels.is_floating_point():
        _check_labels(labels.view(-1, 1).expand(-1, logits.shape[-1]), logits, loss_type)
        # Not torch's cross-entropy: it skips labels of -100 silently, and the mean would then be over fewer examples.
        return -log_probabilities.gather(-1, labels.view(-1, 1)).squeeze(-1)
    _check_labels(labels, logits, loss_type)
    labels = labels.float()
    if loss_type == "bce":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=-1)
    if loss_type == "kl":
        return F.kl_div(log_probabilities, labels, reduction="none").sum(dim=-1)
    return -(labels * log_probabilities).sum(dim=-1)


def best_choices(logits: Tensor, loss_type: str, count: int) -> tuple[Tensor, Tensor]:
    """The numbers and probabilities, both (B, K), of the K = `count` best answers, or of all, best first.

    Of logits (B, A) that were trained with `loss_type`: sigmoid probabilities with "bce", else those of the softmax.
    """
    logits = logits.float()
    probabilities = torch.sigmoid(logits) if loss_type == "bce" else torch.softmax(logits, dim=-1)
    # Ranked by logit: a sigmoid in half precision saturates at 1 long before the logits tie.
    best = logits.topk(min(count, logits.shape[-1]), dim=-1).indices
    return best, probabilities.gather(-1, best)


def _check_labels(labels: Tensor, logits: Tensor, loss_type: str) -> None:
    if labels.shape != logits.shape:
        raise UserError(
            f"Labels of shape {tuple(labels.shape)} do not fit the {loss_type} loss on logits of shape "
            f"{tuple(logits.shape)} (examples, answers); the data and the classifier must share one answer vocabulary."
        )
