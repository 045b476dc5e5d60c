"""What token ids depend on, as one short text."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase

DIGEST_BYTES = 12


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """24 hexadecimal digits that change with a tokenizer's vocabulary and with the way it splits texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        settings = json.loads(backend.to_str())
        # These two are no part of the tokenizer: every call sets them as it needs them.
        settings.pop("truncation", None)
        settings.pop("padding", None)
    else:
        settings = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
