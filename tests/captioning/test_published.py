"""The published captioning folders: what is read of them, constraints and rewards as Oscar has them, refusals."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertTokenizer

from tests import golden
from vinvl.captioning.constraints import CALLED, ConstraintOptions, DetectedConstraints
from vinvl.captioning.published import read_published_split
from vinvl.captioning.self_critical import CiderReward, read_document_frequencies, wrap_sentence
from vinvl.models.constrained import constraint_words, transition_table
from vinvl.run.errors import UserError

REPLICA = golden.FOLDER / "published/replica"
COCO, NOCAPS = REPLICA / "coco_caption", REPLICA / "nocaps"
CAPTIONS, CONSTRAINED = golden.facts("published/expected/coco_caption"), golden.facts("published/expected/nocaps")
TOKENIZER = BertTokenizer(str(REPLICA / "vocabulary/vocab.txt"))
IMAGE_LIST = NOCAPS / "nocaps_val_image_info.json"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Copies that may be changed."""
    for folder in (COCO, NOCAPS):
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


class TestReading:
    @pytest.mark.parametrize("name", list(CAPTIONS["datasets"]))
    def test_a_split_has_the_images_of_its_label_file_and_their_captions(self, name: str) -> None:
        recorded = CAPTIONS["datasets"][name]
        records = read_published_split(COCO / f"{name.rpartition('.')[2]}.yaml")
        assert records.image_ids.tolist() == recorded["image_keys"] == list(recorded["captions"])
        for index, image_id in enumerate(recorded["image_keys"]):
            assert records.captions_of(index) == recorded["captions"][image_id]
        (alone,) = COCO.glob(recorded["coco_format"].replace("_coco_format", ""))
        of_captions = read_published_split(alone)
        assert of_captions.image_ids.tolist() == recorded["image_keys"]
        assert of_captions.caption_ids.tolist() == records.caption_ids.tolist()
        assert of_captions.describe(1).startswith(f"{alone} caption 6 ")

    def test_nocaps_is_called_by_its_numbers_and_looked_up_by_open_images(self) -> None:
        bare = read_published_split(NOCAPS / "val.yaml")
        assert not bare.annotated and bare.image_ids.tolist() == list(bare["image_id"]) == list(CONSTRAINED["images"])
        records = read_published_split(NOCAPS / "val.yaml", IMAGE_LIST)
        assert records.image_ids.tolist() == bare.image_ids.tolist() and not records.annotated
        sent = golden.facts("published/expected/nocaps_val_submission")
        assert [int(one) for one in records["image_id"]] == [row["image_id"] for row in sent]
        kept = records.select(np.array([False, True, True]))
        assert kept.image_ids.tolist() == bare.image_ids[1:].tolist()

    def test_the_official_list_may_have_captions(self, folders: Path) -> None:
        listed = json.loads(IMAGE_LIST.read_text())
        listed["annotations"] = [{"id": n, "image_id": 3 - n % 3, "caption": f"Caption {n}."} for n in range(6)]
        (folders / "captions.json").write_text(json.dumps(listed))
        records = read_published_split(NOCAPS / "val.yaml", folders / "captions.json")
        assert [records.captions_of(n) for n in range(3)] == [[f"Caption {n}.", f"Caption {n + 3}."] for n in range(3)]
        assert list(records["domain"]) == ["out-domain", "near-domain", "in-domain"]

    def test_captions_in_any_order_and_names_from_the_working_folder(
        self, folders: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = folders / "coco_caption/train_caption.json"
        listed = json.loads(path.read_text())
        path.write_text(json.dumps([{**one, "image_id": int(one["image_id"])} for one in listed[::-1]]))
        yaml = folders / "coco_caption/train.yaml"
        yaml.write_text(yaml.read_text().replace("train_caption", "coco_caption/train_caption"))
        monkeypatch.chdir(folders)
        records = read_published_split(yaml)
        assert records.image_ids.tolist() == ["391983", "522418", "9"]
        assert records.captions_of(0) == [one["caption"] for one in listed[4::-1]]
        assert read_published_split(path).image_ids.tolist() == ["9", "522418", "391983"]


Change = Callable[[Path], object]


def rewritten(name: str, before: str, after: str) -> Change:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(before, after, 1))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "coco_caption/val.label.tsv").unlink(), r"val\.yaml names 'val\.label\.tsv' as its label, and"),
        (rewritten("coco_caption/val.yaml", "label:", "labels:"), r"val\.yaml is no yaml of a published split"),
        (rewritten("coco_caption/val.yaml", "label:", "&a [*a"), r"val\.yaml is no yaml of a published split"),
        (
            rewritten("coco_caption/val.label.tsv", "184613", "9"),
            r"val_caption\.json caption 1 \(id 0\) is about image 184613, which is not among those of .*"
            r"val\.label\.tsv \(1 such images\)",
        ),
        (rewritten("coco_caption/val.label.tsv", "184613", "318219"), r"line 2 has the image_id 318219 of .* line 1"),
        (rewritten("coco_caption/val.label.tsv", "184613", ""), r"val\.label\.tsv line 1: the image id, column 1"),
        (rewritten("coco_caption/val_caption.json", '"caption"', '"text"'), r"caption\.json: .*caption.* at \$\[0\]"),
        (rewritten("coco_caption/val_caption.json", '"id": 1,', '"id": 0,'), r"caption 2 has the caption_id 0 of"),
    ],
)  # fmt: skip
def test_refused_splits(folders: Path, change: Change, sentence: str) -> None:
    change(folders)
    with pytest.raises(UserError, match=sentence):
        read_published_split(folders / "coco_caption/val.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rewritten("nocaps/val.label.tsv", "0013ea2087020901", "9"), r"line 1: image '9' is not in .*image_info\.json"),
        (
            lambda f: (f / "nocaps/val.label.tsv").write_text((NOCAPS / "val.label.tsv").read_text().split("\n")[0]),
            r"image_info\.json image 1 \(image 1\) and 1 more are not in .*val\.label\.tsv: the two are not of one",
        ),
        (rewritten("nocaps/nocaps_val_image_info.json", "open_images_id", "other"), r"image 'ff1a2b3c4d5e6f70' is not"),
    ],
)  # fmt: skip
def test_refused_lists(folders: Path, change: Change, sentence: str) -> None:
    change(folders)
    with pytest.raises(UserError, match=sentence):
        read_published_split(folders / "nocaps/val.yaml", folders / "nocaps/nocaps_val_image_info.json")


