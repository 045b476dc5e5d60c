"""Triplets and hidden tokens against recordings of the published code, and against the rates measured on it."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests import golden
from tests.pretraining.samples import SPECIAL, TOKENIZER
from vinvl.data.text import encode_texts
from vinvl.pretraining.triplets import (
    ANSWER,
    TRIES,
    PairDraws,
    PairOptions,
    Triplets,
    assemble_pairs,
    mask_tokens,
    mismatch,
)
from vinvl.run.folders import config_directory

SAMPLING = golden.facts("oscar/data__pretrain_sampling")
DOCS, ANSWER_ROWS = SAMPLING["docs"], SAMPLING["qa_doc_ids"]
IMAGES = np.unique([doc[0].split("|")[0] for doc in DOCS], return_inverse=True)[1]
OBJECTIVES = sorted((Path(config_directory()) / "objective").glob("*.yaml"))
RUNS = pytest.mark.parametrize(
    "run", SAMPLING["runs"], ids=lambda run: f"{run['textb_sample_mode']}-{run['texta_false_prob']}"
)
RANDOM_WORD, FEATURES = golden.facts("oscar/data__random_word"), golden.facts("oscar/data__pretrain_features")


@pytest.mark.parametrize("path", OBJECTIVES, ids=lambda path: path.stem)
def test_every_objective_draws_as_a_recorded_run(path: Path) -> None:
    """The published settings behind each name, whose draws the tests below compare, and the classes of its label."""
    given = OmegaConf.load(path).with_tags
    options = given.get("data", {})
    if "texta_false_prob" not in options:
        assert path.stem in ("none", "no_contrast")
        return
    (run,) = [one for one in SAMPLING["runs"] if all(one[name] == options[name] for name in options)]
    assert run["num_contrast_classes"] == {"two": 2, "three": 3}[path.stem.split("_")[0]]
    assert (options.textb_sample_mode == ANSWER) == path.stem.endswith("answers")


def options_of(run: dict[str, Any], mask_loss_for_unmatched: bool = True) -> PairOptions:
    return PairOptions(run["textb_sample_mode"], run["texta_false_prob"], mask_loss_for_unmatched)


def triplets_of(rows: list[int], draws: PairDraws, options: PairOptions) -> Triplets:
    return mismatch(
        np.array(rows), draws, options, options.num_classes(), lambda r: IMAGES[r], lambda r: np.ones(r.shape, bool)
    )


def python_draws(
    seed: int,
    item: int,
    options: PairOptions,
    images: Sequence[Any] | np.ndarray = IMAGES,
    answer_rows: Sequence[int] = ANSWER_ROWS,
) -> PairDraws:
    """The numbers that the published code draws, in its order."""
    dice = random.Random(seed)
    share, row = dice.random(), item
    wrong_second = share > options.texta_false_prob
    rows, answers, side = [0] * TRIES, [0] * TRIES, 1
    for place in range(TRIES):
        if options.textb_sample_mode == 2 and wrong_second:
            row = answers[place] = answer_rows[dice.randrange(len(answer_rows))]
            if row != item:
                break
        else:
            row = rows[place] = dice.randrange(len(images))
            if images[row] != images[item]:
                break
    if options.textb_sample_mode == 0 and wrong_second:
        side = dice.randrange(1, 3) - 1
    return PairDraws(np.array([share]), np.array([rows]), np.array([side]), np.array([answers]))


@RUNS
def test_triplets_are_those_of_the_published_code(run: dict[str, Any]) -> None:
    options = options_of(run)
    assert options.num_classes() == run["num_contrast_classes"]
    for trace in run["traces"]:
        made = triplets_of([trace["item"]], python_draws(trace["python_random_seed"], trace["item"], options), options)
        second = DOCS[made.second_rows[0]][1 + made.second_sides[0]]
        assert (DOCS[made.first_rows[0]][1], second, made.labels[0]) == (
            trace["text_a"],
            trace["text_b"],
            trace["label"],
        )
        assert made.image_rows[0] == trace["item"] and DOCS[trace["item"]][0].split("|")[0] == trace["img_id"]
        images = {IMAGES[row] for row in (trace["item"], made.first_rows[0], made.second_rows[0])}
        assert (len(images) > 1) == trace["is_img_match"]  # the published name says the opposite


@RUNS
def test_rates_are_those_measured_on_the_published_code(run: dict[str, Any]) -> None:
    size = run["draws"]
    generator = np.random.default_rng(3)
    rows = np.arange(size) % len(DOCS)
    drawn = PairDraws.draw(size, len(DOCS), np.array(ANSWER_ROWS), generator)
    made = triplets_of(rows.tolist(), drawn, options_of(run))
    counts: Counter[str] = Counter()
    for row, first, second, side, label in zip(
        rows, made.first_rows, made.second_rows, made.second_sides, made.labels, strict=True
    ):
        other = IMAGES[first] != IMAGES[row] or IMAGES[second] != IMAGES[row]
        text_b = "own" if second == row and side == 1 else DOCS[second][1 + side].split()[0]
        counts[
            f"label={label},img_mismatch={int(other)},text_a={'own' if first == row else 'other'},text_b={text_b}"
        ] += 1
    assert set(counts) == set(run["counts"])
    for name, expected in run["counts"].items():
        spread = np.sqrt(2 * expected * (1 - expected / size))  # of the difference of two such counts
        assert abs(counts[name] - expected) < 5 * spread, name


def python_masking(tokens: list[int], dice: random.Random) -> tuple[list[float], list[int]]:
    """The numbers that the published code draws for one text: one a token, and a word where one is due."""
    shares, words = [], []
    for _ in tokens:
        shares.append(dice.random())
        due = shares[-1] < 0.15 and 0.8 <= shares[-1] / 0.15 < 0.9
        words.append(dice.choice(range(len(TOKENIZER))) if due else 0)
    return shares, words


@pytest.mark.parametrize("row", RANDOM_WORD["rows"], ids=lambda row: row["python_random_seed"])
def test_hidden_tokens_are_those_of_the_published_code(row: dict[str, Any]) -> None:
    ids = [TOKENIZER.get_vocab()[token] for token in row["tokens_in"]]
    shares, words = python_masking(ids, random.Random(row["python_random_seed"]))
    everywhere = np.ones((1, len(ids)), dtype=bool)
    seen, masked = mask_tokens(
        np.array([ids]), everywhere, np.array([shares]), np.array([words]), SPECIAL.mask_token_id
    )
    assert TOKENIZER.convert_ids_to_tokens(seen[0].tolist()) == row["tokens_out"]
    assert np.where(masked[0], ids, -1).tolist() == row["labels"]


def test_shares_of_hidden_tokens_are_those_measured_on_the_published_code() -> None:
    measured, generator = RANDOM_WORD["statistics"], np.random.default_rng(4)
    shape = (1000, int(measured["tokens"]) // 1000)
    ids = np.full(shape, 10)
    # One id is never drawn, so that a kept token is told from a random one.
    words = generator.integers(11, len(TOKENIZER), shape)
    seen, masked = mask_tokens(ids, np.ones_like(ids, bool), generator.random(shape), words, SPECIAL.mask_token_id)
    found = {
        "masked": masked.sum(),
        "mask_token": (masked & (seen == SPECIAL.mask_token_id)).sum(),
        "kept": (masked & (seen == 10)).sum(),
    }
    found["random"] = found["masked"] - found["mask_token"] - found["kept"]
    for name, count in found.items():
        assert abs(count - measured[name]) < 5 * np.sqrt(2 * measured[name]), name
    assert (seen[~masked] == 10).all()


@pytest.mark.parametrize("row", FEATURES["rows"], ids=lambda row: row["python_random_seed"])
def test_rows_of_tokens_are_those_of_the_published_code(row: dict[str, Any]) -> None:
    length = FEATURES["max_seq_length"]
    pair = assemble_pairs(
        encode_texts(TOKENIZER, [row["text_a"]]),
        encode_texts(TOKENIZER, [row["text_b"]]),
        max_tokens=length,
        special=SPECIAL,
    )
    # Which texts are hidden is decided with the triplet: here row 0, with row 1 as the other one.
    options = PairOptions(1, row["texta_false_prob"], bool(row["mask_loss_for_unmatched"]))
    assert PairOptions(2, row["texta_false_prob"], True).num_classes() == row["num_contrast_classes"]
    mask_second = True
    if row["is_next"] == 1 and row["texta_false_prob"] < 0.5:
        mode = PairOptions(2, options.texta_false_prob, options.mask_loss_for_unmatched)
        other = PairDraws(np.array([0.45]), np.ones((1, TRIES), int), np.ones(1, int), np.ones((1, TRIES), int))
        image = np.array([0, 1 if row["is_img_match"] else 0])
        made = mismatch(np.array([0]), other, mode, 3, lambda r: image[r], lambda r: np.ones(r.shape, bool))
        assert made.labels[0] == 1
        mask_second = bool(made.mask_second[0])
    dice = random.Random(row["python_random_seed"])
    shares, words = np.ones(pair.input_ids.shape), np.zeros(pair.input_ids.shape, dtype=np.int64)
    for where in [pair.text, pair.second_text][: 2 if mask_second else 1]:
        drawn_shares, drawn_words = python_masking(pair.input_ids[where].tolist(), dice)
        shares[where] = drawn_shares
        words[where] = drawn_words
    maskable = pair.text | (pair.second_text & mask_second)
    seen, masked = mask_tokens(pair.input_ids, maskable, shares, words, SPECIAL.mask_token_id)

    def padded(values: np.ndarray, fill: int) -> list[int]:
        whole: list[int] = np.pad(values, (0, length - len(values)), constant_values=fill).tolist()
        return whole

    assert padded(seen[0], SPECIAL.pad_token_id) == row["input_ids"]
    assert padded(pair.token_type_ids[0], 0) == row["segment_ids"]
    # Regions, which follow the tokens, are never hidden.
    regions = FEATURES["max_img_seq_length"]
    assert padded(np.where(masked[0], pair.input_ids[0], -1), -1) + [-1] * regions == row["lm_label_ids"]
    shown = min(row["num_regions"], regions)
    text = padded(np.ones(pair.input_ids.shape[1], dtype=int), 0)
    assert text + [1] * shown + [0] * (regions - shown) == row["input_mask"]
