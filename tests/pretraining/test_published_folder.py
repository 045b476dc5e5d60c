"""The released Oscar+ corpus over the features of six data sets: rows, draws and the loss that Oscar has of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from tests import golden
from tests.door_in_process import composed, run_in_process
from tests.pretraining.test_golden import python_draws
from vinvl.data.batch import Batch, gather_regions
from vinvl.data.sampling import Draw
from vinvl.models.published import convert_model
from vinvl.opening import OpenedModel
from vinvl.pretraining.command import main
from vinvl.pretraining.data import PretrainingDataModule, PretrainingDataset
from vinvl.pretraining.published import convert_published_corpus, make_published_corpus
from vinvl.pretraining.task import PretrainingTask
from vinvl.pretraining.triplets import PairOptions, mismatch
from vinvl.published import convert_published
from vinvl.run.errors import UserError

REPLICA = golden.FOLDER / "published/replica"
WEIGHTS = REPLICA / "model_ckpts/vqa/base/checkpoint-2000000"
FACTS, TENSORS = golden.facts("published/expected/pretrain"), golden.arrays("published/expected/pretrain")
SETTINGS = list(FACTS["settings"])
LARGE = ["coco", "flickr30k", "gqa", "googlecc", "sbu", "oi"]


def called(info: str) -> str:
    """An image as we call it; "cc" is googlecc's short name."""
    return f"googlecc{info[2:]}" if info.startswith("cc_") else info


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


def published(folder: Path) -> list[str]:
    return [
        "data=oscarplus_published", f"published.root={REPLICA}", f"published.stores={folder / 'stores'}",
        f"data.tokenizer={REPLICA / 'vocabulary'}", "data.num_workers=0", "data.index_workers=1", "data.batch_size=4",
    ]  # fmt: skip


def module_of(folder: Path, name: str, *overrides: str) -> PretrainingDataModule:
    """A recorded setting's data, in the order of the released corpus within each data set."""
    recorded = FACTS["settings"][name]
    corpus = folder / name
    if not corpus.exists():
        convert_published_corpus(
            REPLICA / "pretrain_corpus" / recorded["yaml"],
            corpus,
            prefix_image_ids="published",
            ground_truth_tags=bool(recorded.get("use_gtlabels", 0)),
            validation_share=0,
        )
    files = [str(corpus / "train" / f"{one}.jsonl") for one in LARGE if (corpus / "train" / f"{one}.jsonl").exists()]
    given = [
        *published(folder), "experiment=oscarplus_base", f"data.splits.train=[{','.join(files)}]",
        "data.val_split=train", "data.test_split=train", "data.predict_split=train",
        f"data.max_tokens={recorded['max_seq_length']}", f"data.max_regions={recorded['max_img_seq_length']}",
    ]  # fmt: skip
    with composed("train", folder, folder / "run", *given, *overrides) as config:
        module: PretrainingDataModule = instantiate(config.data)
    module.prepare_data()
    module.setup("fit")
    return module


def dataset_of(module: PretrainingDataModule) -> PretrainingDataset:
    dataset = module.datasets["train"]
    assert isinstance(dataset, PretrainingDataset)
    return dataset


def padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_document_and_its_row(folder: Path, name: str) -> None:
    recorded = FACTS["settings"][name]
    module = module_of(folder, name, "data.variant=matched", "data.mask_probability=1e-9")
    dataset = dataset_of(module)
    assert len(dataset) == recorded["length"] == len(recorded["documents"])
    assert FACTS["names"] == ["input_ids", "input_mask", "segment_ids", "lm_label_ids", "is_next", "is_img_match"]
    order = rows_in_order(dataset, recorded["documents"])
    answers = [row for row, (info, *_) in enumerate(recorded["documents"]) if "_qa_" in info]
    assert answers == recorded["qa_documents"]
    assert sorted(order.index(row) for row in dataset.rows.answer_rows.tolist()) == answers
    text, regions = recorded["max_seq_length"], recorded["max_img_seq_length"]
    for number, (row, (info, *_)) in enumerate(zip(order, recorded["documents"], strict=True)):
        image = module.store[called(info.split("|")[0])]
        assert {"height": int(image.height), "width": int(image.width)} == recorded["image_info"][number]
        batch = dataset.collate([Draw(0, row)])
        expected = {one: TENSORS[f"{name}.{number}.uncorrupted.{one}"] for one in FACTS["names"]}
        np.testing.assert_array_equal(padded(batch.input_ids[0].numpy(), text), expected["input_ids"])
        np.testing.assert_array_equal(padded(batch.token_type_ids[0].numpy(), text), expected["segment_ids"])
        length = batch.input_ids.shape[1]
        masks = batch.attention_mask[0].numpy()
        found = np.concatenate([padded(masks[:length], text), padded(masks[length:], regions)])
        np.testing.assert_array_equal(found, expected["input_mask"])
        assert (expected["lm_label_ids"] == -1).all() and batch.labels is not None and not len(batch.labels)
        assert expected["is_next"] == expected["is_img_match"] == 0 and batch.pair_labels is None
        key = info.split("|")[0]
        rows = batch.region_features[0].numpy()
        np.testing.assert_array_equal(rows[:, :2048], TENSORS[f"features.{key}"][:regions].astype(np.float32))
        np.testing.assert_allclose(rows[:, 2048:], TENSORS[f"geometry.{key}"][:regions], atol=1e-4)


