"""The published retrieval folders: pairs, labels, probabilities and recalls as Oscar's; what is refused."""

import csv
import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import vinvl
from tests import golden
from tests.door_in_process import checkpoint, composed, run_in_process, scores
from vinvl.data.batch import Example
from vinvl.data.inputs import PlacedImage
from vinvl.data.sampling import Draw
from vinvl.data.text import encode_texts
from vinvl.models import VinVLForAnswering
from vinvl.retrieval.data import RetrievalDataModule, RetrievalPairs, first_captions, hard_fold, pair_example
from vinvl.retrieval.published import read_hard_captions, read_published_captions
from vinvl.retrieval.recall import hard_rank
from vinvl.retrieval.scoring import PairScorer
from vinvl.run.errors import UserError

REPLICA = golden.FOLDER / "published/replica"
SETTINGS = {
    "coco_ir": ("coco_retrieval_published", "coco_ir_base", golden.facts("published/expected/coco_ir")),
    "flickr30k_ir": ("flickr30k_published", "flickr_ir_base", golden.facts("published/expected/flickr30k_ir")),
}
CASES = [(task, name) for task, (_, _, facts) in SETTINGS.items() for name in facts["datasets"]]
TENSORS = {task: golden.arrays(f"published/expected/{task}") for task in SETTINGS}
LIMIT = 70


def published(task: str, stores: Path) -> list[str]:
    return [
        f"experiment={SETTINGS[task][1]}", f"data={SETTINGS[task][0]}", f"published.root={REPLICA}",
        f"published.stores={stores}", f"data.tokenizer={REPLICA / 'vocabulary'}", "data.num_workers=0",
        "data.token_cache=null",
    ]  # fmt: skip


def split_overrides(task: str, recorded: Any) -> list[str]:
    """What makes the test split the one of a recorded setting."""
    if "eval_caption_index_file" in recorded:
        hard = REPLICA / task / recorded["eval_caption_index_file"]
        return [
            f"data.val_split={recorded['split']}",
            f"data.test_split={recorded['split']}",
            f"data.val_hard_captions={hard}",
        ]
    keys = REPLICA / task / recorded["eval_img_keys_file"]
    given = [f"data.splits.test.keys={keys}", "data.test_candidates=all"]
    given.append(f"data.test_split={recorded['split']}")
    return given if recorded.get("add_od_labels", True) else [*given, "data.use_tags=false"]


def module_of(tmp_path: Path, task: str, stage: str, *overrides: str) -> RetrievalDataModule:
    with composed("train", tmp_path, tmp_path / "run", *published(task, tmp_path / "stores"), *overrides) as config:
        module: RetrievalDataModule = instantiate(config.data)
    module.prepare_data()
    module.setup(stage)
    return module


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


def padded(values: np.ndarray) -> np.ndarray:
    return np.pad(values, (0, LIMIT - len(values)))


def packed_of(mask: np.ndarray) -> np.ndarray:
    """Text and regions of a padded mask without their padding."""
    return np.array([mask[:LIMIT].sum(), mask[LIMIT:].sum()])


