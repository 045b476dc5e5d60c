"""The numbers and switches that define a VinVL model, and the special tokens of its texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.models.bert.configuration_bert import BertConfig

from vinvl.models.packing import PACKED
from vinvl.run.errors import UserError
from vinvl.run.values import OF_THE_ENCODER

# More is no model of anybody's, and takes for ever to build.
MOST = {
    "num_labels": 2**20, "num_hidden_layers": 1000, "num_attention_heads": 2**12, "hidden_size": 2**16,
    "intermediate_size": 2**18, "vocab_size": 2**24, "max_position_embeddings": 2**20, "type_vocab_size": 2**16,
    "img_feature_dim": 2**20, "cls_hidden_scale": 1000, "cls_hidden_layers": 100,
}  # fmt: skip
NUMBERS = {
    "hidden_dropout_prob": 1, "attention_probs_dropout_prob": 1, "classifier_dropout": 1, "initializer_range": 1e6,
    "layer_norm_eps": 1, "img_layer_norm_eps": 1, "pad_token_id": 2**24,
}  # fmt: skip
CLASSIFIERS = ("linear", "mlp", "mlp_gelu")
# Others could be names on the hub, from where transformers would have a kernel, which is code.
ATTENTION = ("auto", PACKED, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", None)
CHOICES = {"hidden_act": tuple(ACT2FN), "classifier": CLASSIFIERS, "attn_implementation": ATTENTION}
LOSS_TYPES = ("bce", "ce", "kl")
PUBLISHED_LOSS_NAMES = {"xe": "ce", "sfmx": "ce"}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens of a BERT-style tokenizer."""

    cls_token_id: int
    sep_token_id: int
    pad_token_id: int
    mask_token_id: int
    unk_token_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        unknown = tokenizer.unk_token_id
        return cls(
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
            mask_token_id=tokenizer.mask_token_id,
            unk_token_id=tokenizer.mask_token_id if unknown is None else unknown,
        )


class VinVLConfig(BertConfig):
    """A BERT configuration plus the image side and the answer head of VinVL (Zhang et al. 2021, section 3).

    The defaults are the base size with 2048-d region features and six box numbers. Values under `bert_fields` are
    those of `transformers.BertConfig` (`hidden_size`, `num_hidden_layers`, `num_labels` for the number of answers, …).

    Args:
        img_feature_dim: numbers per region row (2048 + 6).
        use_img_layernorm: layer-normalise the projected regions (on in the Oscar+ checkpoints).
        img_layer_norm_eps: epsilon of that layer norm.
        classifier: "linear", "mlp" for Linear–ReLU–Linear (Oscar's), or "mlp_gelu" for Linear–GELU–LayerNorm, as often
            as `cls_hidden_layers` says, and Linear (the "mlp" of MMF).
        cls_hidden_scale: the hidden size of an mlp classifier as a multiple of `hidden_size`.
        cls_hidden_layers: of the "mlp_gelu" classifier; the "mlp" has one.
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
        cls_hidden_layers: int = 1,
        loss_type: str = "bce",
        attn_implementation: str | None = "auto",
        **bert_fields: Any,
    ) -> None:
        own: dict[str, Any] = {
            "img_feature_dim": img_feature_dim, "img_layer_norm_eps": img_layer_norm_eps, "classifier": classifier,
            "cls_hidden_scale": cls_hidden_scale, "cls_hidden_layers": cls_hidden_layers,
            "attn_implementation": attn_implementation,
        }  # fmt: skip
        refuse_wrong_fields(bert_fields | own, "The model")
        bert_fields["attn_implementation"] = PACKED if attn_implementation == "auto" else attn_implementation
        try:
            super().__init__(**bert_fields)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise UserError(f"The model's configuration cannot be used ({' '.join(str(error).split())}).") from None
        self.img_feature_dim = img_feature_dim
        self.use_img_layernorm = bool(use_img_layernorm)  # published config.json files hold 0 and 1
        self.img_layer_norm_eps = img_layer_norm_eps
        self.classifier = classifier
        self.cls_hidden_scale = cls_hidden_scale
        self.cls_hidden_layers = cls_hidden_layers
        self.loss_type = canonical_loss_type(loss_type)
        if self.hidden_size is None or self.num_attention_heads is None:  # which transformers 5.0 takes
            raise UserError("The model's configuration cannot be used (hidden_size or num_attention_heads is null).")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"The model's hidden_size {self.hidden_size} cannot be split over num_attention_heads "
                f"{self.num_attention_heads}; choose a multiple."
            )


AutoConfig.register(VinVLConfig.model_type, VinVLConfig, exist_ok=True)


def refuse_wrong_fields(fields: Mapping[str, Any], owner: str) -> None:
    """Raises UserError, naming `owner`, for the first field of anybody's configuration that cannot be as it is."""
    for name, value in fields.items():
        plain = isinstance(value, str | bool | None) or (isinstance(value, int | float) and not abs(value) > 1e40)
        has = f"{owner} has {name} {repr(value)[:60] if plain else f'a {type(value).__name__}'}"
        if name in MOST and value is not None and not (type(value) is int and 1 <= value <= MOST[name]):
            raise UserError(f"{has}; it must be a whole number of at least 1, and of {MOST[name]:,} at most.")
        number = type(value) in (int, float)
        if name in NUMBERS and value is not None and not (number and 0 <= value <= NUMBERS[name]):
            raise UserError(f"{has}, which is no such number.")
        if name in CHOICES and not (isinstance(value, str | None) and value in CHOICES[name]):
            raise UserError(f"{has}; choose one of {', '.join(map(str, CHOICES[name]))}.")


def canonical_loss_type(name: str) -> str:
    """Our name ("bce", "ce", "kl") of a loss that may be given in its published spelling; UserError for another."""
    canonical = PUBLISHED_LOSS_NAMES.get(str(name), name)
    if canonical not in LOSS_TYPES:
        raise UserError(f"The model's loss_type is {name!r}; choose one of {', '.join(LOSS_TYPES)}.")
    return canonical


OF_TRANSFORMERS = {"transformers_version", "architectures", "model_type", "id2label", "label2id", "dtype"}


def plain_fields(config: Mapping[str, Any] | VinVLConfig) -> dict[str, Any]:
    """The fields that a configuration, or somebody, gives of one: those of an encoder's size only where they say it."""
    given = config
    if isinstance(config, VinVLConfig):  # which does not save how it attends
        given = config.to_dict() | {"attn_implementation": config._attn_implementation}
    return {
        name: value
        for name, value in given.items()
        if name not in OF_TRANSFORMERS and (value is not None or name not in OF_THE_ENCODER)
    }