def image_of(dataset: PretrainingDataset, row: int) -> int:
    return int(dataset.rows.image_of(np.array([row]))[0])


def rows_in_order(dataset: PretrainingDataset, documents: Any) -> list[int]:
    """Our row of each document: ours are sorted by data set, in the order of the corpus within one."""
    by_set: dict[str, Iterator[int]] = {}
    names = [called(info).split("_")[0] for info, *_ in documents]
    start = 0
    for name in LARGE:
        by_set[name] = iter(range(start, start + names.count(name)))
        start += names.count(name)
    return [next(by_set[name]) for name in names]


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_drawn(name: str) -> None:
    recorded = FACTS["settings"][name]
    documents, answers = recorded["documents"], recorded["qa_documents"]
    options = PairOptions(recorded.get("textb_sample_mode", 1), recorded.get("texta_false_prob", 0.25), True)
    assert options.num_classes() == recorded.get("num_contrast_classes", 3)
    images = [info.split("|")[0] for info, *_ in documents]
    numbers = np.unique(images, return_inverse=True)[1]
    for row, drawn in enumerate(recorded["drawn"]):
        made = mismatch(
            np.array([row]),
            python_draws(1000 + row, row, options, images, answers),
            options,
            options.num_classes(),
            lambda rows: numbers[rows],
            lambda rows: np.ones(rows.shape, bool),
        )
        second = documents[made.second_rows[0]][1 + made.second_sides[0]]
        assert (images[row], documents[made.first_rows[0]][1], second, int(made.labels[0])) == (
            drawn["row"], drawn["text_a"], drawn["text_b"], drawn["label"],
        )  # fmt: skip
        assert drawn["image_differs"] == int(
            len({images[one] for one in (row, made.first_rows[0], made.second_rows[0])}) > 1
        )


def test_the_loss_of_the_released_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainingTask, "log", lambda *_, **__: None)
    module = module_of(folder, "published")
    dataset, rows = dataset_of(module), {name: np.array(one) for name, one in FACTS["checkpoint"]["rows"].items()}
    order = rows_in_order(dataset, FACTS["settings"]["published"]["documents"])[: len(rows["input_ids"])]
    regions = gather_regions([dataset.rows.region_text.image_regions(image_of(dataset, row)) for row in order])
    length = rows["input_ids"].shape[1]
    slots = regions.slots
    labels = rows["lm_label_ids"][:, :length]
    batch = Batch(
        input_ids=torch.from_numpy(rows["input_ids"]),
        token_type_ids=torch.from_numpy(rows["segment_ids"]),
        attention_mask=torch.from_numpy(rows["input_mask"][:, : length + slots].astype(bool)),
        regions=regions,
        labels=torch.from_numpy(labels[labels != -1]),
        records=tuple({} for _ in order),
        masked_positions=torch.from_numpy(labels != -1),
        pair_labels=torch.from_numpy(rows["is_next"] * rows["is_img_match"]),
    )
    model, _ = convert_model(OpenedModel.of(WEIGHTS).files, "pretraining", {}, lambda size: None)
    task = PretrainingTask(**PretrainingTask.arguments_from(module), model_config=model.config, init=None)
    task.model.load_state_dict(model.state_dict())
    task.eval()
    with torch.inference_mode():
        output = task.guess(batch)
        loss = task.training_loss(batch)
    np.testing.assert_allclose(output.pair_logits, TENSORS["checkpoint.match_logits"], atol=1e-5)
    assert float(loss) == pytest.approx(float(TENSORS["checkpoint.loss"]), rel=1e-5)