def assert_recorded_rows(task: str, key: str, example: Example) -> None:
    if f"features.{key}" in TENSORS[task]:  # not of every image
        rows = example.regions.rows()
        np.testing.assert_array_equal(rows[:, :2048], TENSORS[task][f"features.{key}"][:LIMIT].astype(np.float32))
        np.testing.assert_allclose(rows[:, 2048:], TENSORS[task][f"geometry.{key}"][:LIMIT], atol=1e-4)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_every_pair_that_is_scored(stores: Path, task: str, name: str) -> None:
    recorded, tensors = SETTINGS[task][2]["datasets"][name], TENSORS[task]
    hard = "eval_caption_index_file" in recorded
    module = module_of(stores, task, "validate" if hard else "test", *split_overrides(task, recorded))
    stage = "val" if hard else "test"
    candidates, folds = module.candidates(stage), module.folds(stage)
    records, text = candidates.records, candidates.region_text
    keys = [str(key) for key in recorded["img_keys"]]
    assert list(records["image_id"]) == keys
    pairs = [
        (int(image), int(caption), int(owner == position))
        for fold in folds
        for position, image in enumerate(fold.images)
        for caption, owner in zip(fold.captions, fold.owner, strict=True)
    ]
    assert len(pairs) == recorded["length"] == len(recorded["pairs"])
    width, captions = recorded.get("num_captions_per_img_val", 5), records.captions
    assert captions is not None and len(pairs) % width == 0
    for row, ((image, caption, label), one) in enumerate(zip(pairs, recorded["pairs"], strict=True)):
        owner = int(records.caption_image[caption])
        assert (keys[image], keys[owner]) == (str(one["img_key"]), str(one["caption_of"]))
        assert caption - records.offsets[owner] == one["caption_index"] and captions[caption] == one["caption"].strip()
        assert label == one["label"] == tensors[f"{name}.label"][row]
        example = pair_example(candidates.tokens[caption], PlacedImage(text, int(candidates.images[image])))
        mask = tensors[f"{name}.attention_mask"][row]
        np.testing.assert_array_equal(padded(example.input_ids), tensors[f"{name}.input_ids"][row])
        np.testing.assert_array_equal(padded(example.token_type_ids), tensors[f"{name}.segment_ids"][row])
        assert [len(example.input_ids), len(example.regions)] == packed_of(mask).tolist()
        assert_recorded_rows(task, keys[image], example)
    if recorded["tags"] is None:
        assert recorded["sizes"] is None and not text.limits.use_tags
    else:
        for key, place in zip(keys, candidates.images.tolist(), strict=True):
            (said,) = encode_texts(module.tokenizer, [recorded["tags"][key]])
            np.testing.assert_array_equal(text.tag_ids(place), said)
            image = text.store.at(place)
            assert [int(image.width), int(image.height)] == recorded["sizes"][key]


@pytest.mark.parametrize("task", list(SETTINGS))
def test_training_pairs(stores: Path, task: str) -> None:
    """The matched ones; which others are drawn is Python's generator's business, and their text follows from it."""
    module = module_of(stores, task, "fit")
    dataset, recorded, tensors = module.datasets["train"], SETTINGS[task][2]["train"], TENSORS[task]
    assert isinstance(dataset, RetrievalPairs)
    assert list(dataset.records["image_id"]) == [str(key) for key in recorded["img_keys"]]
    assert len(dataset) == recorded["length"]
    rows = [row for row in range(len(dataset)) if f"train.{row}.label" in tensors]
    assert rows[0] == 0 and len(rows) > 1
    others = {
        (padded(example.input_ids).tobytes(), padded(example.token_type_ids).tobytes(), len(example.regions))
        for caption, image in product(range(len(dataset)), range(len(dataset.images)))
        if dataset.image_of[caption] != image and (example := dataset.example(caption, image))
    }
    for row in rows:
        matched, mismatched = dataset[Draw(0, row)]
        mask = tensors[f"train.{row}.attention_mask"]
        np.testing.assert_array_equal(padded(matched.input_ids), tensors[f"train.{row}.input_ids"])
        np.testing.assert_array_equal(padded(matched.token_type_ids), tensors[f"train.{row}.segment_ids"])
        assert [len(matched.input_ids), len(matched.regions)] == packed_of(mask).tolist()
        assert_recorded_rows(task, str(recorded["img_keys"][dataset.image_of[row]]), matched)
        assert matched.label_ids.tolist() == [int(tensors[f"train.{row}.label"])]
        assert mismatched.label_ids.tolist() == [int(tensors[f"train.{row}.neg_label"])]
        ids, types = (tensors[f"train.{row}.neg_{name}"].astype(np.int64) for name in ("input_ids", "segment_ids"))
        count = int(packed_of(tensors[f"train.{row}.neg_attention_mask"])[1])
        assert (ids.tobytes(), types.tobytes(), count) in others


def weights_of(task: str) -> Path:
    (folder,) = (REPLICA / "model_ckpts" / task / "base").iterdir()
    return folder


@pytest.fixture(scope="module", params=list(SETTINGS))
def trained(request: pytest.FixtureRequest, stores: Path) -> tuple[str, Path]:
    """A run that starts from the published weights and leaves them as they are; validated on hard captions for COCO."""
    task, run = request.param, stores / f"{request.param}_run"
    config = json.loads((weights_of(task) / "config.json").read_text())
    sizes = [
        f"model.config.{name}={config[name]}"
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
    ]
    hard = SETTINGS[task][2]["datasets"].get("minival_hard")
    given = [] if hard is None else [f"data.val_hard_captions={REPLICA / task / hard['eval_caption_index_file']}"]
    run_in_process(
        "train", stores, run, *published(task, stores / "stores"), *given, *sizes, f"model.init={weights_of(task)}",
        "trainer=cpu", "trainer.devices=1", "trainer.max_epochs=1", "trainer.val_check_interval=1", "data.batch_size=4",
        "optim.optimizer.lr=0", "optim.weight_decay=0", "data.test_candidates=all",
    )  # fmt: skip
    return task, run


