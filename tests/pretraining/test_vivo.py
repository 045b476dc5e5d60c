"""VIVO: batches of tags alone, what is hidden of them, what is refused, and the loss that does not mind their order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.pretraining.samples import (
    SPECIAL,
    TOKENIZER,
    datamodule,
    draws,
    plain,
    store_of,
    task_of,
    triplets,
    write_lines,
)
from vinvl.pretraining.corpus import Corpus, ensure_index
from vinvl.pretraining.data import PretrainingDataset
from vinvl.pretraining.vivo import chosen
from vinvl.run.errors import UserError

TAGS = (["cat"], ["dog", "tree"], ["pizza", "umbrella", "park", "ball", "traffic light"])


def data_of(folder: Path, rows: Any, **settings: Any) -> Any:
    """The module of a corpus of these rows, ready to train."""
    store_of(folder)
    corpus = str(write_lines(folder / "tags.jsonl", rows))
    module = datamodule(folder, {"train": corpus, "val": corpus}, **{"variant": "vivo", "max_tokens": 15, **settings})
    module.prepare_data()
    module.setup("fit")
    return module


def tag_rows(count: int = 9) -> list[dict[str, Any]]:
    return [{"image_id": number, "tags": TAGS[number % 3]} for number in range(count)]


def test_fields_of_a_batch(tmp_path: Path) -> None:
    module = data_of(tmp_path, tag_rows(), tag_position=40, max_tokens=60)
    dataset: PretrainingDataset = module.datasets["train"]
    batch = dataset.collate(draws(range(9)))
    assert batch.labels is not None and batch.masked_positions is not None and batch.position_ids is not None
    restored = batch.input_ids.clone()
    restored[batch.masked_positions] = batch.labels
    for row, tags in enumerate(TAGS * 3):
        tokens = [*plain(" ".join(tags)), SPECIAL.sep_token_id]
        assert restored[row, : len(tokens)].tolist() == tokens
        assert batch.position_ids[row, : len(tokens)].tolist() == list(range(40, 40 + len(tokens)))
        assert (restored[row, len(tokens) :] == SPECIAL.pad_token_id).all()
        is_token = torch.arange(restored.shape[1]) < len(tokens)
        assert torch.equal(batch.token_type_ids[row].bool(), is_token)
        assert torch.equal(batch.attention_mask[row, : restored.shape[1]], is_token)
        assert batch.masked_positions[row].sum() == max(round(0.15 * (len(tokens) - 1)), 1)
    assert batch.pair_labels is None and module.num_pair_classes == 3
    shown = "\n".join(dataset.show(draws([2])[0], TOKENIZER.convert_ids_to_tokens))
    assert "tags.jsonl line 3" in shown and "hidden" in shown
    again = dataset.collate(draws(range(9)))
    assert torch.equal(again.input_ids, batch.input_ids)
    other = dataset.collate(draws(range(9), epoch=1))
    assert not torch.equal(other.input_ids, batch.input_ids)


@pytest.mark.parametrize(("share", "most"), [(0.15, 15), (1.0, 15), (1.0, 7)])
def test_hidden_tags_stand_as_words_of_captions(tmp_path: Path, share: float, most: int) -> None:
    """In segment 0, at random places, without the tags that are not hidden; never beyond the longest text."""
    module = data_of(tmp_path, tag_rows(), tags_as_words=True, mask_probability=share, max_tokens=most)
    batch = module.datasets["train"].collate(draws(range(9)))
    assert not batch.token_type_ids.any()
    is_token, starts = batch.attention_mask[:, : batch.input_ids.shape[1]].bool(), set()
    labels = batch.labels.split(batch.masked_positions.sum(dim=1).tolist())
    for row, tags in enumerate(TAGS * 3):
        there, count = plain(" ".join(tags))[: most - 1], len(labels[row])
        assert count == max(round(share * len(there)), 1)
        assert sorted(there) == sorted(labels[row].tolist()) if share == 1 else set(labels[row].tolist()) <= set(there)
        assert is_token[row].tolist() == [True] * (count + 1) + [False] * (len(is_token[row]) - count - 1)
        assert batch.masked_positions[row, :count].all() and batch.input_ids[row, count] == SPECIAL.sep_token_id
        start = int(batch.position_ids[row, 0])
        assert batch.position_ids[row, : count + 1].tolist() == list(range(start, start + count + 1))
        assert start + count < most
        starts.add(start)
    assert len(starts) > 1


@given(st.lists(st.integers(1, 14), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 100))
def test_the_share_is_rounded_and_one_at_least(lengths: list[int], share: float, seed: int) -> None:
    maskable = np.arange(14) < np.array(lengths)[:, None]
    hidden = chosen(maskable, np.random.default_rng(seed).random(maskable.shape), share)
    assert not (hidden & ~maskable).any()
    assert hidden.sum(axis=1).tolist() == [max(round(share * length), 1) for length in lengths]


def test_long_sets_are_cut_and_captions_play_no_part(tmp_path: Path) -> None:
    rows = [{"image_id": 0, "text": "a dog", "tags": ["cat"] * 20}, {"image_id": 1, "text": "a tree in the park"}]
    batch = data_of(tmp_path, rows, mask_probability=0.0).datasets["train"].collate(draws([0, 1]))
    assert batch.attention_mask[0, : batch.input_ids.shape[1]].sum() == 15
    classes = len(plain("dog"))
    assert batch.input_ids.shape[1] == 15 and classes and batch.token_type_ids[0].sum() == 15


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        ([{"image_id": 0, "text": "what?", "answer": "cat"}], {}, "no row has any"),
        (tag_rows(), {"use_tags": False}, r"data\.use_tags=false withholds"),
        (tag_rows(), {"paired": True}, r"leave it out with data\.variant=vivo"),
        (tag_rows(), {"tag_position": -1}, r"data\.tag_position is -1"),
        (tag_rows(), {"variant": "oscar"}, "9 rows of tags without a text: pass data.variant=vivo"),
        ([{"image_id": 0, "tags": ["ᚠ", "ᚢ"]}], {}, "does not know 2 of 2 tags"),
        ([{"image_id": 0, "tags": [" "]}], {}, "has no text, and no tags that could stand alone"),
        ([{"image_id": 0, "answer": "cat"}], {}, "has no text, and no tags"),
        ([{"image_id": 0, "tags": ["\u200b"]}], {}, "the tokenizer finds no token in the tags"),
    ],
)
def test_what_cannot_be_learnt_from(tmp_path: Path, rows: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        data_of(tmp_path, rows, **settings)


def test_rows_without_tags_and_unknown_words_are_told(tmp_path: Path) -> None:
    rows = [*tag_rows(3), {"image_id": 3, "text": "what is it?", "answer": "cat"}, {"image_id": 4, "tags": ["ᚠ dog"]}]
    with pytest.warns(UserWarning) as told:
        dataset = data_of(tmp_path, rows).datasets["train"]
    sentences = " | ".join(str(one.message) for one in told)
    assert "does not know 1 of 9 tags" in sentences and "1 of 5 rows have no tags and are left out" in sentences
    assert len(dataset) == 4
    for epoch in range(5):
        batch = dataset.collate(draws([3], epoch))
        assert batch.labels.tolist() == plain("dog")  # the unknown piece is never hidden


def test_indices_keep_what_stands_alone(tmp_path: Path) -> None:
    corpus = ensure_index(
        write_lines(tmp_path / "tags.jsonl", [*tag_rows(2), {"image_id": 5, "text": "a cat"}]), TOKENIZER
    )
    assert corpus.facts.kinds == {"store_tags": 1, "tags_alone": 2}
    assert Corpus(corpus.path).lengths.tolist()[0][0] == 0 and not corpus.problems()


def test_the_loss_and_the_accuracy_are_those_of_the_matching() -> None:
    task, in_order = task_of("vivo"), task_of("vivo", match_tags=False)
    batch = replace(triplets(6, hidden_share=0.5), pair_labels=None)
    assert batch.labels is not None and batch.masked_positions is not None
    rows = batch.masked_positions.nonzero()[:, 0]
    reversed_in_rows = torch.cat([batch.labels[rows == row].flip(0) for row in rows.unique()])
    other = replace(batch, labels=reversed_in_rows)
    for one in (task, in_order):
        one.log = lambda *_, **__: None  # type: ignore[method-assign]
    assert task.training_loss(batch).item() == pytest.approx(task.training_loss(other).item())
    assert in_order.training_loss(batch).item() != pytest.approx(in_order.training_loss(other).item())
    output = in_order.guess(batch)
    assert output.logits is not None
    assert in_order.training_loss(batch).item() == pytest.approx(F.cross_entropy(output.logits, batch.labels).item())
    assert task.training_loss(batch) <= in_order.training_loss(batch) + 1
    scores = []
    for given_labels in (batch, other):
        task.masked_tokens.reset()
        task.masked_loss.reset()
        task.evaluate_batch(given_labels)
        scores.append(task.compute_scores())
    assert scores[0] == scores[1] and "masked_accuracy" in scores[0] and "contrastive_accuracy" not in scores[0]
