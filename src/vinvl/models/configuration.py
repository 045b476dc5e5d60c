"""The numbers and switches that define a VinVL model."""

from typing import Any

from transformers import BertConfig

from vinvl.errors import UserError
from vinvl.models.packing import PACKED

CLASSIFIERS = ("linear", "mlp")
LOSS_TYPES = ("bce", "ce", "kl")
PUBLISHED_LOSS_NAMES = {"xe": "ce", "sfmx": "ce"}


class VinVLConfig(BertConfig):
    """A BERT configuration plus the image side and the answer head of VinVL (Zhang et al. 2021, section 3).

    The defaults are the base size with 2048-d region features and six box numbers. Values under `bert_fields` are
    those of `transformers.BertConfig` (`hidden_size`, `num_hidden_layers`, `num_labels` for the number of answers, …).

    Args:
        img_feature_dim: numbers per region row (2048 + 6).
        use_img_layernorm: layer-normalise the projected regions (on in the Oscar+ checkpoints).
        img_layer_norm_eps: epsilon of that layer norm.
        classifier: "linear", or "mlp" for Linear–ReLU–Linear.
        cls_hidden_scale: the hidden size of the "mlp" classifier as a multiple of `hidden_size`.
        loss_type: "bce", "ce" or "kl"; the published spellings "xe" and "sfmx" are stored as "ce".
        attn_implementation: "auto" is "packed", which computes nothing for padding and takes all masks; the others are
            those of transformers. Not saved with the model.

    Raises:
        UserError: an unknown classifier or loss, or sizes that cannot make a model.
    """

    model_type = "vinvl"

    # Written out because transformers made configurations dataclasses midway in the 5.x series; this works on both.
    def __init__(
        self,
        *,
        img_feature_dim: int = 2054,
        use_img_layernorm: bool = False,
        img_layer_norm_eps: float = 1e-12,
        classifier: str = "linear",
        cls_hidden_scale: int = 3,
        loss_type: str = "bce",
        attn_implementation: str | None = "auto",
        **bert_fields: Any,
    ) -> None:
        bert_fields["attn_implementation"] = PACKED if attn_implementation == "auto" else attn_implementation
        super().__init__(**bert_fields)
        self.img_feature_dim = img_feature_dim
        self.use_img_layernorm = bool(use_img_layernorm)  # published config.json files hold 0 and 1
        self.img_layer_norm_eps = img_layer_norm_eps
        self.classifier = classifier
        self.cls_hidden_scale = cls_hidden_scale
        self.loss_type = canonical_loss_type(loss_type)
        self._check()

    def _check(self) -> None:
        if self.classifier not in CLASSIFIERS:
            raise UserError(f"The model's classifier is {self.classifier!r}; choose one of {', '.join(CLASSIFIERS)}.")
        for name in ("img_feature_dim", "cls_hidden_scale", "hidden_size", "num_attention_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"The model's {name} is {value!r}; it must be a whole number of at least 1.")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"The model's hidden_size {self.hidden_size} cannot be split over num_attention_heads "
                f"{self.num_attention_heads}; choose a multiple."
            )


def canonical_loss_type(name: str) -> str:
    """Our name ("bce", "ce", "kl") of a loss that may be given in its published spelling ("xe", "sfmx").

    Raises:
        UserError: no such loss.
    """
    canonical = PUBLISHED_LOSS_NAMES.get(name, name)
    if canonical not in LOSS_TYPES:
        raise UserError(f"The model's loss_type is {name!r}; choose one of {', '.join(LOSS_TYPES)}.")
    return canonical