def test_probabilities_and_recalls_of_the_published_weights(trained: tuple[str, Path], tmp_path: Path) -> None:
    task, run = trained
    for name, recorded in SETTINGS[task][2]["datasets"].items():
        if "eval_caption_index_file" in recorded:
            continue
        output = tmp_path / name
        run_in_process(
            "evaluate", tmp_path, output, checkpoint(run, "last"), "trainer.accelerator=cpu",
            *published(task, run.parent / "stores")[1:],
            *split_overrides(task, recorded), f"++data.scores_dir={output / 'scores'}",
        )  # fmt: skip
        found = np.concatenate([np.load(path) for path in sorted((output / "scores").glob("*/*.npy"))])
        probability = 1 / (1 + np.exp(-found.astype(np.float64).ravel()))
        np.testing.assert_allclose(probability, TENSORS[task][f"{name}.checkpoint.match_probability"], atol=1e-5)
        for ours, theirs in (("image_to_text", "i2t_retrieval"), ("text_to_image", "t2i_retrieval")):
            for k, share in recorded["evaluation"][theirs].items():
                assert scores(output)[f"{ours}/{k}"] == pytest.approx(100 * share)
        said = {k: torch.tensor(recorded[f"{k}_ranks"]) for k in ("i2t", "t2i")}
        assert {k: int(ranks.sum()) for k, ranks in said.items()} == {
            k: round((scores(output)[f"{way}/mean_rank"] - 1) * len(said[k]))
            for k, way in (("i2t", "image_to_text"), ("t2i", "text_to_image"))
        }


def test_hard_captions_have_the_recorded_ranks() -> None:
    recorded, tensors = SETTINGS["coco_ir"][2]["datasets"]["minival_hard"], TENSORS["coco_ir"]
    records = first_captions(read_published_captions(REPLICA / "coco_ir/minival_captions.pt"), 5)
    hard = read_hard_captions(REPLICA / "coco_ir" / recorded["eval_caption_index_file"], records)
    width = recorded["num_captions_per_img_val"]
    found = tensors["minival_hard.checkpoint.match_probability"].reshape(-1, width)
    assert [len(one) for one in hard] == [width] * len(found)
    folds = [hard_fold(image, captions, records.offsets) for image, captions in enumerate(hard)]
    ranks = [hard_rank(fold, row) for fold, row in zip(folds, found, strict=True)]
    assert ranks == recorded["i2t_ranks"] and recorded["t2i_ranks"] == []
    assert hard_rank(hard_fold(0, hard[0], np.array([90, 91, 92])), found[0]) == width  # none is its own


def test_hard_captions_have_the_recorded_probabilities(stores: Path) -> None:
    recorded, tensors = SETTINGS["coco_ir"][2]["datasets"]["minival_hard"], TENSORS["coco_ir"]
    data = module_of(stores, "coco_ir", "validate", *split_overrides("coco_ir", recorded))
    model = vinvl.load(weights_of("coco_ir"), task="retrieval").trained.model
    assert isinstance(model, VinVLForAnswering)
    scorer = PairScorer(
        model, data.region_text.special, data.limits.max_tokens, data.eval_batch_size, data.attention_type
    )
    tokens, folds = data.candidates("val").tokens, data.folds("val")
    found = [
        scorer.score(block.tag_ids, block.region_features, tokens, fold.captions)
        for block, fold in zip(data.val_dataloader(), folds, strict=True)
    ]
    expected = torch.from_numpy(tensors["minival_hard.checkpoint.match_probability"])
    torch.testing.assert_close(torch.cat(found, dim=1)[0].double().sigmoid(), expected, rtol=0, atol=1e-5)


def test_validation_on_hard_captions(stores: Path, trained: tuple[str, Path]) -> None:
    task, run = trained
    recorded = SETTINGS[task][2]["datasets"].get("minival_hard")
    if recorded is None:
        return
    with (run / "csv/metrics.csv").open() as file:
        validated = [row for row in csv.DictReader(file) if row["val/score"]]
    assert len(validated) > 1, "every step"
    for row in validated:
        for k, share in recorded["evaluation"]["i2t_retrieval"].items():
            assert float(row[f"val/image_to_text/{k}"]) == pytest.approx(100 * share)
        assert not row.get("val/text_to_image/R@1")


