"""Every task on the demo world: train each briefly, hold it against what one scores without looking, print one table.

Called by `make demo-all`; overrides given to it go to all training runs. GQA is trained from random weights and the
other tasks start from its encoder, as the published tasks start from Oscar+. Captions are written next to their
pictures into one HTML file.
"""

import json
import sys
from datetime import datetime
from pathlib import Path

from demo_vivo import train_all as train_vivo
from doors import call, scores_of

from vinvl.captioning.files import read_coco_captions, read_karpathy
from vinvl.demo import DemoWorld
from vinvl.demo.baselines import constant_caption, question_text_prior, question_type_prior
from vinvl.gqa.files import read_gqa
from vinvl.nlvr2.files import read_nlvr2
from vinvl.pages.pages import CaptionedPicture, write_page
from vinvl.run.folders import data_root
from vinvl.run.progress import print_results
from vinvl.vqa.files import read_official

PICTURES_SHOWN = 24
COLUMNS = ("task", "metric", "without looking", "", "ours")


def train_all(folder: Path, overrides: list[str]) -> None:
    """All runs, each in a folder of its name."""

    def train(name: str, experiment: list[str], start: str = "gqa/checkpoints/best.ckpt") -> None:
        init = [f"model.init={folder / start}"] if start else []
        call("train", [f"hydra.run.dir={folder / name}", *experiment, *init, *overrides])

    train("gqa", ["experiment=demo_gqa"], start="")
    train("vqa", ["task=vqa", "trainer.max_epochs=2"])
    train("nlvr2", ["experiment=demo_nlvr2"])
    train("retrieval", ["experiment=demo_retrieval"])
    train("captioning", ["experiment=demo_captioning"])
    rewarded = ["experiment=demo_captioning_scst"]
    train("captioning_scst", rewarded, start="captioning/checkpoints/last.ckpt")
    train("nocaps_words", ["experiment=demo_nocaps", "test_after_fit=false"])
    novel = [*rewarded, "data=demo_nocaps", "data.training_items=images", "trainer.max_epochs=2"]
    train("nocaps", [*novel, "decoding=constrained"], start="nocaps_words/checkpoints/last.ckpt")
    best = f"ckpt_path={folder / 'nocaps/checkpoints/best.ckpt'}"
    call("evaluate", [f"hydra.run.dir={folder / 'nocaps_unconstrained'}", best, "decoding=caption"])
    rewarded_best = folder / "captioning_scst/checkpoints/best.ckpt"
    call("predict", [f"hydra.run.dir={folder / 'captions'}", f"ckpt_path={rewarded_best}"])
    train_vivo(folder / "vivo", overrides, seeds=(1,))


def table(folder: Path, world: DemoWorld) -> list[tuple[str, ...]]:
    """A row per task."""
    scores = {path.parent.name: scores_of(path.parent) for path in folder.glob("*/results.json")}
    train_questions, test_questions = (
        read_official(world.questions(split), world.annotations(split)) for split in ("train", "test")
    )
    vqa_prior = question_type_prior(train_questions, test_questions)["overall"]
    gqa_prior = question_text_prior(read_gqa([world.gqa("train")]), read_gqa([world.gqa("test")]))
    _, constant = constant_caption(
        read_karpathy(world.karpathy, ["train", "restval"]), read_karpathy(world.karpathy, ["test"])
    )
    always_true = 100 * float(read_nlvr2(world.nlvr2("test"))["label"].numpy().mean())
    novel_images = read_coco_captions(world.nocaps_val)
    _, novel_constant = constant_caption(read_karpathy(world.nocaps_train, ["train", "restval"]), novel_images)
    retrieval, nocaps = scores["retrieval"], scores["nocaps"]
    before, after = (scores_of(folder / "vivo" / f"{way}_1")["out-domain/CIDEr"] for way in ("without", "with"))
    rows: list[tuple[str, str, str, float, float]] = [
        ("VQA", "official accuracy", "commonest of the question's type", vqa_prior, scores["vqa"]["accuracy/overall"]),
        ("GQA", "accuracy", "commonest for the same words", gqa_prior, scores["gqa"]["accuracy/overall"]),
        ("NLVR2", "accuracy", "always True", always_true, scores["nlvr2"]["accuracy"]),
        *(
            (
                f"retrieval, {way.replace('_', ' ')}",
                "R@1 of 100 images",
                "random order",
                chance,
                retrieval[f"{way}/R@1"],
            )
            for way, chance in ((way, retrieval[f"chance/{way}/R@1"]) for way in ("image_to_text", "text_to_image"))
        ),
        ("captioning, cross-entropy", "CIDEr", "best constant caption", constant, scores["captioning"]["CIDEr"]),
        ("captioning, self-critical", "CIDEr", "best constant caption", constant, scores["captioning_scst"]["CIDEr"]),
        ("NoCaps, constrained", "CIDEr", "best constant caption", novel_constant, nocaps["CIDEr"]),
        (
            "NoCaps, constrained",
            "CIDEr out of domain",
            "ours, unconstrained",
            scores["nocaps_unconstrained"]["out-domain/CIDEr"],
            nocaps["out-domain/CIDEr"],
        ),
        ("NoCaps, few captions after VIVO", "CIDEr out of domain", "ours, without VIVO", before, after),
    ]
    return [(*names, f"{blind:.2f}", f"{ours:.2f}") for *names, blind, ours in rows]


def caption_page(folder: Path, world: DemoWorld) -> Path:
    """The test pictures with their captions."""
    captions = json.loads((folder / "captions" / "captions.json").read_text())[:PICTURES_SHOWN]
    records = read_karpathy(world.karpathy, ["test"])
    position = {str(image_id): index for index, image_id in enumerate(records.image_ids)}
    pictures = []
    for one in captions:
        index = position[str(one["image_id"])]
        picture = world.images / records["file_name"][index]
        pictures.append(CaptionedPicture(picture, one["caption"], records.captions_of(index)))
    path = folder / "captions.html"
    write_page(path, "captions.html", title="Captions of the demo world's test pictures", pictures=pictures)
    return path


def main(overrides: list[str]) -> None:
    folder = Path("runs") / "demo_all" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    train_all(folder, overrides)
    world = DemoWorld(Path(data_root()) / "demo")
    rows = table(folder, world)
    page = caption_page(folder, world)
    print_results("Demo world, held-out pictures, %", rows, {"runs": folder, "captions": page}, COLUMNS)


if __name__ == "__main__":
    main(sys.argv[1:])
