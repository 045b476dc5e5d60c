"""A small corpus over a small store, shared by the tests of pre-training data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.test_text import golden_tokenizer
from tests.regions.samples import make_regions, write
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.data.sampling import Draw
from vinvl.data.tags import tag_source
from vinvl.models.config import SpecialTokens
from vinvl.pretraining.corpus import Corpus, ensure_index
from vinvl.pretraining.data import CorpusRows, PretrainingDataset
from vinvl.pretraining.mixture import CorpusShare, Mixture
from vinvl.pretraining.triplets import PairOptions
from vinvl.regions import RegionStore

TOKENIZER = golden_tokenizer()
SPECIAL = SpecialTokens.of(TOKENIZER)
OSCARPLUS = PairOptions(textb_sample_mode=1, texta_false_prob=0.25, mask_loss_for_unmatched=True)
WORDS = ("woman", "table", "pizza", "umbrella", "park", "dog", "ball", "tree")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def mixed_rows(count: int, images: int = 10) -> list[dict[str, Any]]:
    """Captions with tags of their own, captions without, and questions, in turn."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        words = [WORDS[number % 8], WORDS[number // 8 % 8]]
        row: dict[str, Any] = {"image_id": number % images, "text": f"a {words[0]} near the {words[1]}", "source": "s"}
        kinds: list[dict[str, Any]] = [{"tags": ["cat", words[1]]}, {}, {"answer": words[0]}]
        rows.append({**row, **kinds[number % 3]})
    return rows


def store_of(folder: Path, images: int = 10) -> RegionStore:
    """Images "0", "1", … with 1 to 4 regions of three numbers."""
    return RegionStore(write(folder / "regions.h5", [make_regions(str(i), 1 + i % 4, seed=i) for i in range(images)]))


def dataset_of(
    store: RegionStore,
    corpora: Sequence[Corpus | CorpusShare],
    *,
    options: PairOptions = OSCARPLUS,
    variant: str = "oscar",
    use_tags: bool = True,
    use_regions: bool = True,
    max_tokens: int = 35,
    seed: int = 0,
) -> PretrainingDataset:
    mixture = Mixture.of([part if isinstance(part, CorpusShare) else CorpusShare(part) for part in corpora])
    limits = InputLimits(max_tokens, 50, use_tags, use_regions)
    text = RegionText(store, tag_source(None, store, TOKENIZER), limits, SPECIAL)
    return PretrainingDataset(
        CorpusRows(mixture, mixture.positions_in(store), text),
        options=options,
        variant=variant,
        mask_probability=0.15,
        vocab_size=len(TOKENIZER),
        seed=seed,
        one_pass=False,
    )


def mixed_dataset(folder: Path, count: int = 60, **settings: Any) -> PretrainingDataset:
    corpus = ensure_index(write_lines(folder / "corpus.jsonl", mixed_rows(count)), TOKENIZER)
    return dataset_of(store_of(folder), [corpus], **settings)


def draws(indices: Sequence[int] | np.ndarray, epoch: int = 0) -> list[Draw]:
    return [Draw(epoch, int(index)) for index in indices]