# What is refused.


def rewritten(name: str, change: Callable[[dict[Any, Any]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        torch.save(change(torch.load(folder / name, weights_only=True)), folder / name)

    return rewrite


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("run",))


CAPTIONS, KEYS, HARD = "minival_captions.pt", "keys.tsv", "minival_caption_indexs_top20.pt"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (written(KEYS, "9\n42\n"), r"keys\.tsv line 2: image '42' has no captions in .*captions\.pt, like 0 more of 2"),
        (written(KEYS, "9\n\n9\n"), r"keys\.tsv line 3 has image '9' of line 1 again"),
        (written(KEYS, "9\tx\n"), r"keys\.tsv line 1 has several columns"),
        (written(KEYS, "\n"), r"keys\.tsv names no images"),
        (written(CAPTIONS, "text"), r"captions\.pt cannot be read as plain values of torch\.save"),
        (rewritten(CAPTIONS, lambda found: {}), r"captions\.pt is empty"),
        (rewritten(CAPTIONS, lambda found: [*found]), r"captions\.pt holds a list"),
        (rewritten(CAPTIONS, lambda found: {9: Hostile()}), r"captions\.pt cannot be read as plain values"),
        (rewritten(CAPTIONS, lambda found: {9: torch.zeros(2, 2054)}), r"image 9 has a Tensor, expected a list"),
        (rewritten(CAPTIONS, lambda found: {9: [[9, 0]]}), r"image 9 has .* as a caption"),
        (rewritten(CAPTIONS, lambda found: {9: "a dog"}), r"image 9 has a text that is no JSON"),
        (rewritten(CAPTIONS, lambda found: {9: "3"}), r"image 9 has 3, expected a list"),
        (rewritten(CAPTIONS, lambda found: {9: ["a"], "9": ["b"]}), r"has image 9 twice"),
        (rewritten(CAPTIONS, lambda found: {2.5: ["a"]}), r"has the key '2\.5', which is no image id"),
        (rewritten(CAPTIONS, lambda found: {9: ["a"], 184613: []}), r"image 2 \(image 184613\) has no captions"),
        (rewritten(HARD, lambda found: {9: [[9, 0]]}), r"has no list for .*image 184613"),
        (rewritten(HARD, lambda found: found | {9: [[42, 0]] * 4}), r"image 9 names a caption of image '42'"),
        (rewritten(HARD, lambda found: found | {9: [[9, 5]] * 4}), r"names caption 5 of image 9, .* are 0 to 4"),
        (rewritten(HARD, lambda found: found | {9: ["a", "b"]}), r"image 9 has 'a', expected \[image id, caption"),
        (rewritten(HARD, lambda found: found | {9: []}), r"image 9 has 0 captions"),
        (rewritten(HARD, lambda found: found | {9: [[9, 0]]}), r"image 184613 has 4 captions, and image 9 1"),
    ],
)  # fmt: skip
def test_refused_files(tmp_path: Path, change: Callable[[Path], object], sentence: str) -> None:
    folder = shutil.copytree(REPLICA / "coco_ir", tmp_path / "coco_ir")
    change(folder)
    with pytest.raises(UserError, match=sentence) as refused:
        keys = folder / KEYS if (folder / KEYS).exists() else None
        records = first_captions(read_published_captions(folder / CAPTIONS, keys), 5)
        read_hard_captions(folder / HARD, records)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("known", [True, False])
def test_keys_and_features_that_do_not_fit(tmp_path: Path, stores: Path, known: bool) -> None:
    """Captions without features are refused by name; features without captions are of no concern."""
    folder = shutil.copytree(REPLICA / "coco_ir", tmp_path / "coco_ir")
    if not known:
        rewritten("test_captions.pt", lambda found: found | {7: ["a dog"] * 5})(folder)
    (folder / "keys.tsv").write_text("574769\n" if known else "574769\n7\n")
    given = [f"data.splits.test.captions={folder / 'test_captions.pt'}", f"data.splits.test.keys={folder / 'keys.tsv'}"]
    if known:
        assert len(module_of(stores, "coco_ir", "test", *given, "data.test_candidates=all").candidates("test")) == 1
        return
    with pytest.raises(UserError, match=r"coco\.h5.* has no image 7 .*keys\.tsv line 2"):
        module_of(stores, "coco_ir", "test", *given)