def test_a_run_on_the_whole_corpus(folder: Path) -> None:
    """Texts and features are converted on first use; the door that converts all has nothing to do then."""
    printed = run_in_process(
        "train", folder, folder / "whole", "experiment=oscarplus_base", *published(folder),
        "model.config.hidden_size=8", "model.config.num_hidden_layers=1", "model.config.num_attention_heads=1",
        "model.config.intermediate_size=8", "model.init=null", "trainer=cpu", "trainer.devices=1",
        "trainer.max_steps=2", "trainer.accumulate_grad_batches=1", "trainer.val_check_interval=2",
    )  # fmt: skip
    assert "mean_accuracy" in printed or (folder / "whole/results.json").exists()
    stores = sorted(path.name for path in (folder / "stores").glob("*.h5"))
    sets = {
        split: {one.stem for one in (folder / "stores/oscarplus" / split).glob("*.jsonl")} for split in ("train", "val")
    }
    assert sets["train"] | sets["val"] == set(LARGE) and sets["val"]  # 1 % of so few images would be none
    before = {path: path.stat().st_mtime_ns for path in (folder / "stores").rglob("*")}
    assert len(convert_published(REPLICA / "pretrain_corpus", folder / "stores")) == 9
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "stores").rglob("*")}
    of_corpus = ("googlecc_0", "googlecc_11", "gqa", "oi_0", "oi_7", "sbu_2")
    assert stores == ["coco.h5", "flickr30k.h5", *(f"oscarplus_{name}.h5" for name in of_corpus)]


def test_a_corpus_of_another_release_is_refused(folder: Path, tmp_path: Path) -> None:
    (large,) = (REPLICA / "pretrain_corpus").glob("*googlecc*.yaml")
    (small,) = (REPLICA / "pretrain_corpus").glob("*gqa_x*.yaml")
    make_published_corpus(small, tmp_path / "oscarplus", 0.01, 1)
    with pytest.raises(UserError, match=rf"oscarplus was made of {small.name}, .* and .*{large.name} is"):
        make_published_corpus(large, tmp_path / "oscarplus", 0.01, 1)
    with pytest.raises(UserError, match=r"nowhere does not exist, and neither does .*a\.yaml"):
        make_published_corpus(tmp_path / "a.yaml", tmp_path / "nowhere", 0.01, 1)


def test_tags_of_a_store_without_classes(folder: Path, tmp_path: Path) -> None:
    (small,) = (REPLICA / "pretrain_corpus").glob("*gqa_x*.yaml")
    given = {"prefix_image_ids": "published", "store_tags": True, "validation_share": 0}
    convert_published_corpus(small, tmp_path / "bare", **given)
    with pytest.raises(
        UserError, match=r"coco\.jsonl leaves the tags of [\d]+ rows to the classes.* without --store-tags"
    ):
        module_of(folder, "small", f"data.splits.train={tmp_path / 'bare/train'}")
    module_of(folder, "small", f"data.splits.train={tmp_path / 'bare/train'}", "data.use_tags=false")


def test_two_sets_with_one_id_and_no_prefix(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small,) = (REPLICA / "pretrain_corpus").glob("*gqa_x*.yaml")
    assert main(["convert", str(small), "--output", str(folder / "refused")]) == 1
    assert "coco and gqa both have an image '522418'" in capsys.readouterr().err
    assert not (folder / "refused").exists()
    bare = ["{from: '%s', to: '%s', classes: false}"] * 2
    names = ("coco", "gqa")
    found = [next((REPLICA / "image_features").glob(f"{name}_*")) / "model_0060000/features.tsv" for name in names]
    regions = ",".join(
        one % (file, folder / f"bare_{name}.h5") for one, file, name in zip(bare, found, names, strict=True)
    )
    with pytest.raises(UserError, match=r"bare_coco\.h5 and .*bare_gqa\.h5 both hold image '522418'.*id_prefix"):
        module_of(folder, "small", f"data.regions=[{regions}]")
