"""Image-text retrieval: does a caption match an image; every image scored with every caption."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, Unpack

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from vinvl.captioning.files import CaptionRecords
from vinvl.data.batch import Batch
from vinvl.models.answering import VinVLForAnswering, answer_loss_per_example
from vinvl.retrieval.candidates import Block, Fold, ScoringBlock
from vinvl.retrieval.data import RetrievalDataModule
from vinvl.retrieval.recall import RECALL_AT, FoldRanks, RecallAtK, fold_ranks
from vinvl.retrieval.run import ScoreFiles, ScoringRun, chance, scores_fingerprint
from vinvl.retrieval.scoring import PairScorer
from vinvl.run.errors import UserError, say
from vinvl.run.files import atomic_write
from vinvl.run.progress import progress_lines
from vinvl.task import TaskArguments, VinVLTask

SCORES = "retrieval_scores"  # folder beside the checkpoints
Result = TypeVar("Result")
DIRECTIONS = ("image_to_text", "text_to_image")


class Matches(NamedTuple):
    """The best captions of one image, best first."""

    position: int  # of the image in its split
    image_id: str
    top: list[dict[str, Any]]
    filled_in: bool = False  # without the model


class RetrievalTask(VinVLTask):
    """VinVLForAnswering with the two classes mismatched and matched; recall at 1, 5 and 10 in both directions.

    Validation scores folds of a sample of the images in memory. Test and prediction score every image of a fold with
    every caption: block by block onto the disk, where a run that was killed continues; ranks are taken from there.
    """

    model_class = VinVLForAnswering
    datamodule_class = RetrievalDataModule
    headline = "recall_mean"
    filled_with = "the first candidates, as the file has them"

    def __init__(self, **shared: Unpack[TaskArguments]) -> None:
        """`shared`: see `VinVLTask`."""
        own = {"num_labels": 2, "loss_type": "ce", "classifier": "linear"}
        shared["model_config"] = {**shared["model_config"], **own}
        super().__init__({}, **shared)
        self.image_to_text = RecallAtK()
        self.text_to_image = RecallAtK()
        self.run_folder: Path | None = None
        self._scorer: PairScorer | None = None
        self._val_folds: list[Fold] = []
        self._run: ScoringRun | None = None

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: str | Path, **own: Any) -> Self:
        """As the base class; scores go to the run folder of the checkpoint."""
        task = super().from_checkpoint(checkpoint, path, **own)
        folder = Path(path).resolve().parent
        task.run_folder = folder.parent if folder.name == "checkpoints" else folder
        return task

    def training_loss(self, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return answer_loss_per_example(self(batch), batch.labels, "ce").mean()

    def setup(self, stage: str) -> None:
        """Before the loaders are made: finds the scores that are there already."""
        data = self._datamodule()
        model: Any = self.model
        scorer = PairScorer(
            model, data.region_text.special, data.limits.max_tokens, data.eval_batch_size, data.attention_type
        )
        if stage in ("fit", "validate"):
            self._scorer, self._val_folds = scorer, data.folds("val")
        else:
            self._run = self._prepare_run(data, stage, scorer)

    def _prepare_run(self, data: RetrievalDataModule, stage: str, scorer: PairScorer) -> ScoringRun:
        candidates, folds = data.candidates(stage), data.folds(stage)
        blocks = data.blocks(stage, folds)
        strategy = self.trainer.strategy
        settings = self._settings(data)
        base = data.scores_dir or (self.run_folder or Path(self.trainer.default_root_dir)) / SCORES
        fingerprint = scores_fingerprint(self.model.state_dict(), candidates, folds, settings)
        # Rank 0 decides: the run folder of the others is another, and blocks may appear while they look.
        folder, fingerprint = strategy.broadcast((Path(base) / fingerprint, fingerprint))
        files = ScoreFiles(folder, fingerprint, folds, blocks)
        description = {"settings": settings, "images": sum(len(fold.images) for fold in folds)}
        finished, bad = self._on_rank_zero(partial(files.prepare, description))
        self._announce(folds, files, len(finished), bad)
        data.finished = finished
        pairs = [(block.stop - block.start) * len(folds[block.fold].captions) for block in blocks]
        progress = self._progress(pairs, finished)
        return ScoringRun(candidates, folds, blocks, files, scorer, progress)

    def _on_rank_zero(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on rank 0, on every rank; a UserError there is raised on every rank too.

        Without that the other ranks would wait, and end with a traceback about a lost connection.
        """
        result, sentence = None, None
        if self.trainer.is_global_zero:
            try:
                result = work()
            except UserError as error:
                sentence = str(error)
        result, sentence = self.trainer.strategy.broadcast((result, sentence))
        if sentence is not None:
            raise UserError(sentence)
        return result  # type: ignore[return-value]  # rank 0 has worked

    def _settings(self, data: RetrievalDataModule) -> dict[str, Any]:
        """What the scores depend on besides weights and candidates."""
        limits = {name: getattr(data.limits, name) for name in ("max_tokens", "max_regions", "use_tags", "use_regions")}
        return {
            "model": dict(self.hparams["model_config"]),
            **limits,
            "attention_type": data.attention_type,
            "precision": str(self.trainer.precision),
            "block_images": data.block_images,
        }

    def _announce(self, folds: Sequence[Fold], files: ScoreFiles, finished: int, bad: Sequence[str]) -> None:
        """Says what is going to be scored, and what need not be."""
        if not self.trainer.is_global_zero:
            return
        if bad:
            rank_zero_warn(f"{files.folder}: {len(bad)} damaged or foreign files are scored again, the first {bad[0]}.")
        pairs = sum(len(fold.images) * len(fold.captions) for fold in folds)
        say(f"Scoring {describe_folds(folds)}: {pairs:,} pairs in {len(files.blocks):,} blocks.")
        if finished:
            say(f"{finished:,} blocks are scored already in {files.folder}.")

    def _progress(self, pairs: Sequence[int], finished: frozenset[int]) -> Callable[[int], None]:
        """What is told of each block that rank 0 has scored; the other ranks are as far as it is."""
        if not self.trainer.is_global_zero:
            return lambda number: None
        ranks = self.trainer.world_size
        done, total = 0, sum(count for number, count in enumerate(pairs) if number not in finished)
        show = progress_lines("pairs", total)

        def tell(number: int) -> None:
            nonlocal done
            done = min(done + pairs[number] * ranks, total)
            show(done)

        return tell

    def _datamodule(self) -> RetrievalDataModule:
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, RetrievalDataModule), "a RetrievalTask runs with trainer and datamodule"
        return data

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Scores one fold of the sample and takes its ranks."""
        assert self._scorer is not None
        if batch.number < 0:
            return
        fold = self._val_folds[batch.number]
        tokens = self._datamodule().candidates("val").captions.tokens
        scores = self._scorer.score(batch.tag_ids, batch.region_features, tokens, fold.captions).cpu().numpy()
        self._update(fold_ranks(fold, lambda: [(Block(batch.number, 0, len(fold.images)), scores)]))

    def evaluate_batch(self, batch: Any) -> None:
        """Scores a block of the test candidates onto the disk."""
        assert self._run is not None
        self._run.score(batch)

    def _update(self, ranks: FoldRanks, part: slice = slice(None)) -> None:
        self.image_to_text.update(torch.from_numpy(ranks.image_to_text[part]))
        self.text_to_image.update(torch.from_numpy(ranks.text_to_image[part]))

    def compute_scores(self) -> dict[str, float]:
        if self._run is None or not self.trainer.testing:
            return with_mean(self._figures(), self._val_folds)
        self.trainer.strategy.barrier("every block is on the disk")
        figures = [self._figures_of_fold(number, self._run) for number in range(len(self._run.folds))]
        return with_mean({name: float(np.mean([one[name] for one in figures])) for name in figures[0]}, self._run.folds)

    def _figures_of_fold(self, number: int, run: ScoringRun) -> dict[str, float]:
        ranks = self._on_rank_zero(partial(run.ranks, number))
        self._reset_metrics()
        self._update(ranks, slice(self.trainer.global_rank, None, self.trainer.world_size))
        return self._figures()

    def _figures(self) -> dict[str, float]:
        """Both metrics over all ranks, by direction and figure."""
        metrics = (self.image_to_text.compute(), self.text_to_image.compute())
        return {
            f"{direction}/{name}": value.item()
            for direction, figures in zip(DIRECTIONS, metrics, strict=True)
            for name, value in figures.items()
        }

    def result_rows(self) -> list[tuple[str, str]]:
        rows = [] if self._run is None else [("candidates", describe_folds(self._run.folds))]
        for direction in DIRECTIONS:
            title = direction.replace("_to_", " → ")
            values = "  ".join(f"{self.scores[f'{direction}/R@{k}']:.2f}" for k in RECALL_AT)
            rows.append((f"{title}: R@1, R@5, R@10", values))
            values = "  ".join(f"{self.scores[f'chance/{direction}/R@{k}']:.2f}" for k in RECALL_AT)
            rows.append(("  in random order", values))
        return [*rows, ("mean of the six", f"{self.scores['recall_mean']:.2f}")]

    def predict_step(self, batch: ScoringBlock, batch_idx: int) -> list[Matches]:
        """The best captions of each image of a block."""
        assert self._run is not None
        if batch.number < 0:
            return []
        self._run.score(batch)
        return [Matches(**match) for match in self._run.image_matches(batch.number)]

    def filled_in(self, records: CaptionRecords, index: int) -> Matches | None:
        """The first captions of the first fold: of an image without regions no caption is more likely than another."""
        if self._run is None:
            return None
        return Matches(0, str(records.image_ids[index]), self._run.first_captions(), filled_in=True)

    def write_predictions(self, predictions: Sequence[Matches], folder: Path) -> dict[str, Path]:
        """image_to_text.jsonl and text_to_image.jsonl: the ten best captions of each image, images of each caption.

        Captions of images without regions get the first images.
        """
        assert self._run is not None
        by_image, by_caption = folder / "image_to_text.jsonl", folder / "text_to_image.jsonl"
        with atomic_write(by_image) as file:
            for one in predictions:
                line = {"image_id": one.image_id, "top": one.top} | ({"filled_in": True} if one.filled_in else {})
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        with atomic_write(by_caption) as file:
            for number in range(len(self._run.folds)):
                for match in self._run.caption_matches(number):
                    file.write(json.dumps(match, ensure_ascii=False) + "\n")
            data = self._datamodule()
            if data.left_out is not None:
                for match in self._run.first_images(data.left_out.records, data.captions_per_image):
                    file.write(json.dumps({**match, "filled_in": True}, ensure_ascii=False) + "\n")
        return {"captions of images": by_image, "images of captions": by_caption, "all scores": self._run.files.folder}


def with_mean(figures: Mapping[str, float], folds: Sequence[Fold]) -> dict[str, float]:
    """The figures with the mean of the six recalls, and what an order drawn at random would have."""
    recalls = [figures[f"{direction}/R@{k}"] for direction in DIRECTIONS for k in RECALL_AT]
    scores = {"recall_mean": float(np.mean(recalls)), **figures}
    for k in RECALL_AT:
        by_chance = np.mean([chance(fold, k) for fold in folds], axis=0)
        scores |= {
            f"chance/{direction}/R@{k}": float(value) for direction, value in zip(DIRECTIONS, by_chance, strict=True)
        }
    return scores


def describe_folds(folds: Sequence[Fold]) -> str:
    """ "5,000 images with 25,000 captions", or of which folds the result is the mean."""
    images, captions = len(folds[0].images), sum(len(fold.captions) for fold in folds)
    if len(folds) == 1:
        return f"{images:,} images with {captions:,} captions"
    return f"mean of {len(folds)} folds of {images:,} images, {captions:,} captions in all"
