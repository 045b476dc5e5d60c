"""The demo world's own WordPiece vocabulary, saved as a transformers tokenizer folder."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 1000
MAX_LENGTH = 512
MIN_FREQUENCY = 2
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = string.ascii_lowercase + string.digits
# Letters and digits at the start of and inside words, and marks: every plain text can be spelt out.
SPELLING = (*string.punctuation, *_CHARACTERS, *(f"##{character}" for character in _CHARACTERS))


def write_tokenizer(texts: Iterable[str], later_texts: Iterable[str], folder: Path) -> None:
    """Train a lower-casing WordPiece tokenizer on texts and write the folder that `AutoTokenizer` loads as BERT's.

    Args:
        texts: the training text, one string per question, tag list or caption.
        later_texts: more of it; words that only these have get the ids after all others.
        folder: made here; gets tokenizer.json, tokenizer_config.json and vocab.txt.
    """
    # With so few words every frequent word gets a piece of its own. So the words are counted and the letters added,
    # instead of merged by WordPieceTrainer, whose choice between equally frequent pairs differs from run to run.
    pieces = [*SPECIAL_TOKENS, *SPELLING]
    for part in (texts, later_texts):
        known = set(pieces)
        pieces += [word for word in _frequent_words(part, VOCABULARY_SIZE) if word not in known]
    pieces = pieces[:VOCABULARY_SIZE]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = _lower_casing(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")))
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": MAX_LENGTH,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _lower_casing(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with BERT's splitting into lower-case words and marks."""
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _frequent_words(texts: Iterable[str], limit: int) -> list[str]:
    """The commonest words, by falling frequency and then by letter."""
    counter = _lower_casing(Tokenizer(models.WordLevel(unk_token="[UNK]")))
    trainer = trainers.WordLevelTrainer(vocab_size=limit, min_frequency=MIN_FREQUENCY, show_progress=False)
    counter.train_from_iterator(texts, trainer)
    vocabulary = counter.get_vocab()
    return sorted(vocabulary, key=lambda word: vocabulary[word])
