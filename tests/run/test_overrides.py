"""What a command gives takes the place of what is configured, and something reads it; two forms at once are refused."""

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.door_in_process import TINY, composed, refused_in_process
from vinvl.run.errors import UserError
from vinvl.run.overrides import given_values, refuse_unread_splits, replacing


def section(tmp_path: Path, door: str, key: str, *words: str) -> Any:
    """What Hydra makes of a command for a key."""
    with composed(door, tmp_path, tmp_path / "run", *replacing(words)) as config:
        node = OmegaConf.select(config, key)
        return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


GIVEN = [
    ("train", "task=captioning", "data.splits.train={jsonl:own.jsonl}", {"jsonl": "own.jsonl"}),
    ("train", "task=captioning", "+data.splits.train={coco:own.json}", {"coco": "own.json"}),
    (
        "train",
        "task=retrieval",
        "++data.splits.val={karpathy:a.json,splits:[b]}",
        {"karpathy": "a.json", "splits": ["b"]},
    ),
    ("train", "task=vqa", "data.splits.train={questions:q.json}", {"questions": "q.json"}),
    ("train", "task=vqa", "+data.splits.test=[{questions:q.json}]", [{"questions": "q.json"}]),
    ("train", "task=gqa", "data.splits.train_balanced=[a.json,b.json]", ["a.json", "b.json"]),
    ("train", "task=pretraining", "++data.splits.train={file:a.jsonl,passes:2}", {"file": "a.jsonl", "passes": 2}),
    ("train", "data=vqa2", "data.splits.train=own.jsonl", "own.jsonl"),
    ("train_detector", "seed=1", "+data.splits.train={annotations:own.json}", {"annotations": "own.json"}),
]


@pytest.mark.parametrize(("door", "chosen", "word", "expected"), GIVEN)
def test_a_given_split_takes_the_place_of_the_configured_one(
    tmp_path: Path, door: str, chosen: str, word: str, expected: Any
) -> None:
    assert section(tmp_path, door, word.split("=")[0].lstrip("+"), chosen, word) == expected


def test_all_splits_at_once_and_parts_of_them(tmp_path: Path) -> None:
    assert section(tmp_path, "train", "data.splits", "data.splits={train:a.jsonl}") == {"train": "a.jsonl"}
    part = section(tmp_path, "train", "data.splits.train", "data.splits.train.0={questions:q.json}")
    assert part == [{"questions": "q.json"}]
    deleted = ["~data.splits.train", "+data.splits.train={questions:q.json}"]
    assert section(tmp_path, "train", "data.splits.train", *deleted) == {"questions": "q.json"}


def test_another_optimizer_has_its_own_settings_alone(tmp_path: Path) -> None:
    given = "optim.optimizer={_target_:torch.optim.SGD,lr:0.1}"
    found = section(tmp_path, "train", "optim.optimizer", given)
    assert found == {"_target_": "torch.optim.SGD", "lr": 0.1, "_partial_": True}
    assert len(section(tmp_path, "train", "optim.optimizer", "optim.optimizer={lr:0.1}")) == 6  # the same, but for one


@pytest.mark.parametrize("sign", ["", "+"])
def test_the_jobs_of_a_sweep_get_each_their_own(tmp_path: Path, sign: str) -> None:
    words = replacing(["task=captioning", f"{sign}data.splits.train={{jsonl:a}},{{coco:b}}", "seed=1"])
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    found = [section(tmp_path, "train", "data.splits.train", *job) for job in jobs]
    assert found == [{"jsonl": "a"}, {"coco": "b"}]


def test_other_words_stay_as_they_are() -> None:
    words = ["--cfg", "job", "-m", "data.regions=[a,b]", "data.prepare={seed:3}", "x=[1"]
    words += ["trainer.max_epochs=1,2", "~data.splits.train", "data.splits.train=a.jsonl", "image=photo.jpg"]
    assert replacing(words) == words


@pytest.mark.parametrize(
    ("chosen", "extra", "words"),
    [
        ("task=captioning", "+data.splits.train.jsonl=own.jsonl", "give one of {karpathy: FILE"),
        ("task=captioning", "data.splits.train.splits=train", "give {karpathy: FILE"),
        ("task=retrieval", "+data.splits.val.coco=own.json", "null takes a key away"),
        ("task=vqa", "+data.splits.train.0.jsonl=own.jsonl", "has the key jsonl, which nothing reads"),
        (
            "task=vqa",
            "data.splits.train=[3]",
            "is 3: give {questions: …, annotations: …, id_pattern: …, only_images: …, without_images: …}",
        ),
        ("task=vqa", "data.splits.val=3", "data.splits.val is 3: give a JSONL file"),
        ("task=gqa", "data.splits.val={jsonl:own.jsonl}", "give a question file, a folder of them"),
        ("task=nlvr2", "data.splits.dev=[a.json,b.json]", "give one file"),
        ("task=pretraining", "data.splits.val={file:a.jsonl,weight:2}", "has the key weight, which nothing reads"),
    ],
)
def test_two_forms_at_once_and_other_forms_are_refused(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, extra: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own.json", "own.jsonl", "a.json", "b.json", "a.jsonl"):
        Path(name).touch()
    sentence = refused_in_process("train", demo_data, tmp_path / "run", *TINY, chosen, *replacing([extra]))
    assert words in sentence and "data.splits." in sentence


def test_a_configuration_file_may_take_a_form_away(demo_data: Path, tmp_path: Path) -> None:
    """The file of an experiment cannot delete: with null for the other form's keys its own form is read."""
    with composed("train", demo_data, tmp_path / "run", "task=captioning", *TINY) as config:
        own = {"jsonl": str(tmp_path / "own.jsonl"), "karpathy": None, "splits": None}
        (tmp_path / "own.jsonl").write_text('{"image_id": 1, "captions": ["a star"]}\n')
        merged = OmegaConf.merge(config.data.splits.train, own)
    from vinvl.captioning.files import read_caption_split

    assert len(read_caption_split(merged, "train", "error")) == 1


DATA = {"train_split": "train", "val_split": "val", "test_split": "test", "predict_split": "val", "splits": {}}


def test_a_split_that_nothing_reads_is_refused() -> None:
    refuse_unread_splits(given_values(["+data.splits.train={jsonl:a}", "data.splits.val.jsonl=a", "seed=1"]), DATA)
    refuse_unread_splits(given_values(["+data.splits.own={jsonl:a}"]), DATA | {"val_split": "own"})
    refuse_unread_splits(given_values(["+data.splits.own=a.json"]), DATA | {"answer_splits": ["own"]})
    with pytest.raises(UserError, match=r"data\.splits\.trian is given, and nothing reads it .* did you mean .*train"):
        refuse_unread_splits(given_values(["++data.splits.trian={jsonl:a}"]), DATA)


def test_a_run_whose_test_split_is_not_there_is_refused_before_it_trains(demo_data: Path, tmp_path: Path) -> None:
    refused = [*TINY, "data.test_split=tset", "trainer.max_epochs=1000000"]
    assert "no split 'tset'" in refused_in_process("train", demo_data, tmp_path / "run", *refused)
    unread = [*TINY, "+data.splits.dev=own.jsonl"]
    assert "data.splits.dev is given" in refused_in_process("train", demo_data, tmp_path / "run", *unread)
