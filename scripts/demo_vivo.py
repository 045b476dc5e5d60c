"""What VIVO is for: objects that no caption names, with and without its pre-training, over three seeds, in one table.

Called by `make demo-vivo`; overrides given to it go to all training runs. A language model that has read words without
pictures stands for BERT: it knows the word "star". VIVO learns from tags what a star looks like. Then few captions,
none of which names a star, are learnt in the same way from either, and others written without constraints. Pictures out
of domain are those where half of the objects or more are stars.
"""

import statistics
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
from doors import call, scores_of

from vinvl.demo.files import NOVEL_SHAPE
from vinvl.run.progress import print_results

SEEDS = (1, 2, 3)
FEW = ["trainer.max_epochs=1", "optim.scheduler.warmup_steps=20"]  # 153 updates
WORDS = ["experiment=demo_pretraining", "data.variant=matched", "data.use_regions=false", "data.use_tags=false"]
CAPTIONS = ["experiment=demo_nocaps", "decoding=caption", "decoding.num_beams=1", "data.use_tags=false"]
CAPTIONS += ["task.options.freeze_embedding=true", "task.options.java_metrics=false", *FEW]
COLUMNS = ("pictures", "figure", "words, captions", "words, VIVO, captions", "gain", "gain of each seed")


def train_all(folder: Path, overrides: list[str], seeds: tuple[int, ...] = SEEDS) -> None:
    """The language model; for each seed VIVO after it, and captions after either; each run in a folder of its name."""

    def train(name: str, words: list[str], start: str = "") -> None:
        init = [f"model.init={folder / start / 'checkpoints' / 'last.ckpt'}"] if start else []
        call("train", [f"hydra.run.dir={folder / name}", *words, *init, *overrides])

    train("words", [*WORDS, "trainer.max_epochs=1", "test_after_fit=false"])
    for seed in seeds:
        train(f"vivo_{seed}", ["experiment=demo_vivo", f"seed={seed}"], start="words")
        train(f"without_{seed}", [*CAPTIONS, f"seed={seed}"], start="words")
        train(f"with_{seed}", [*CAPTIONS, f"seed={seed}"], start=f"vivo_{seed}")


def novel_f1(run: Path) -> float:
    """F1 in percent of captions that name the novel shape, for pictures that show it (Hendricks et al. 2016)."""
    examples = pq.read_table(run / "examples.parquet", columns=["answer", "group"]).to_pylist()
    named = [NOVEL_SHAPE in one["answer"] for one in examples]
    shown = [one["group"] != "in-domain" for one in examples]
    both = sum(map(min, named, shown))
    return 100 * 2 * both / (sum(named) + sum(shown))


def cider(domain: str) -> Callable[[Path], float]:
    return lambda run: scores_of(run)[f"{domain}/CIDEr"]


def table(folder: Path, seeds: tuple[int, ...] = SEEDS) -> list[tuple[str, ...]]:
    """A row per domain and one for the novel shape: means of the seeds without and with VIVO, and each seed's gain."""
    figures = [(domain, "CIDEr", cider(domain)) for domain in ("in-domain", "near-domain", "out-domain")]
    rows: list[tuple[str, ...]] = []
    for pictures, figure, measure in (*figures, ("all", f"F1 of “{NOVEL_SHAPE}”", novel_f1)):
        without, with_it = ([measure(folder / f"{way}_{seed}") for seed in seeds] for way in ("without", "with"))
        gains = [f"{after - before:+.2f}" for before, after in zip(without, with_it, strict=True)]
        before, after = statistics.mean(without), statistics.mean(with_it)
        rows.append((pictures, figure, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}", ", ".join(gains)))
    return rows


def main(overrides: list[str]) -> None:
    folder = Path("runs") / "demo_vivo" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    train_all(folder, overrides)
    title = f"NoCaps of the demo world without constraints, mean of {len(SEEDS)} seeds"
    print_results(title, table(folder), {"runs": folder}, COLUMNS)


if __name__ == "__main__":
    main(sys.argv[1:])
