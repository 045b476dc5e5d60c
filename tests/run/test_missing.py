"""Files that a command names and that are not there, at every door, before torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vinvl.run.missing import looks_like_a_path

# What a person types wrongly, door by door: words of the command → words of the sentence; "" where there is none.
ASKED = {
    "train": [
        (
            "experiment=vqa2_base",
            "train2014_questions.json does not exist; check data.splits.train.",
        ),
        ("model.init=./nowhere", "model.init=./nowhere does not exist"),
        ("ckpt_path=nowhere.ckpt", "nowhere.ckpt does not exist"),
        ("experiment=gqa_base", "model.init must be given"),
        ("ckpt_path=last", "no run under runs/demo_vqa has a checkpoints/last.ckpt; give a file, or name=NAME"),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("data.batchsize=3", "did you mean data.batch_size?"),
        ("data.batch_size=3 model.config.hidden_size=8 --cfg job", ""),
        ("--help", ""),
    ],
    "evaluate": [
        ("ckpt_path=nowhere.ckpt", "nowhere.ckpt does not exist"),
        ("results=nowhere.json data=vqa2", "results=nowhere.json does not exist"),
        ("", "no run under runs has a checkpoints/best.ckpt; give a file."),
        ("published=nowhere/nlvr2", "nlvr2_published cannot be scored: 3 files or folders are missing"),
        ("--help", ""),
    ],
    "predict": [
        ("ckpt_path=nowhere.ckpt image=a.jpg", "nowhere.ckpt does not exist"),
        ("--help", ""),
    ],
    "extract": [
        ("images=nowhere weights=x.pth output=x.h5", "images=nowhere does not exist"),
        ("", "images, output, weights must be given"),
        ("--help", ""),
    ],
    "convert": [
        ("weights=nowhere.bin to=x", "weights=nowhere.bin does not exist"),
        ("from=nowhere to=x", "from=nowhere does not exist"),
        ("formt=x", "did you mean format?"),
        ("--help", ""),
    ],
    "report": [("store=nowhere.h5", "store=nowhere.h5 does not exist"), ("--help", "")],
    "train_detector": [
        ("detection_data=coco2017", "instances_train2017.json does not exist; check data.splits.train."),
        ("--help", ""),
    ],
    "evaluate_detector": [("weights=nowhere.pth", "weights=nowhere.pth does not exist"), ("--help", "")],
    "pretrain_finetune": [("tag=false", "did you mean tags?"), ("--help", "")],
    "app": [
        ("", "Pass model=RUN"),
        ("model=[./nowhere,x] detector=x.pth", "model=./nowhere does not exist"),
        ("--help", ""),
    ],
    "compare": [("a b", "a does not exist"), ("--help", "")],
    "pretraining.corpus": [("info nowhere", "nowhere has no index beside it"), ("--help", "")],
    "regions": [("info nowhere.h5", "nowhere.h5 cannot be opened"), ("--help", "")],
}
PROGRAM = """
import contextlib, io, json, logging, runpy, sys
import yaml
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
from hydra.core.global_hydra import GlobalHydra
logging.disable()  # the log of the door before lies in a folder that is gone
for door, commands in json.loads(sys.argv[1]).items():
    for words, sentence in commands:
        sys.argv[:] = [door, *words.split()]
        GlobalHydra.instance().clear()
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                runpy.run_module(f"vinvl.{door}", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as left:
            code = left.code
        told = f"{door} {words}: {code} {printed.getvalue()[-500:]}"
        assert sentence in told and bool(code) == bool(sentence), told
        heavy = {"torch", "pytorch_lightning", "transformers"} & sys.modules.keys()
        assert not heavy, (told, heavy)
"""


@pytest.mark.parametrize("doors", [["train"], list(ASKED)[1:4], list(ASKED)[4:]])
def test_doors_answer_without_importing_what_takes_seconds(doors: list[str], tmp_path: Path) -> None:
    asked = json.dumps({door: ASKED[door] for door in doors})
    environment = os.environ | {"VINVL_DATA": str(tmp_path / "data")}
    subprocess.run([sys.executable, "-c", PROGRAM, asked], check=True, cwd=tmp_path, env=environment)
    assert not (tmp_path / "runs").exists()  # nothing is left of a run


def test_what_is_a_path_and_what_may_be_a_name_on_the_hub() -> None:
    for path in ("/a", "./a", "../a", "~/a", "a/b/c", "a.pth", "a/b.ckpt"):
        assert looks_like_a_path(path)
    for name in ("bert-base-uncased", "michelecafagna26/vinvl-base-image-captioning", "last"):
        assert not looks_like_a_path(name)
