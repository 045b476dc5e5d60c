"""The published captioning folders through the doors: captions, scores and submissions as Oscar's with its weights."""

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer

import vinvl
from tests import golden
from tests.door_in_process import checkpoint, refused_in_process, run_in_process, scores
from vinvl.regions.formats.convert import convert_features
from vinvl.regions.formats.rows import FeatureOptions

REPLICA = golden.FOLDER / "published/replica"
EXPECTED = "published/expected"
WEIGHTS = REPLICA / "model_ckpts/image_captioning/coco_captioning_base_xe/checkpoint-59-66360"
CAPTIONS, CONSTRAINED = golden.facts(f"{EXPECTED}/coco_caption"), golden.facts(f"{EXPECTED}/nocaps")
CONFIG = json.loads((WEIGHTS / "config.json").read_text())
SIZES = [
    f"model.config.{name}={CONFIG[name]}"
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
]
ON_CPU = ["trainer=cpu", "data.num_workers=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    BertTokenizer(str(REPLICA / "vocabulary/vocab.txt")).save_pretrained(folder / "words")
    return folder


def published(folder: Path, data: str) -> list[str]:
    return [f"data={data}", f"published.root={REPLICA}", f"published.stores={folder / 'stores'}", *ON_CPU]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run that starts from the published weights and leaves them as they are."""
    run_in_process(
        "train", folder, folder / "run", *published(folder, "coco_captions_published"),
        "experiment=coco_caption_base_xe",
        *SIZES, f"model.init={WEIGHTS}",
        f"data.tokenizer={folder / 'words'}", "trainer.devices=1", "trainer.max_epochs=1",
        "optim.optimizer.lr=0", "optim.weight_decay=0", "data.batch_size=4", "task.options.java_metrics=false",
    )  # fmt: skip
    return folder / "run"


def recorded(name: str) -> dict[str, dict[str, Any]]:
    """Image id → caption and confidence."""
    lines = [line.split("\t") for line in golden.whole(f"{EXPECTED}/{name}").read_text().splitlines()]
    return {image_id: json.loads(row)[0] for image_id, row in lines}


def predicted(folder: Path, output: str, *overrides: str) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """The rows of captions.json, and image id → caption and score of predictions.jsonl."""
    run_in_process("predict", folder, folder / output, *overrides)
    lines = [json.loads(line) for line in (folder / output / "predictions.jsonl").read_text().splitlines()]
    return json.loads((folder / output / "captions.json").read_text()), {
        one["image_id"]: one["top"][0] for one in lines
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for image_id, one in expected.items():
        assert found[image_id]["caption"] == one["caption"]
        assert math.exp(found[image_id]["score"]) == pytest.approx(one["conf"], rel=1e-4)


def golden_rows() -> list[dict[str, Any]]:
    sent = golden.facts(f"{EXPECTED}/pred.coco_caption.test.beam5.max20.odlabels_coco_format")
    return [{"image_id": int(one["image_id"]), "caption": one["caption"]} for one in sent]


@pytest.mark.parametrize("beams", [1, 5])
def test_captions_of_coco(folder: Path, beams: int) -> None:
    given = [*published(folder, "coco_captions_published"), f"decoding.num_beams={beams}"]
    rows, found = predicted(folder, f"coco{beams}", f"ckpt_path={WEIGHTS}", *given)
    assert_same(found, recorded(CAPTIONS[f"prediction_file.beam{beams}"]))
    if beams == 5:
        assert rows == golden_rows()


@pytest.mark.parametrize("decoding", ["caption", "constrained_published"])
def test_captions_of_nocaps(folder: Path, decoding: str) -> None:
    rows, found = predicted(
        folder, decoding, f"ckpt_path={WEIGHTS}", *published(folder, "nocaps_published"), f"decoding={decoding}"
    )
    constrained = decoding != "caption"
    name = CONSTRAINED["prediction_file" if constrained else "prediction_file_without_constraints"]
    listed = json.loads((REPLICA / "nocaps/nocaps_val_image_info.json").read_text())["images"]
    ids = {str(one["id"]): one["open_images_id"] for one in listed}
    assert_same({ids[number]: one for number, one in found.items()}, recorded(name))
    if constrained:
        sent = golden.facts(f"{EXPECTED}/nocaps_val_submission")
        assert rows == [{"image_id": one["image_id"], "caption": one["caption"]} for one in sent]
        assert [one["id"] for one in sent] == list(range(len(rows)))


@pytest.mark.parametrize(("folder_name", "split"), [("coco_caption", "test"), ("nocaps", "val")])
def test_the_published_weights_opened_as_they_are(folder: Path, folder_name: str, split: str) -> None:
    files = REPLICA / folder_name
    decoding: dict[str, Any] = {"num_beams": 5}
    name = CAPTIONS["prediction_file.beam5"]
    if split == "val":
        decoding |= {"constraints": {"files": str(files / "val.yaml"), "as_published": True}}
        name = CONSTRAINED["prediction_file"]
    sizes = FeatureOptions(sizes=files / f"{split}.hw.tsv")
    convert_features(files / f"{split}.feature.tsv", folder / f"{split}.h5", sizes)
    inputs = {"tags": str(files / f"{split}.label.tsv")}
    model = vinvl.load(WEIGHTS, features=folder / f"{split}.h5", inputs=inputs, decoding=decoding)
    expected = recorded(name)
    written = model.caption([*expected])
    found = {one: {"caption": said.text, "score": said.score} for one, said in zip(expected, written, strict=True)}
    assert_same(found, expected)


def test_evaluation_of_the_published_test_split(folder: Path, trained: Path) -> None:
    """A run that has left the weights as they are, and the folder that it began with."""
    run_in_process("evaluate", folder, folder / "again", checkpoint(trained, "last"), *ON_CPU)
    assert scores(folder / "again") == scores(trained)
    rows, _ = predicted(folder, "run-predicts", checkpoint(trained, "last"), *ON_CPU)
    assert rows == golden_rows()


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


OF_TRAINING = ("drop_worst_after", "drop_worst_ratio", "freeze_embedding", "label_smoothing", "tie_weights", "code_voc")
OF_THE_HUB = {
    "architectures": ["BertForImageCaptioning"], "model_type": "bert", "pruned_heads": {}, "transformers_version": "2",
    "od_labels": True, "num_labels": 2, "use_bfloat16": False, "is_decoder": False,
}  # fmt: skip


def test_the_folder_on_the_hub(folder: Path, trained: Path, tmp_path: Path) -> None:
    """The mirror has other files and settings than the release. Nothing opens a training_args.bin beside weights."""
    own = Path(shutil.copytree(WEIGHTS, tmp_path / "weights"))
    (own / "training_args.bin").unlink()
    fields = {name: value for name, value in CONFIG.items() if name not in OF_TRAINING}
    (own / "config.json").write_text(json.dumps(fields | OF_THE_HUB))
    assert {path.name for path in own.iterdir()} == {
        "config.json", "pytorch_model.bin", "vocab.txt", "added_tokens.json", "special_tokens_map.json",
    }  # fmt: skip
    given = [f"ckpt_path={own}", *published(folder, "coco_captions_published")]
    expected = recorded(CAPTIONS["prediction_file.beam5"])
    rows, found = predicted(folder, "hub", *given)
    assert_same(found, expected)
    assert rows == golden_rows()
    (own / "training_args.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "opened")))
    run_in_process("evaluate", folder, folder / "scored", *given)
    assert scores(trained).items() <= scores(folder / "scored").items()
    inputs = {"tags": str(REPLICA / "coco_caption/test.label.tsv")}
    model = vinvl.load(own, task="captioning", features=folder / "stores/coco_caption_test.h5", inputs=inputs)
    assert [said.text for said in model.caption([*expected])] == [one["caption"] for one in expected.values()]
    assert not (tmp_path / "opened").exists()


def test_nocaps_without_captions_is_for_predictions(folder: Path, trained: Path) -> None:
    told = refused_in_process(
        "evaluate", folder, folder / "refused", checkpoint(trained, "last"), *published(folder, "nocaps_published"),
        f"data.tokenizer={folder / 'words'}",
    )  # fmt: skip
    assert "'nocaps_val' has no annotations" in told and "vinvl.predict" in told


def test_nocaps_with_its_captions_is_scored_by_domains(folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(REPLICA / "nocaps", tmp_path / "nocaps"))
    listed = json.loads((own / "nocaps_val_image_info.json").read_text())
    said = {row["image_id"]: row["caption"] for row in golden.facts(f"{EXPECTED}/nocaps_val_submission")}
    listed["annotations"] = [{"id": image, "image_id": image, "caption": text} for image, text in said.items()]
    (own / "nocaps_val_4500_captions.json").write_text(json.dumps(listed))
    given = [f"published.root={tmp_path}", "decoding=constrained_published", f"ckpt_path={WEIGHTS}"]
    run_in_process("evaluate", folder, tmp_path / "scored", *published(folder, "nocaps_published"), *given)
    found = scores(tmp_path / "scored")
    assert json.loads((tmp_path / "scored/results.json").read_text())["split"] == "nocaps_val"
    for name in ("Bleu_1", "in-domain/Bleu_1", "near-domain/Bleu_1", "out-domain/Bleu_1"):
        assert found[name] == pytest.approx(100)


def test_self_critical_training_with_the_published_document_frequencies(folder: Path, trained: Path) -> None:
    run_in_process(
        "train", folder, folder / "scst", *published(folder, "coco_captions_published"),
        "experiment=coco_caption_base_scst", f"model.init={trained / 'checkpoints/last.ckpt'}",
        *SIZES, f"data.tokenizer={folder / 'words'}", "trainer.devices=1", "trainer.max_epochs=1",
        f"task.options.scst_document_frequencies={REPLICA / 'coco_caption/coco-train-words.p'}",
        "task.options.scst_samples=2", "decoding.max_length=6", "task.options.java_metrics=false",
    )  # fmt: skip
    assert scores(folder / "scst").keys() == scores(trained).keys()


def test_the_label_file_of_another_split(folder: Path, trained: Path) -> None:
    own = folder / "mixed"
    shutil.copytree(REPLICA / "coco_caption", own)
    yaml = (own / "test.yaml").read_text().replace("test.label.tsv", "val.label.tsv").replace("test_cap", "val_cap")
    (own / "test.yaml").write_text(yaml)
    given = [*published(folder, "coco_captions_published"), f"data.tokenizer={folder / 'words'}"]
    given += [checkpoint(trained, "last"), f"data.splits.test.published={own / 'test.yaml'}"]
    told = refused_in_process("predict", folder, folder / "refused", *given)
    assert "has no image 184613 (asked for by" in told and "val.label.tsv line 1" in told
