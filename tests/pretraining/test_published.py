"""The published Oscar+ corpus becomes corpus files: every row with the second text that the published code reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pretraining.samples import (
    ROWS,
    TOKENIZER,
    as_in_processes,
    objects,
    write_labels,
    write_published,
    write_tsv,
)
from vinvl.pretraining import published as convert
from vinvl.pretraining.command import main
from vinvl.pretraining.corpus import ensure_index
from vinvl.pretraining.published import convert_published_corpus
from vinvl.run.errors import UserError


def converted(settings: Path, output: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """ "split/dataset" → its rows."""
    convert_published_corpus(settings, output, **{"validation_share": 0.0, **options})
    return written(output)


def written(output: Path) -> dict[str, list[dict[str, Any]]]:
    files = {str(path.relative_to(output))[: -len(".jsonl")]: path for path in sorted(output.rglob("*.jsonl"))}
    return {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in files.items()}


def test_rows_are_those_of_the_published_code(tmp_path: Path) -> None:
    found = converted(write_published(tmp_path), tmp_path / "out")
    assert sorted(found) == ["train/coco", "train/googlecc", "train/gqa"]
    man = {"image_id": "391895", "tags": ["man", "motorbike"], "source": "coco", "id": "coco_391895"}
    dogs = {"image_id": "12", "text": "two dogs", "tags": ["dog", "dog"], "source": "coco", "id": "coco_12"}
    texts = ("A man on a motorbike.", "Someone rides  ❤.")
    assert found["train/coco"] == [{**man, "text": text} for text in texts] + [dogs]
    assert found["train/googlecc"][0]["tags"] == ["sea", "sun set"]  # "cc" is its short name
    question, caption = found["train/gqa"]
    assert question["answer"] == "the door" and "tags" not in question and question["image_id"] == "2386621"
    assert caption["tags"] == ["door"] and "answer" not in caption
    corpus = ensure_index(tmp_path / "out" / "train" / "gqa.jsonl", TOKENIZER)
    assert corpus.facts.kinds == {"given_tags": 1, "answer": 1} and corpus.facts.sources == {"gqa": 2}


def test_tags_may_be_the_annotated_ones_or_the_stores(tmp_path: Path) -> None:
    yaml = write_published(tmp_path)
    truth = converted(yaml, tmp_path / "truth", ground_truth_tags=True)["train/coco"]
    assert [row["tags"] for row in truth] == [["person"], ["person"], ["dog", "dog"]]
    for dataset in ("coco", "cc", "gqa"):  # which are not needed then
        (tmp_path / "labels" / dataset / "predictions_gt.tsv").unlink()
    found = converted(yaml, tmp_path / "store", store_tags=True)
    assert [set(row) for row in found["train/coco"]] == [{"image_id", "text", "source", "id"}] * 3
    assert found["train/gqa"][0]["answer"] == "the door"


def test_rows_of_other_datasets_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = write_published(tmp_path)
    assert main(["convert", str(yaml), "--output", str(tmp_path / "out"), "--datasets", "gqa,coco"]) == 0
    printed = capsys.readouterr().out
    assert "left out, as their datasets were not asked for: 1 of googlecc, 1 of vg" in printed
    assert sum(map(len, written(tmp_path / "out").values())) == 5
    assert main(["convert", str(yaml), "--output", str(tmp_path / "two"), "--datasets", "vg"]) == 1
    assert "has no dataset 'vg'; its corpus is coco, googlecc, gqa" in capsys.readouterr().err


def test_an_id_in_two_datasets_is_never_taken_for_one_image(tmp_path: Path) -> None:
    yaml = write_published(tmp_path, [*ROWS, ("gqa_12", "gqa_12", "a pane")])
    named = {"12": objects("window"), "2386621": objects("door")}
    write_labels(tmp_path / "labels" / "gqa" / "predictions_gt.tsv", "imageid2idx.json", named)
    with pytest.raises(UserError, match=r"coco and gqa both have an image '12' \(1 such images.*prefix-image-ids gqa"):
        converted(yaml, tmp_path / "out")
    with pytest.raises(UserError, match="coco and gqa both have"):
        converted(yaml, tmp_path / "out", prefix_image_ids=["googlecc"])
    assert not (tmp_path / "out").exists()
    one = converted(yaml, tmp_path / "one", prefix_image_ids=["gqa"])
    assert [row["image_id"] for row in one["train/gqa"]] == ["gqa_2386621", "gqa_2386621", "gqa_12"]
    assert one["train/coco"][0]["image_id"] == "391895"
    assert (one["train/coco"][2]["tags"], one["train/gqa"][2]["tags"]) == (["dog", "dog"], ["window"])
    every = converted(yaml, tmp_path / "all", prefix_image_ids="all")
    assert every["train/googlecc"][0]["image_id"] == "googlecc_77"
    same = converted(yaml, tmp_path / "none", prefix_image_ids=[])
    assert same["train/gqa"][2]["image_id"] == same["train/coco"][2]["image_id"] == "12"
    converted(yaml, tmp_path / "alone", datasets=["gqa"])
    with pytest.raises(UserError, match="prefix-image-ids names sbu, which is not converted"):
        converted(yaml, tmp_path / "sbu", prefix_image_ids=["sbu"])


def test_an_image_is_in_one_split_whatever_the_rows_and_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"coco_{number % 200}", f"coco_{number % 200}", f"text {number}") for number in range(600)]
    yaml = write_published(tmp_path, rows)
    named = {str(number): objects("dog") for number in range(200)}
    write_labels(tmp_path / "labels" / "coco" / "predictions_gt.tsv", "imageid2idx.json", named)
    found = converted(yaml, tmp_path / "one", validation_share=0.2)
    train, val = ({row["image_id"] for row in found[f"{split}/coco"]} for split in ("train", "val"))
    assert not train & val and len(train | val) == 200 and 20 <= len(val) <= 60
    assert [row["text"] for row in found["val/coco"]] == [r[2] for r in rows if r[0].split("_")[1] in val]
    monkeypatch.setattr(convert, "CHUNK_BYTES", 3000)
    monkeypatch.setattr(convert, "pool_map", as_in_processes)
    again = converted(yaml, tmp_path / "two", validation_share=0.2, workers=2)
    assert again == found
    prefixed = converted(yaml, tmp_path / "three", validation_share=0.2, prefix_image_ids="all")
    assert {row["image_id"] for row in prefixed["val/coco"]} == {f"coco_{image}" for image in val}


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=8), st.booleans())
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_line_offsets(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ended: bool) -> None:
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    lines = [line.replace(b"\n", b"") + b"\n" for line in lines]
    whole = b"".join(lines)
    path.write_bytes(whole if ended or len(lines[-1]) == 1 else whole[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "BLOCK_BYTES", 5)
        assert convert.line_offsets(path).tolist() == np.cumsum([0, *map(len, lines[:-1])]).tolist()


Damage = Callable[[Path], object]


def rows_with(number: int, *row: str) -> Damage:
    """Puts a row in the place of line `number`."""
    return lambda folder: write_tsv(folder / "text" / "corpus.tsv", [*ROWS[: number - 1], row, *ROWS[number:]])


def replaced(name: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


NO_YAML = "is no yaml of a published corpus"
YAML, COCO, GQA = "corpus.yaml", "labels/coco/predictions_gt.tsv", "labels/gqa/QA_fileB.tsv"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (rows_with(2, "coco_12", "gqa_12", "text"), r"corpus.tsv line 2 names the datasets 'coco' and 'gqa'"),
        (rows_with(2, "coco_12", "coco_13", "text"), r"line 2: the image is '12' and the label info 'coco_13'"),
        (rows_with(3, "gqa_5", "gqa_qa_6_q1", "text"), r"line 3: the image is '5' and the label info 'gqa_qa_6_q1'"),
        (rows_with(3, "gqa_5", "gqa_qa", "text"), r"line 3: the image is '5' and the label info 'gqa_qa'"),
        (rows_with(2, "coco_12", "coco_12", "  "), "line 2 has no text"),
        (rows_with(2, "coco_12", "coco_12"), "line 2 has 2 columns"),
        (replaced("text/corpus.tsv", "_", "1_"), "no rows of the datasets to convert; it has cc1, coco1, gqa1, vg1"),
        (rows_with(2, "coco", "coco_12", "text"), "line 2: the image info is 'coco', expected dataset and image id"),
        (rows_with(4, "cc_77", "cc_77", "text"), "line 4: the image info is 'cc_77', expected dataset, chunk and"),
        (rows_with(2, "coco_99", "coco_99", "text"), r"line 2: .*imageid2idx.json has no label '99'"),
        (rows_with(2, "coco_3918950", "coco_3918950", "text"), "has no label '3918950'"),
        (rows_with(3, "gqa_1", "gqa_qa_1_q7", "text"), r"line 3: .*QA_qaid2idx.json has no label 'q7'"),
        (rows_with(2, "coco_12", "coco_qa_12_q1", "text"), "line 2 is a question, and the labels of coco have no QA_"),
        (replaced("labels/coco/imageid2idx.json", '"12": 0', '"12": 1'), "that is of '391895'; the two files do not"),
        (replaced("labels/coco/imageid2idx.json", '"12": 0', '"12": 2'), "to line 2; .* has the lines 0 to 1"),
        (replaced("labels/coco/imageid2idx.json", '"12": 0', '"12": true'), "to line True"),
        (replaced("labels/coco/imageid2idx.json", '"12": 0', '"12": 0, "12": 1'), "has label '12' more than once"),
        (lambda folder: (folder / "labels/coco/imageid2idx.json").write_text("{}"), "imageid2idx.json names no labels"),
        (replaced(COCO, '[{"class": "dog"', '[{"cls": "dog"'), "label '12': objects holds an object without a class"),
        (replaced(COCO, '"class": "dog"', '"class": 3'), "label '12': objects holds an object without a class"),
        (replaced(COCO, '"class": "dog"', '"class": "\\ud800"'), "half of a surrogate pair"),
        (replaced(COCO, '"class": "dog"', '"class": " "'), "label '12', which .*line 6 asks for, has no objects"),
        (replaced(COCO, '"objects": [{"class": "dog"', '"things": [{"class": "dog"'), "objects is missing or null"),
        (replaced(COCO, '"image_h": 10, "image_w": 20, "objects": [{"class": "dog"', "{"), "is not valid JSON"),
        (replaced(GQA, '["the", "door"]', "[]"), "label 'q1', which .*line 3 asks for, has no answer"),
        (replaced(GQA, '["the", "door"]', '"door"'), "labels is 'door', expected a list of answers"),
        (replaced(YAML, "labels/coco", "labels/no"), "predictions_gt.tsv does not exist"),
        (replaced(YAML, "  coco: labels/coco\n", ""), "image_label_path has no folder for coco"),
        (replaced(YAML, "labels/coco", r'"lab\0els"'), "image_label_path has no folder for coco"),
        (replaced(YAML, "text/corpus.tsv", "text/no.tsv"), r"its corpus_file .*no.tsv does not exist"),
        (replaced(YAML, "coco_googlecc_gqa", "coco_../../x"), "names the dataset '../../x'"),
        (replaced(YAML, "coco_googlecc_gqa", "[coco]"), r"Expected `str`, got `array` - at `\$.corpus`"),
        (replaced(YAML, "corpus_file:", "corpus_file: {"), NO_YAML),
        (replaced(YAML, "corpus_file:", "x: !!python/object/apply:os.getcwd []\ncorpus_file:"), NO_YAML),
        (lambda folder: (folder / YAML).write_text("3"), NO_YAML),
        (lambda folder: (folder / "text/corpus.tsv").write_bytes(b"coco_1\tcoco_1\t\xff\n"), "is not UTF-8"),
        (lambda folder: (folder / "text/corpus.tsv").write_bytes(b""), "corpus.tsv is empty"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_sentence_and_leaves_nothing(tmp_path: Path, damage: Damage, sentence: str) -> None:
    yaml = write_published(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence) as raised:
        converted(yaml, tmp_path / "new" / "out")
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "new").iterdir() if (tmp_path / "new").exists() else ())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    yaml = write_published(tmp_path)
    (tmp_path / "out").mkdir()
    found = converted(yaml, tmp_path / "out")
    with pytest.raises(UserError, match="out exists already; delete it or choose another folder"):
        converted(yaml, tmp_path / "out", datasets=["gqa"])
    with pytest.raises(UserError, match="yaml exists already"):
        converted(yaml, yaml)
    assert written(tmp_path / "out") == found
    with pytest.raises(UserError, match=r"validation-share is 1\.0"):
        converted(yaml, tmp_path / "other", validation_share=1.0)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = write_published(tmp_path)
    before = sorted(tmp_path.iterdir())
    real = convert.convert_chunk

    def full(*chunk: Any, **rest: Any) -> convert.Converted:
        real(*chunk, **rest)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "convert_chunk", full)
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\)"):
        converted(yaml, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_writes_both_splits_where_training_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = write_published(tmp_path)
    share = ["--validation-share", "0.5", "--prefix-image-ids", "all", "--workers", "1"]
    assert main(["convert", str(yaml), "--output", str(tmp_path / "out"), *share]) == 0
    found, printed = written(tmp_path / "out"), capsys.readouterr()
    counts = {name: len(rows) for name, rows in found.items()}
    for line in printed.out.splitlines()[1:-1]:
        dataset, train, val = line.split()
        assert (counts.get(f"train/{dataset}", 0), counts.get(f"val/{dataset}", 0)) == (int(train), int(val))
    assert sum(counts.values()) == 6 and "6 rows in" in printed.err
    assert all(row["image_id"].startswith(f"{row['source']}_") for rows in found.values() for row in rows)
    shutil.rmtree(tmp_path / "out")
    assert main(["convert", str(yaml), "--output", str(tmp_path / "out"), "--store-tags", "--ground-truth-tags"]) == 1
    assert "give one of the two" in capsys.readouterr().err
