"""A corpus over a small store, batches made by hand, and a corpus in published form, for the tests of pre-training."""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.data.test_text import golden_tokenizer
from tests.regions.samples import make_regions, write
from vinvl.data.batch import Batch, BatchRegions
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.data.sampling import Draw
from vinvl.data.tags import tag_source
from vinvl.models.config import SpecialTokens
from vinvl.pretraining.corpus import ensure_index
from vinvl.pretraining.data import PretrainingDataModule, PretrainingDataset
from vinvl.pretraining.task import PretrainingTask
from vinvl.pretraining.triplets import CorpusRows, CorpusShare, Mixture, PairOptions
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


def as_in_processes(work: Any, jobs: Sequence[Any], workers: int, stack: object) -> list[Any]:
    """As `pool_map`, but for the seconds that processes take to begin: what goes to them and back is pickled."""
    assert workers in (1, 2) and len(jobs) > 1
    return [pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(work))(job))) for job in jobs]


def store_of(folder: Path, images: int = 10) -> RegionStore:
    """Images "0", "1", … with 1 to 4 regions of three numbers."""
    return RegionStore(write(folder / "regions.h5", [make_regions(str(i), 1 + i % 4, seed=i) for i in range(images)]))


def mixed_dataset(folder: Path, **settings: Any) -> PretrainingDataset:
    """Of 60 `mixed_rows`; settings of `InputLimits` and `PretrainingDataset`."""
    store, corpus = store_of(folder), ensure_index(write_lines(folder / "corpus.jsonl", mixed_rows(60)), TOKENIZER)
    limits = {name: settings.pop(name) for name in vars(InputLimits(0, 0)).keys() & settings.keys()}
    text = RegionText(
        store,
        tag_source(None, store, TOKENIZER),
        InputLimits(**{"max_tokens": 35, "max_regions": 50, **limits}),
        SPECIAL,
    )
    mixture = Mixture.of([CorpusShare(corpus)])
    options: dict[str, Any] = {
        "options": OSCARPLUS,
        "variant": "oscar",
        "mask_probability": 0.15,
        "seed": 0,
        **settings,
    }
    rows = CorpusRows(mixture, mixture.positions_in(store), text)
    return PretrainingDataset(rows, vocab_size=len(TOKENIZER), one_pass=False, **options)


def datamodule(folder: Path, splits: dict[str, Any], **settings: Any) -> PretrainingDataModule:
    """Over the regions.h5 of the folder."""
    if not (folder / "tokenizer").exists():
        TOKENIZER.save_pretrained(folder / "tokenizer")
    shared: dict[str, Any] = {
        "regions": str(folder / "regions.h5"), "tokenizer": str(folder / "tokenizer"), "tags": None,
        "train_split": "train", "val_split": "val", "test_split": "val", "predict_split": "val", "max_tokens": 35,
        "max_regions": 50, "use_tags": True, "use_regions": True, "on_missing": "skip", "batch_size": 8,
        "eval_batch_size": 8, "num_workers": 0, "pin_memory": False, "seed": 0, "prepare": None, "variant": "oscar",
        "textb_sample_mode": 1, "texta_false_prob": 0.25, "mask_loss_for_unmatched": True, "mask_probability": 0.15,
        "index_workers": 1,
    }  # fmt: skip
    return PretrainingDataModule(splits=splits, **{**shared, **settings})


def plain(text: str) -> list[int]:
    """Its token ids alone."""
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def draws(indices: Sequence[int] | np.ndarray, epoch: int = 0) -> list[Draw]:
    return [Draw(epoch, int(index)) for index in indices]


# Pre-training batches made by hand, and the plain forward pass to hold the task against.


Labels = Mapping[str, Any]
SIZES: Labels = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "img_feature_dim": 10, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TOKENS, REGIONS = 10, 4


def task_of(
    variant: str = "oscar", classes: int = 3, learning_rate: float = 0.0, sizes: Labels = SIZES, **settings: Any
) -> PretrainingTask:
    """A tiny task with seeded weights, ready to train."""
    torch.manual_seed(0)
    settings.setdefault("optimizer", lambda groups: torch.optim.SGD(groups, lr=learning_rate, momentum=0.9))
    settings.setdefault("scheduler", lambda optimizer, total_steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))
    return PretrainingTask(variant=variant, num_pair_classes=classes, model_config=sizes, **{"init": None, **settings})