def test_a_list_without_open_images_ids_is_refused() -> None:
    with pytest.raises(UserError, match=r"val_caption_coco_format\.json gives no open_images_id of its images"):
        read_published_split(NOCAPS / "val.yaml", COCO / "val_caption_coco_format.json")


def options(folder: Path = NOCAPS, **others: Any) -> ConstraintOptions:
    files = {"regions": "val.cbsbox.tsv", "hierarchy": "class_structure.json"}
    files |= {"word_forms": "constraint_wordforms.tsv", "word_pieces": "constraint2tokens.tsv"}
    return ConstraintOptions(**{name: str(folder / file) for name, file in files.items()} | others)


class TestConstraints:
    arrays = golden.arrays("published/expected/nocaps")

    @pytest.mark.parametrize("image_id", list(CONSTRAINED["images"]))
    def test_machines_as_published(self, image_id: str) -> None:
        recorded = CONSTRAINED["images"][image_id]
        (found,) = DetectedConstraints(options(as_published=True), None, TOKENIZER, 20)([image_id])
        named = {constraint.name: constraint for constraint in found}
        assert named.keys() == set(recorded["constraints"]) and len(found) == recorded["num_constraints"]
        assert {CALLED.get(name, name) for name in recorded["class_names"]} >= named.keys()
        for name, constraint in named.items():
            pieces = TOKENIZER.convert_tokens_to_ids(recorded["tokens"][name])
            assert all(piece in step for piece, step in zip(pieces, constraint.steps, strict=True))
        stated = [named[name] for name in recorded["constraints"]]  # in whatever order Python's set had them
        words = constraint_words(stated)
        table = transition_table(stated, words, main_states=8).numpy()
        machine = np.zeros(CONSTRAINED["fsm"]["shape"], dtype=bool)
        states = len(table)
        machine[:states, :states] = table[..., -1:]
        machine[:states, :states, words] = table[..., :-1]
        assert states == recorded["next_free_state"]
        packed = self.arrays[f"{image_id}.fsm_packed"]
        np.testing.assert_array_equal(np.unpackbits(packed, axis=-1, count=machine.shape[-1]).astype(bool), machine)

    def test_the_hierarchy_drops_the_wider_class_where_it_is_not_as_published(self) -> None:
        detected = DetectedConstraints(options(), None, TOKENIZER, 20)
        first, second, none = detected([*list(CONSTRAINED["images"])[:2], "not there"])
        assert [one.name for one in first] == ["dog", "traffic light"]  # no animal: it is the dog
        assert [one.name for one in second] == ["table", "umbrella", "laptop"] and not none
        assert detected.describe_losses(0, detected.without_regions) == (
            f"1 images are not in {NOCAPS / 'val.cbsbox.tsv'} and had no constraints"
        )

    def test_what_is_cut(self, folders: Path) -> None:
        """More than four pieces; the three surest classes, before the same one comes twice."""
        row = [{"class": name, "rect": [0, 0, 9, 9], "conf": conf} for name, conf in (
            ("Dog", 0.9), ("dog", 0.8), ("Salt and pepper shakers", 0.7), ("Boat", 0.6),
        )]  # fmt: skip
        (folders / "nocaps/val.cbsbox.tsv").write_text(f"a\t{json.dumps(row)}\n")
        with (folders / "nocaps/constraint2tokens.tsv").open("a") as file:
            file.write("\npeppers\tpe,##p,##p,##e,##r\n")
        (folders / "called.json").write_text('{"salt and pepper shakers": "salt peppers"}')
        given = options(folders / "nocaps", as_published=True, synonyms=str(folders / "called.json"))
        (found,) = DetectedConstraints(given, None, TOKENIZER, 20)(["a"])
        assert [one.name for one in found] == ["dog", "salt peppers"] and len(found[1].steps) == 4
        unknown = TOKENIZER.unk_token_id
        assert found[1].steps[1:] == ((unknown,), *2 * ((TOKENIZER.convert_tokens_to_ids("##p"),),))
        with pytest.raises(UserError, match=r"'peppers' the piece 'pe', which is no word of the tokenizer"):
            DetectedConstraints(options(folders / "nocaps", synonyms=str(folders / "called.json")), None, TOKENIZER, 20)

    @pytest.mark.parametrize(
        ("name", "before", "after", "sentence"),
        [
            ("val.cbsbox.tsv", "Laptop", "Train", r"line 2 \(image 0+e7e.*\): the class 'train' matches no node of "),
            ("constraint2tokens.tsv", "light\tlight\n", "", r"line 1 .*: the word 'light' has no row in .*tokens\.tsv"),
            ("constraint2tokens.tsv", "dog\tdog", "dog dog", r"tokens\.tsv line 1 is no word, tab and words"),
            ("constraint_wordforms.tsv", "zebra\t", "dog\t", r"wordforms\.tsv line 2 has 'dog' a second time"),
            ("val.cbsbox.tsv", '"conf": 0.9', '"conf": "x"', r"cbsbox\.tsv line 1: column 2: .*conf"),
            ("val.cbsbox.tsv", "00000e7e2d6a1f33", "0013ea2087020901", r"line 2 has the image '0013.*' of .* line 1"),
            ("class_structure.json", '"Entity"', '"/m/0bl9f"', r"have scripts/open_images_hierarchy\.py translate it"),
            ("class_structure.json", '"Subcategory": [', '"Subcategory": [7, ', r"holds no tree of LabelName"),
        ],
    )  # fmt: skip
    def test_refusals(self, folders: Path, name: str, before: str, after: str, sentence: str) -> None:
        path = folders / "nocaps" / name
        path.write_text(path.read_text().replace(before, after, 1))
        with pytest.raises(UserError, match=sentence):
            DetectedConstraints(options(folders / "nocaps", as_published=True), None, TOKENIZER, 20)

    def test_the_yaml_names_the_files(self, folders: Path) -> None:
        yaml = folders / "nocaps/val.yaml"
        named = ConstraintOptions(files=str(yaml), as_published=True, word_forms="own.json").with_files()
        assert named == options(folders / "nocaps", as_published=True, word_forms="own.json")
        yaml.write_text(yaml.read_text().replace("cbs_box: val.cbsbox.tsv\n", ""))
        with pytest.raises(UserError, match=r"val\.yaml names no cbs_box; decoding\.constraints\.files needs the yaml"):
            DetectedConstraints(ConstraintOptions(files=str(yaml)), None, TOKENIZER, 20)
        (folders / "nocaps/class_structure.json").unlink()
        with pytest.raises(
            UserError, match=r"names 'class_structure\.json' as its cbs_hierarchy, and .* does not exist"
        ):
            DetectedConstraints(ConstraintOptions(files=str(yaml)), None, TOKENIZER, 20)

    def test_the_published_filter_needs_its_files(self) -> None:
        with pytest.raises(UserError, match="give both"):
            DetectedConstraints(options(as_published=True, word_pieces=None), None, TOKENIZER, 20)


