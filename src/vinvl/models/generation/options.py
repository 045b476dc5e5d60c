"""What may be chosen when captions are decoded."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from vinvl.errors import UserError


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of the tokens that begin, end, pad and ask for a word."""

    begin: int
    end: int
    pad: int
    mask: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """[CLS], [SEP], [PAD] and [MASK] of a BERT-style tokenizer (`vinvl.data.text.load_tokenizer`)."""
        return cls(
            begin=int(tokenizer.cls_token_id),
            end=int(tokenizer.sep_token_id),
            pad=int(tokenizer.pad_token_id),
            mask=int(tokenizer.mask_token_id),
        )


@dataclass(frozen=True)
class DecodingOptions:
    """How captions are decoded: greedily (the default), by beam search, by sampling, or by constrained beam search.

    The defaults of the published code, except `max_length`, which is the 20 of its recipes. Lengths count the begin
    and the end token. The penalties and bans, temperature, `top_k` and `top_p` change the distribution, which is then
    normalised again: log-probabilities are those of the changed distribution, as published.

    Args:
        max_length: longest caption. At this length a caption is ended by force.
        min_length: the end token is banned before this length (not in the published code).
        num_beams: beams per image, or per state of a constrained search; 1 is no beam search.
        num_return_sequences: captions per image. Beam search keeps an n-best list of just this length, as published,
            and is over sooner with a short one (published: `num_keep_best`). For samples: how many are drawn.
        length_penalty: beam search ranks by Σ log p / length^length_penalty.
        repetition_penalty: logits of words that the caption has are divided by it where positive, else multiplied.
        no_repeat_ngram_size: no n words in a row occur twice; 0 for no such ban (not in the published code).
        sample: draw words instead of taking the best.
        temperature: of samples; logits are divided by it.
        top_k: sample from the k best words only; 0 for all.
        top_p: sample from the fewest best words that together are likelier than this.
        min_constraints: a constrained caption meets at least so many constraints, or all of an image that has fewer.

    Raises:
        UserError: values that make no search.
    """

    max_length: int = 20
    min_length: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_constraints: int = 2

    def __post_init__(self) -> None:
        self._check_counts()
        for name in ("repetition_penalty", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0 (1 changes nothing).")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; give a share above 0 and up to 1 (1 keeps every word).")
        if self.min_length > self.max_length:
            raise UserError(f"min_length {self.min_length} is above max_length {self.max_length}; lower one of them.")
        if self.sample and self.num_beams > 1:
            raise UserError(
                f"sample is on and num_beams is {self.num_beams}; sample with num_beams 1 (num_return_sequences says "
                "how many) or search with sample off."
            )
        if not self.sample and self.num_return_sequences > self.num_beams:
            raise UserError(
                f"num_return_sequences {self.num_return_sequences} is above num_beams {self.num_beams}; a search keeps "
                "no more captions than it has beams."
            )
        if not self.sample and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise UserError("temperature, top_k and top_p are for samples; set sample, or leave them at 1, 0 and 1.")

    def _check_counts(self) -> None:
        for name, least in (
            ("max_length", 2),  # the begin and the end token
            ("min_length", 0),
            ("num_beams", 1),
            ("num_return_sequences", 1),
            ("no_repeat_ngram_size", 0),
            ("top_k", 0),
            ("min_constraints", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