def triplets(size: int, seed: int = 0, hidden_share: float = 0.3, classes: int = 3) -> Batch:
    """`size` rows of text, tags and regions, with hidden tokens and classes."""
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(size, TOKENS, generator=generator) < hidden_share
    attended = torch.ones(size, TOKENS + REGIONS, dtype=torch.bool)
    attended[::2, -1] = False  # every other image has a region less
    input_ids = torch.randint(5, 40, (size, TOKENS), generator=generator)
    return Batch(
        input_ids=input_ids,
        token_type_ids=(torch.arange(TOKENS) >= TOKENS // 2).long().expand(size, -1).contiguous(),
        attention_mask=attended,
        regions=BatchRegions.of_padded(torch.randn(size, REGIONS, 10, generator=generator)),
        labels=torch.randint(5, 40, (int(masked.sum()),), generator=generator),
        records=tuple({} for _ in range(size)),
        masked_positions=masked,
        pair_labels=torch.randint(0, classes, (size,), generator=generator),
    )


def unlabelled(batch: Batch) -> Batch:
    """The rows with no part in the contrastive loss."""
    return replace(batch, pair_labels=torch.full((len(batch),), -1))


def joined(first: Batch, second: Batch) -> Batch:
    """The rows of both, one batch after the other."""
    values = {
        name: torch.cat([value, getattr(second, name)])
        for name, value in vars(first).items()
        if isinstance(value, Tensor)
    }
    regions = BatchRegions.of_padded(torch.cat([first.region_features, second.region_features]))
    return replace(first, records=first.records + second.records, regions=regions, **values)


def plain_forward(task: PretrainingTask, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the hidden tokens and of the classes, by encoder and heads alone."""
    model: Any = task.model
    encoded = model.bert(
        batch.input_ids,
        token_type_ids=batch.token_type_ids,
        attention_mask=batch.attention_mask,
        region_features=batch.region_features,
    )
    text = encoded.last_hidden_state[:, : batch.input_ids.shape[1]]
    return model.cls.predictions(text[batch.masked_positions]), model.cls.seq_relationship(encoded.pooler_output)


# A small corpus in the published form: yaml, corpus TSV, label TSVs and their JSON files of line numbers.


def write_tsv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Writes rows of columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join("\t".join(row).encode() + b"\n" for row in rows))


def write_labels(path: Path, ids: str, labels: Labels) -> None:
    """A label TSV with its JSON of {id: line number}."""
    write_tsv(path, [(name, json.dumps(value)) for name, value in labels.items()])
    (path.parent / ids).write_text(json.dumps({name: number for number, name in enumerate(labels)}))


def objects(*names: str) -> dict[str, Any]:
    found = [{"class": name, "rect": [0, 0, 5, 5], "conf": 0.5} for name in names]
    return {"image_h": 10, "image_w": 20, "objects": found}


ROWS = (
    ("coco_391895", "coco_391895", "A man on a motorbike."),
    ("coco_391895", "coco_391895", "Someone rides  ❤."),
    ("gqa_2386621", "gqa_qa_2386621_q1", "What is red?"),
    ("cc_0_77", "cc_77", "sunset over the sea"),
    ("vg_1", "vg_1", "left out"),
    ("coco_12", "coco_12", "two dogs"),
    ("gqa_2386621", "gqa_2386621", "a red door"),
)
COCO = {"12": objects("dog", "dog"), "391895": {**objects("man", "motorbike"), "gt_objects": [{"class": "person"}]}}


def write_published(folder: Path, rows: Sequence[Sequence[str]] = ROWS) -> Path:
    """The corpus of these rows over three datasets; returns the yaml."""
    write_tsv(folder / "text" / "corpus.tsv", rows)
    labels = folder / "labels"
    write_labels(labels / "coco" / "predictions_gt.tsv", "imageid2idx.json", COCO)
    write_labels(labels / "cc" / "predictions_gt.tsv", "imageid2idx.json", {"77": objects("sea", "sun set")})
    write_labels(labels / "gqa" / "predictions_gt.tsv", "imageid2idx.json", {"2386621": objects("door")})
    answers = {"q0": {"labels": ["no"]}, "q1": {"labels": ["the", "door"]}}
    write_labels(labels / "gqa" / "QA_fileB.tsv", "QA_qaid2idx.json", answers)
    content = (
        "corpus_file: text/corpus.tsv\ncorpus: coco_googlecc_gqa\nimage_feature_path: {coco: f, googlecc: f, gqa: f}\n"
    )
    content += "image_label_path:\n  coco: labels/coco\n  googlecc: labels/cc\n  gqa: labels/gqa\n  sbu: labels/sbu\n"
    (folder / "corpus.yaml").write_text(content)
    return folder / "corpus.yaml"