class TestRewards:
    recorded = CAPTIONS["cider_reward"]
    references = {str(image): texts for image, texts in enumerate(recorded["ground_truth"])}  # noqa: RUF012
    file = COCO / "coco-train-words.p"

    def test_with_the_published_document_frequencies(self) -> None:
        reward = CiderReward(self.references, known=read_document_frequencies(self.file))
        found = reward([*self.references] * 2, [*self.recorded["sampled"], *self.recorded["greedy"]])
        np.testing.assert_allclose(found, self.recorded["scores_of_sampled_then_greedy"], atol=1e-5)

    def test_our_own_are_the_same_for_captions_as_a_model_writes_them(self) -> None:
        """The file counts lower-cased captions, so that with "A dog" as it stands the published rewards need it."""
        known = read_document_frequencies(self.file)
        lower = {image: [text.lower() for text in texts] for image, texts in self.references.items()}
        captions = [text.lower() for text in self.recorded["sampled"]]
        own, theirs = CiderReward(lower), CiderReward(lower, known=known)
        np.testing.assert_allclose(own([*lower], captions), theirs([*lower], captions), rtol=1e-12)
        assert known.images == len(lower) and ("a",) in known.counts and ("A",) not in known.counts
        words = {word for texts in lower.values() for text in texts for word in wrap_sentence(text).split()}
        assert {(word,) for word in words} == {ngram for ngram in known.counts if len(ngram) == 1}

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"ccollections\ndefaultdict\n(cbuiltins\nlist\ntR.", "is a pickle that wants to call builtins.list"),
            (b"ccollections\ndefaultdict\n(tR.", "wants to make a dict with a default of its own"),
            (pickle.dumps({"a": 1}, 2), "words.p: .*document_frequency"),
            (pickle.dumps({"document_frequency": {1: 1}, "ref_len": 2}, 2), "words.p: .*; give the coco-train"),
            (pickle.dumps({"document_frequency": {(): 1}, "ref_len": 2}, 2), "does not count in how many"),
            (pickle.dumps({"document_frequency": {("a",): 3.0}, "ref_len": 2}, 2), "does not count in how many"),
        ],
    )  # fmt: skip
    def test_other_pickles(self, tmp_path: Path, content: bytes, sentence: str) -> None:
        (tmp_path / "words.p").write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            read_document_frequencies(tmp_path / "words.p")
