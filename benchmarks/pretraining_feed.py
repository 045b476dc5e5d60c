"""Pre-training samples: what batches cost the processes that make them, and the one that trains on them.

    python benchmarks/pretraining_feed.py [--rows 20000] [--workers 0 1 2] [--paired] [--cache ram]

Makes a store of random features and a corpus with tags in a temporary folder, then takes batches, in the order of
training and from files that are in the page cache, out of the loader of `PretrainingDataModule`, with so many workers:
draws of wrong texts, hidden tokens and regions are in them. Then batches of `PretrainingDataset` are made in this
process against the same made row by row: that draws, cuts and hides tokens of one sample at a time in Python, as the
published code does, and then collates; both copy the same regions.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_data import FEED_TITLES, print_feed
from store_reads import write_images
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vinvl.data.batch import Batch, Example, collate
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.data.sampling import Draw, LengthBucketBatchSampler
from vinvl.data.text import assemble_pair
from vinvl.pretraining.corpus import ensure_index
from vinvl.pretraining.data import PretrainingDataModule, PretrainingDataset

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"w{number}" for number in range(2000))
TEXT_WORDS, TAGS = 11, (20, 20)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True)))


def write_corpus(path: Path, rows: int, images: int, tags: tuple[int, int] = TAGS) -> None:
    """Captions of about 11 words with so many tags, at least and at most."""
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(rows):
            words = generator.integers(0, len(WORDS), int(generator.integers(7, 2 * TEXT_WORDS - 6)))
            names = [
                WORDS[index] for index in generator.integers(0, len(WORDS), generator.integers(tags[0], tags[1] + 1))
            ]
            row = {"image_id": number % images, "text": " ".join(WORDS[i] for i in words), "tags": names}
            file.write(json.dumps(row) + "\n")


def make_data(folder: Path, *, rows: int, images: int, regions: int = 36, **told: Any) -> PretrainingDataModule:
    """Training data over a made store and corpus in the folder; with `paired` over two of them.

    Args:
        regions: of an image, on average.
        told: `tags` of `write_corpus`; the others are of `PretrainingDataModule`.
    """
    store, files = folder / "store.h5", [folder / "corpus.jsonl"]
    write_images(store, images, regions, 2048)
    write_corpus(files[0], rows, images, told.pop("tags", TAGS))
    if told.get("paired"):
        files.append(folder / "other.jsonl")
        write_corpus(files[1], rows // 2, images)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    begin = time.perf_counter()
    ensure_index(files[0], tokenizer)
    print(f"indexed {rows / (time.perf_counter() - begin):,.0f} rows/s on one core")
    data = PretrainingDataModule(
        splits={"train": [str(file) for file in files]},
        val_split="train",
        regions=str(store),
        tokenizer=str(folder / "tokenizer"),
        index_workers=1,
        **{"seed": 0, "num_workers": 0, **told},
    )
    data.setup("fit")
    return data


def dataset_of(data: PretrainingDataModule) -> PretrainingDataset:
    dataset = data.datasets["train"]
    assert isinstance(dataset, PretrainingDataset)
    return dataset


def row_by_row(dataset: PretrainingDataset, draws: Sequence[Draw]) -> Batch:
    """The same kind of batch with one sample made after the other."""
    text = dataset.rows.region_text
    dice = random.Random(draws[0].index)
    examples, hidden_places, hidden_tokens = [], [], []
    for row_number, draw in enumerate(draws):
        row = np.array([draw.index])
        first, second = row, row
        other = np.array([dice.randrange(len(dataset.rows))])
        share = dice.random()
        if share <= 0.25:
            first = other
        elif share <= 0.5:
            second = other
        input_ids, token_type_ids = assemble_pair(
            dataset.rows.texts(first, np.zeros_like(row))[0],
            dataset.rows.texts(second, np.ones_like(row))[0],
            max_tokens=text.limits.max_tokens,
            cls_token_id=text.special.cls_token_id,
            sep_token_id=text.special.sep_token_id,
        )
        for place, token in enumerate(input_ids.tolist()):
            if token >= len(SPECIAL) and (chance := dice.random()) < 0.15:
                hidden_places.append((row_number, place))
                hidden_tokens.append(token)
                if chance < 0.12:
                    input_ids[place] = text.special.mask_token_id
                elif chance < 0.135:
                    input_ids[place] = dice.randrange(dataset.vocab_size)
        regions = text.image_regions(int(dataset.rows.image_of(row)[0]))
        examples.append(Example(input_ids, token_type_ids, regions))
    batch = collate(examples, pad_token_id=text.special.pad_token_id, labels=torch.tensor(hidden_tokens))
    masked = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    for row_number, place in hidden_places:
        masked[row_number, place] = True
    return replace(batch, masked_positions=masked)


def samples_per_second(make: Callable[[Sequence[Draw]], Batch], batches: Sequence[Sequence[Draw]]) -> float:
    """By the time that this process computed, so that other programs do not count."""
    begin = time.process_time()
    for batch in batches:
        make(batch)
    return sum(map(len, batches)) / (time.process_time() - begin)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=20000, help="rows of the corpus (default: 20000)")
    parser.add_argument("--images", type=int, default=500, help="images in the store (default: 500)")
    parser.add_argument("--regions", type=int, default=36, help="mean number of regions an image (default: 36)")
    parser.add_argument("--batch-size", type=int, default=128, help="(default: 128)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of the loader (default: 0 1 2)")
    parser.add_argument("--paired", action="store_true", help="two corpora, each with texts of its own")
    parser.add_argument("--cache", help="data.cache")
    parser.add_argument("--batches", type=int, default=40, help="batches of a pass (default: 40)")
    parser.add_argument("--passes", type=int, default=3, help="the best of so many passes is shown (default: 3)")
    options = parser.parse_args(arguments)
    told = {"batch_size": options.batch_size, "cache": options.cache, "paired": options.paired}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder, rows=options.rows, images=options.images, regions=options.regions, **told)
        print(FEED_TITLES)
        for workers in options.workers:
            data.num_workers = workers
            print_feed(data.train_dataloader(), workers)
        dataset = dataset_of(data)
        batches = list(LengthBucketBatchSampler(dataset.lengths(), options.batch_size, seed=0))[: options.batches]
        makers: dict[str, Callable[[Sequence[Draw]], Batch]] = {
            "whole batches": dataset.collate,
            "row by row": lambda draws: row_by_row(dataset, draws),
        }
        for kind in makers:
            best = max(samples_per_second(makers[kind], batches) for _ in range(options.passes))
            print(f"{kind:<16} {best:>8,.0f} samples/s")
        dataset.rows.region_text = without_regions(dataset.rows.region_text)
        for kind in makers:
            best = max(samples_per_second(makers[kind], batches) for _ in range(options.passes))
            print(f"{kind:<16} {best:>8,.0f} samples/s, texts only")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


def without_regions(text: RegionText) -> RegionText:
    return RegionText(text.store, text.tags, InputLimits(35, 50, use_regions=False), text.special)


if __name__ == "__main__":
    main()
