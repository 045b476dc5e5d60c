"""Downloads become corpus rows: every record is a row, or is counted, or ends it with one sentence."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pretraining.raw import every_kind, karpathy, write
from tests.pretraining.samples import TOKENIZER, store_of
from vinvl.pretraining.builders import LineTable, PersonsAnswer, VqaAnnotation
from vinvl.pretraining.command import main
from vinvl.pretraining.corpus import ensure_index
from vinvl.pretraining.making import KINDS, Made, make_corpus
from vinvl.pretraining.published import share_of
from vinvl.run.errors import UserError


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def made(kind: str, files: list[Path], folder: Path, **options: Any) -> tuple[Made, list[tuple[Any, ...]]]:
    """Image id, text, and second text of each training row, which an index takes."""
    done = make_corpus(kind, files, folder, **options)
    path = folder / "train" / f"{kind}.jsonl"
    ensure_index(path, TOKENIZER)
    rows = rows_of(path)
    assert {row["source"] for row in rows} == {kind} and len({row["id"] for row in rows}) == len(rows)
    return done, [(row["image_id"], row["text"], row.get("answer", row.get("tags"))) for row in rows]


SECOND = {  # what becomes of `every_kind` about the images 3 and 4
    "coco_captions": [
        ("coco_3", "a red circle .", None), ("coco_4", "a blue star", None), ("coco_4", "a star", None),
    ],
    "flickr30k": [
        ("flickr30k_3", "Two shapes .", None), ("flickr30k_3", "A circle.", None), ("flickr30k_4", "A star .", None),
        ("flickr30k_4", "A star again .", None), ("flickr30k_4", "stars", None),
    ],
    "conceptual_captions": [("googlecc_0", "a star", None), ("googlecc_1", "some stars", None)],
    "sbu": [("sbu_0", "my circle", None), ("sbu_1", "my star", None)],
    "vqa": [("coco_3", "what is red?", "circle"), ("coco_4", "is it blue?", "no")],
    "gqa": [("gqa_3", "Is it red?", "yes")],
    "vg_qa": [("gqa_3", "What is red?", "The circle")],
    "open_images": [("3", "a circle", None), ("4", "a star", None), ("0abc", "a cat", None)],
}  # fmt: skip
LEFT_OUT = {
    "coco_captions": {"of split test": 2},
    "gqa": {"without an answer": 1},
    "open_images": {"that stand in for images without regions": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, tmp_path: Path) -> None:
    done, rows = made(kind, every_kind(tmp_path / "raw", [3, 4])[kind], tmp_path / "out")
    assert rows == SECOND[kind]
    assert done.left_out == LEFT_OUT.get(kind, {}) and done.images == len({image for image, *_ in rows})
    assert [*done.rows.values()] == [len(rows)]


def test_sbu_in_one_file(tmp_path: Path) -> None:
    urls = ["http://f.com/1_ab.jpg", "http://f.com/2_ab.jpg"]
    file = write(tmp_path / "sbu.json", {"image_urls": urls, "user_ids": ["a", "b"], "captions": ["one {", "two"]})
    make_corpus("sbu", [file], tmp_path / "out", prefix="")
    rows = rows_of(tmp_path / "out" / "train" / "sbu.jsonl")
    found = [(row["image_id"], row["text"], row["url"]) for row in rows]
    assert found == [("0", "one {", urls[0]), ("1", "two", urls[1])]


def test_images_are_called_as_a_list_says(tmp_path: Path) -> None:
    files = every_kind(tmp_path / "raw", [3, 4])["conceptual_captions"]
    ids = write(tmp_path / "ids.tsv", "http://a.b/2.jpg?x=1\t0_5\n")
    done, rows = made("conceptual_captions", files, tmp_path / "url", ids=ids)
    assert rows == [("googlecc_0_5", "some stars", None)]
    assert done.left_out == {f"of pictures that {ids} does not have": 1}
    _, rows = made("conceptual_captions", files, tmp_path / "row", ids=write(tmp_path / "b.tsv", "0\tx\n1\ty\n"))
    assert [image for image, *_ in rows] == ["googlecc_x", "googlecc_y"]


def test_an_address_goes_before_a_row_number(tmp_path: Path) -> None:
    files = every_kind(tmp_path / "raw", [3, 4])["conceptual_captions"]
    ids = write(tmp_path / "ids.tsv", "http://a.b/2.jpg?x=1\tby_address\n1\tby_row\n0\tfirst\n")
    _, rows = made("conceptual_captions", files, tmp_path / "out", ids=ids)
    assert [image for image, *_ in rows] == ["googlecc_first", "googlecc_by_address"]


def test_one_full_stop_of_an_answer_is_dropped(tmp_path: Path) -> None:
    qas = [
        {"qa_id": n, "question": "where?", "answer": text} for n, text in enumerate(("In the U.S..", "Wait...", "."))
    ]
    done, rows = made("vg_qa", [write(tmp_path / "qa.json", [{"id": 1, "qas": qas}])], tmp_path / "out")
    assert [answer for *_, answer in rows] == ["In the U.S.", "Wait.."] and done.left_out == {"without an answer": 1}


def test_sentences_without_ids_are_numbered(tmp_path: Path) -> None:
    said = {"split": "train", "filename": "5.jpg", "sentences": [{"raw": "one"}, {"raw": "two"}]}
    made("flickr30k", [write(tmp_path / "dataset.json", {"images": [said]})], tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "train" / "flickr30k.jsonl")
    assert [row["id"] for row in rows] == ["flickr30k_5#0", "flickr30k_5#1"]


def test_lines_whose_keys_have_one_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinvl.pretraining.builders.hash", lambda key: 1, raising=False)
    table = LineTable(write(tmp_path / "one.tsv", "a\t1\n"), lambda line, place: line.decode().partition("\t")[0])
    assert table.find("a") == b"a\t1\n" and table.find("b") is None


def test_tags_from_a_file(tmp_path: Path) -> None:
    files = every_kind(tmp_path / "raw", [3, 4])["open_images"]
    tags = write(tmp_path / "tags.jsonl", '{"image_id": "3", "tags": ["Circle", " "], "text": "Circle"}\n')
    done, rows = made("open_images", files, tmp_path / "out", tags=tags)
    assert rows == [("3", "a circle", ["Circle"])]
    assert done.left_out[f"of images without tags in {tags}"] == 2


def test_splits_of_karpathy(tmp_path: Path) -> None:
    file = every_kind(tmp_path / "raw", [3, 4])["coco_captions"][1]
    _, rows = made("coco_captions", [file], tmp_path / "out", splits=["test"])
    assert [text for _, text, _ in rows] == ["one", "two"]
    with pytest.raises(UserError, match=r"dataset_coco.json has no split 'tset': it has restval, test"):
        make_corpus("coco_captions", [file], tmp_path / "other", splits=["tset"])


def test_images_without_regions_are_counted(tmp_path: Path) -> None:
    store_of(tmp_path, images=4)  # 0, 1, 2, 3
    files = every_kind(tmp_path / "raw", [3, 4])
    done = make_corpus("vqa", files["vqa"], tmp_path / "out", prefix="", store=tmp_path / "regions.h5")
    assert (done.images, done.without_regions) == (2, 1)
    with pytest.raises(
        UserError, match=r"regions of none of the images, the last being 'coco_4'; its ids are like '0'"
    ):
        make_corpus("vqa", files["vqa"], tmp_path / "other", store=tmp_path / "regions.h5")
    assert not (tmp_path / "other" / "train").exists() or not [*(tmp_path / "other" / "train").iterdir()]


def test_the_split_of_an_image_is_its_ids(tmp_path: Path) -> None:
    """So that captions and questions about one picture are in the same."""
    annotations = [{"id": n, "image_id": n // 2, "caption": f"caption {n}"} for n in range(200)]
    file = write(tmp_path / "c.json", {"annotations": annotations, "images": [{"id": n} for n in range(100)]})
    done = make_corpus("coco_captions", [file], tmp_path / "out", validation_share=0.2)
    val = {row["image_id"] for row in rows_of(tmp_path / "out" / "val" / "coco_captions.jsonl")}
    assert val == {f"coco_{n}" for n in range(100) if share_of(str(n)) < 0.2} and 10 < len(val) < 35
    assert sum(done.rows.values()) == 200 and done.images == 100


@given(st.lists(st.sampled_from(["yes", "no", "2"]), min_size=1, max_size=10))
def test_the_answer_is_the_commonest(people: list[str]) -> None:
    one = VqaAnnotation(1, 1, None, [PersonsAnswer(answer) for answer in people])
    counts = Counter(people)
    assert counts[one.answer()] == max(counts.values())
    assert VqaAnnotation(1, 1, "maybe", one.answers).answer() == "maybe"


@given(st.dictionaries(st.text("abc\u00e9\u2764", min_size=1, max_size=4), st.integers(), max_size=20))
def test_lines_are_found_by_their_keys(tmp_path_factory: pytest.TempPathFactory, values: dict[str, int]) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.tsv"
    path.write_text("".join(f"{key}\t{value}\n\n" for key, value in values.items()), encoding="utf-8")
    table = LineTable(path, lambda line, place: line.decode().partition("\t")[0])
    assert len(table) == len(values) and table.find("d") is None
    assert {key: int((table.find(key) or b"").decode().partition("\t")[2]) for key in values} == values


BAD: dict[str, tuple[str, str, str]] = {  # kind, file and its content → sentence
    "no tab": ("conceptual_captions", "a star\thttp://a\na star http://b\n", r"line 2 is not a caption and an address"),
    "three columns": ("conceptual_captions", "a\tb\tc\n", r"line 1 is not a caption and an address"),
    "no UTF-8": ("conceptual_captions", "a\udcff\tb\n", r"line 1 is not UTF-8 text"),
    "no address": ("conceptual_captions", "http://a\ta star\n", r"line 1 has the address 'a star', which is none"),
    "nothing seen": ("conceptual_captions", "\u200b\0\thttp://a\n", r"becomes a row \(1 without a text\)"),
    "doubled line": (
        "flickr30k",
        "1.jpg#0\ta\n2.jpg#0\ta\n1.jpg#0\tb\n",
        r"line 1: the id 1#0 is there more than once",
    ),
    "doubled question": (
        "gqa",
        '{"1": {"imageId": "n1", "question": "a?", "answer": "b"}, '
        '"1": {"imageId": "n1", "question": "a?", "answer": "b"}}',
        r"record 1: the id 1 is there more than once \(of 1 such ids the first\): give each file",
    ),
    "empty": ("conceptual_captions", "", r"nothing in it becomes a row; conceptual_captions is made of Train_GCC"),
    "other JSON": ("coco_captions", '{"questions": []}', r"missing required field `images`"),
    "a list": ("coco_captions", "[]", r"should be one JSON object"),
    "no captions": ("coco_captions", '{"images": [{"id": 1}]}', r"nothing in it becomes a row"),
    "strange image": (
        "coco_captions",
        '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 2, "caption": "a"}]}',
        r"annotation 1 is about image 2, which is not among its images \(1 such images\)",
    ),
    "no text": (
        "coco_captions",
        '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": 5}]}',
        r"Expected `str`, got `int` at \$.annotations\[0\].caption",
    ),
    "blank": (
        "coco_captions",
        '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": " "}]}',
        r"nothing in it becomes a row \(1 without a text\)",
    ),
    "no caption": ("flickr30k", "1.jpg#0\ta\n1.jpg a\n", r"line 2 is no caption of Flickr30k"),
    "one file": ("vqa", "{}", r"vqa takes files in pairs"),
    "a list of questions": ("gqa", "[]", r"should be one JSON object of question ids"),
    "no image": ("gqa", '{"1": {"question": "a?", "answer": "b"}}', r"record 1 \(question 1\): .*`imageId`"),
    "cut off": ("vg_qa", '[{"id": 1, "qas": [{"qa_id', r"record 1 is not valid JSON"),
    "no captions of ours": ("open_images", '{"image_id": 1, "answer": "a"}', r"line 1 is no caption with its image"),
    "alone": ("sbu", '{"image_urls": ["http://a"], "captions": []}', r"caption 1 has no caption"),
    "no addresses": ("sbu", '{"image_urls": ["a"], "captions": ["b"]}', r"has the address 'a', which is none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_downloads(case: str, tmp_path: Path) -> None:
    kind, content, sentence = BAD[case]
    file = tmp_path / "raw.flickr"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=sentence) as refused:
        make_corpus(kind, [file], tmp_path / "out")
    assert "\n" not in str(refused.value) and not [*tmp_path.rglob("*.jsonl"), *tmp_path.rglob(".*")]


def test_questions_and_annotations_belong_together(tmp_path: Path) -> None:
    questions, annotations = every_kind(tmp_path, [3, 4])["vqa"]
    said = json.loads(annotations.read_text())["annotations"]
    for wrong, sentence in (
        (said[:1], r"no answer to question 10 about image 3 \(.*record 1\); take both of one split"),
        ([*said, {**said[0], "question_id": 12}], r"answers 1 questions that .* does not hold, the first being 12"),
        ([said[1], {**said[0], "image_id": 5}], r"an answer about another image, 5, to question 11 about image 4"),
        ([*said, said[0]], r"answers question 11 more than once"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_corpus("vqa", [questions, write(annotations, {"annotations": wrong})], tmp_path / "out")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = every_kind(tmp_path / "raw", [3, 4])
    given_ = ["make", "gqa", str(files["gqa"][0]), "--output", str(tmp_path / "out")]
    assert main(given_) == 0
    printed = capsys.readouterr().out
    assert "no image falls into the other split" not in printed
    few = ["make", "gqa", str(files["gqa"][0]), "--output", str(tmp_path / "few"), "--validation-share", "0.5"]
    assert main(few) == 0 and "no image falls into the other split" in capsys.readouterr().out
    assert "gqa.jsonl: 1 rows" in printed and "left out: 1 without an answer" in printed and "1 images" in printed
    assert main(given_) == 1 and "gqa.jsonl exists already" in capsys.readouterr().err
    assert main([*given_, "--ids", "x"]) == 1
    assert "--ids is for conceptual_captions and sbu, not for gqa" in capsys.readouterr().err
    assert main(["make", "gpa", "x", "--output", "y"]) == 1 and "invalid choice" in capsys.readouterr().err
    assert main([*given_, *given_[2:3]]) == 1
    long = ["make", "gqa", str(files["gqa"][0]), "--output", str(tmp_path / "long"), "--prefix", "x" * 256]
    assert main(long) == 1 and "image id is longer than 256" in capsys.readouterr().err
    twice = ["make", "gqa", str(files["gqa"][0]), f"{tmp_path}/raw/../raw/gqa.json", "--output", str(tmp_path / "o")]
    assert main(twice) == 1 and "is given more than once" in capsys.readouterr().err
    assert main([*given_, "--validation-share", "1"]) == 1 and "share from 0" in capsys.readouterr().err


def test_a_folder_of_question_files(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for part in (1, 0):
        content = {f"{part}": {"imageId": "n5", "question": f"part {part}?", "answer": "yes"}}
        write(tmp_path / "all" / f"part_{part}.json", content)
    _, rows = made("gqa", [tmp_path / "all"], tmp_path / "out")
    assert rows == [("gqa_n5", "part 0?", "yes"), ("gqa_n5", "part 1?", "yes")]


def test_karpathy_images_without_ids(tmp_path: Path) -> None:
    file = karpathy(tmp_path / "dataset_flickr30k.json", [{"split": "train", "sentences": ["a"]}])
    with pytest.raises(UserError, match=r"has no cocoid: filename is missing"):
        make_corpus("flickr30k", [file], tmp_path / "out")
