"""Image-text retrieval: does a caption match an image; every image scored with every caption."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.captioning.files import CaptionRecords
from vinvl.examples import Outcome
from vinvl.models.answering import VinVLForAnswering
from vinvl.models.config import VinVLConfig
from vinvl.retrieval.data import (
    BY_DUAL_ENCODER,
    BY_TAGS,
    Block,
    Fold,
    RetrievalDataModule,
    RetrievalPairs,
    ScoringBlock,
)
from vinvl.retrieval.dual_encoder import distilled, read_dual_encoder, save_dual_encoder, vector_products, vectors_of
from vinvl.retrieval.overlap import cheap_overlap
from vinvl.retrieval.recall import (
    RECALL_AT,
    FirstMatches,
    FoldRanks,
    RanksSeen,
    chance,
    first_matches,
    fold_ranks,
    hard_rank,
    recall,
)
from vinvl.retrieval.run import (
    BestMatches,
    Matches,
    ScoreFiles,
    candidates_digest,
    described,
    probabilities,
    scores_fingerprint,
    weights_digest,
)
from vinvl.retrieval.scoring import PairScorer
from vinvl.retrieval.two_stage import Cheap, TwoStage
from vinvl.run.errors import UserError, say
from vinvl.run.files import atomic_write
from vinvl.run.progress import progress_lines
from vinvl.task import VinVLTask

SCORES = "retrieval_scores"  # folder beside the checkpoints
UNSAID = ("hidden_act", "type_vocab_size", "layer_norm_eps")  # fields that checkpoints have only since lately
Result = TypeVar("Result")
DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(kw_only=True, eq=False, repr=False)
class RetrievalTask(VinVLTask):
    """VinVLForAnswering with the two classes mismatched and matched; recall at 1, 5 and 10 in both directions.

    Validation scores folds of a sample of the images in memory. Test and prediction score every image of a fold with
    every caption: block by block onto the disk, where a run that was killed continues; ranks are taken from there.
    With `data.rerank_top` cheap scores choose the pairs that the model scores (`TwoStage`).
    """

    model_class = VinVLForAnswering
    datamodule_class = RetrievalDataModule
    headline = "recall_mean"
    filled_with = "the first candidates, as the file has them"

    def add_metrics(self) -> None:
        self.image_to_text = RanksSeen()
        self.text_to_image = RanksSeen()
        self.run_folder: Path | None = None
        self._scorer: PairScorer
        self._score: Callable[[ScoringBlock, np.ndarray], np.ndarray]  # images with captions of the records
        self._folds: list[Fold] = []
        self._first_fold: np.ndarray | None = None  # scores of its images with its captions, in validation
        self._ranks: list[FoldRanks] = []  # of the folds, after a test
        self._files: ScoreFiles | None = None  # in test and prediction
        self._two_stage: TwoStage | None = None  # there, with data.rerank_top
        self._all_scored: ScoreFiles | None = None  # where the scores of all pairs would be, then
        self._scored: Callable[[int], None] | None = None  # on rank 0, told of each block

    def decided(self) -> dict[str, Any]:
        return {"num_labels": 2, "loss_type": "ce", "classifier": "linear"}

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: str | Path, **own: Any) -> Self:
        """As the base class; scores go to the run folder of the checkpoint."""
        task = super().from_checkpoint(checkpoint, path, **own)
        folder = Path(path).resolve().parent
        task.run_folder = folder.parent if folder.name == "checkpoints" else folder
        return task

    def setup(self, stage: str) -> None:
        """Before the loaders are made: finds the scores that are there already."""
        data, model = self._datamodule(), self.model
        stage = "val" if stage in ("fit", "validate") else stage
        assert isinstance(model, VinVLForAnswering)
        special = data.candidates(stage).region_text.special
        scorer = PairScorer(model, special, data.limits.max_tokens, data.eval_batch_size, data.attention_type)
        self._scorer, tokens = scorer, data.candidates(stage).tokens

        def score(block: ScoringBlock, captions: np.ndarray) -> np.ndarray:
            return scorer.score(block.tag_ids, block.region_features, tokens, captions).cpu().numpy()

        self._score, self._folds = score, data.folds(stage)
        self._files = None if stage == "val" else self._prepare_files(data, stage)

    def _prepare_files(self, data: RetrievalDataModule, stage: str) -> ScoreFiles:
        """Finds out, and says, what is to be scored, and what need not be."""
        folds, settings = self._folds, self._settings(data)
        base = data.scores_dir or (self.run_folder or Path(self.trainer.default_root_dir)) / SCORES
        weights, candidates, blocks = self.model.state_dict(), data.candidates(stage), data.blocks(stage, folds)
        fingerprint = scores_fingerprint(weights, candidates, folds, settings)
        if data.rerank_top is not None:
            self._all_scored = ScoreFiles(Path(base) / fingerprint, fingerprint, folds, blocks)
            cheap = self._cheap(data, stage, Path(base))
            self._two_stage = TwoStage(folds, cheap.of_fold, data.rerank_top)
            settings |= {"rerank_top": data.rerank_top, "rerank_by": cheap.what}
            fingerprint = scores_fingerprint(weights, candidates, folds, settings)
        # Rank 0 decides: the run folder of the others is another, and blocks may appear while they look.
        folder, fingerprint = self.trainer.strategy.broadcast((Path(base) / fingerprint, fingerprint))
        files = ScoreFiles(folder, fingerprint, folds, blocks)
        description = {"settings": settings, "images": sum(len(fold.images) for fold in folds)}
        description["candidates"] = candidates_digest(candidates.records, folds)
        data.finished, bad = self._on_rank_zero(partial(files.prepare, description))
        pairs = [images * captions for images, captions in map(files.shape, range(len(blocks)))]
        if self._two_stage is not None:
            pairs = list(map(self._two_stage.pairs, blocks))
        if self.trainer.is_global_zero:
            if bad:
                rank_zero_warn(
                    f"{folder}: {len(bad)} damaged or foreign files, the first {bad[0]}, are scored again: "
                    "nothing is lost."
                )
            count = f"{sum(pairs):,} pairs" if self._two_stage is None else self._two_stage.describe()
            say(f"Scoring {describe_folds(folds)}: {count} in {len(pairs):,} blocks.")
            if data.finished:
                say(f"{len(data.finished):,} blocks are scored already in {folder}.")
            self._scored = self._progress(pairs, sum(pairs) - sum(pairs[number] for number in data.finished))
        return files

    def _cheap(self, data: RetrievalDataModule, stage: str, base: Path) -> Cheap:
        """The cheap scores that choose what is scored; a dual encoder is made in the folder `base` if there is none."""
        candidates = data.candidates(stage)
        if data.rerank_by == BY_TAGS:
            return cheap_overlap(candidates, data.tokenizer, data.tag_choice)

        def vectors() -> tuple[np.ndarray, np.ndarray]:
            digest, own = weights_digest(self.model.state_dict()), data.rerank_by == BY_DUAL_ENCODER
            path = base / f"dual_encoder_{digest}.safetensors" if own else Path(data.rerank_by)
            if own and not path.exists():
                self._distil(data, path, digest)
            encoder = read_dual_encoder(path, self.config, digest)
            return vectors_of(encoder.to(self.trainer.strategy.root_device), candidates)

        # Rank 0 alone: another device may round otherwise, and the ranks would choose different pairs.
        return vector_products(*self._on_rank_zero(vectors))

    def _distil(self, data: RetrievalDataModule, path: Path, digest: str) -> None:
        """Makes the dual encoder of the model, from the training split."""
        data.setup("fit")
        pairs, model = data.datasets["train"], self.model
        assert isinstance(pairs, RetrievalPairs) and isinstance(model, VinVLForAnswering)
        model.eval().to(self.trainer.strategy.root_device)
        say(f"Distilling a dual encoder from the model: {data.rerank_steps:,} updates; it will be kept as {path}.")
        tell = progress_lines("updates", data.rerank_steps)
        encoder = distilled(model, self._scorer, pairs, steps=data.rerank_steps, seed=data.seed, tell=tell)
        save_dual_encoder(encoder, path, digest)

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
        usual, fields = VinVLConfig(), dict(self.hparams["model_config"])
        return {
            "model": {one: said for one, said in fields.items() if one not in UNSAID or said != getattr(usual, one)},
            **asdict(data.limits),
            "attention_type": data.attention_type,
            "precision": str(self.trainer.precision),
            "block_images": data.block_images,
        }

    def _progress(self, pairs: Sequence[int], total: int) -> Callable[[int], None]:
        """What is told of each block that rank 0 has scored; the other ranks are as far as it is."""
        ranks, done, show = self.trainer.world_size, 0, progress_lines("pairs", total)

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
        if batch.number >= 0:
            fold = self._folds[batch.number]
            scores = self._score(batch, fold.captions)
            if self._datamodule().val_hard_captions is not None:
                self.image_to_text.update(np.array([hard_rank(fold, scores[0])]))
                return
            ranks = fold_ranks(fold, lambda: [(Block(batch.number, 0, len(fold.images)), scores)])
            self.image_to_text.update(ranks.image_to_text)
            self.text_to_image.update(ranks.text_to_image)
            if batch.number == 0:
                self._first_fold = scores

    def evaluate_batch(self, batch: Any) -> None:
        """Scores a block of the test candidates onto the disk; one that comes empty is there already."""
        assert self._files is not None
        if batch.region_features:
            self._files.write(batch.number, self._scores_of(batch))
            if self._scored is not None:
                self._scored(batch.number)

    def _scores_of(self, batch: ScoringBlock) -> np.ndarray:
        """(images, C) of a block that is to be written."""
        assert self._files is not None
        captions = self._files.fold_of(batch.number).captions
        score_all = partial(self._score, batch, captions)
        if self._two_stage is None:
            return score_all()

        def score(image: int, chosen: np.ndarray) -> np.ndarray:
            row: np.ndarray = self._score(batch.of_image(image), captions[chosen])[0]
            return row

        return self._two_stage.scores(self._files.blocks[batch.number], score_all, score)

    def compute_scores(self) -> dict[str, float]:
        files = self._files
        if files is None:
            hard = self._datamodule().val_hard_captions is not None
            metrics = (self.image_to_text,) if hard else (self.image_to_text, self.text_to_image)
            seen = [
                metric.compute().cpu().numpy().reshape(-1) for metric in metrics
            ]  # one number alone has lost its axis
            return with_mean([figures_of(seen)], self._folds)
        self.trainer.strategy.barrier("every block is on the disk")
        self._ranks = self._on_rank_zero(lambda: ranks_in(files))
        scores = with_mean(list(map(figures_of, self._ranks)), self._folds)
        if self._two_stage is None:
            return scores
        return scores | {"scored_pairs": self._two_stage.share} | self._on_rank_zero(partial(self._lost, scores))

    def _lost(self, scores: Mapping[str, float]) -> dict[str, float]:
        """How much higher each recall is in the scores of all pairs; {} where these are not all on the disk."""
        every = self._all_scored
        if every is None or len(every.whole()) < len(every.blocks):
            return {}
        of_all = with_mean(list(map(figures_of, ranks_in(every))), self._folds)
        names = [f"{way}/R@{k}" for way in DIRECTIONS for k in RECALL_AT]
        return {f"lost/{name}": of_all[name] - scores[name] for name in names}

    def examples(self) -> Iterator[Outcome]:
        """Each image that looks for its captions, then each caption that looks for its image, fold by fold.

        Of an evaluation in training those of the first fold.
        """
        if self._files is None:
            if (scores := self._first_fold) is not None:
                fold, records = self._folds[0], self._datamodule().candidates("val").records
                whole = [(Block(0, 0, len(fold.images)), scores)]
                ranks, first = fold_ranks(fold, lambda: whole), first_matches(fold, lambda: whole)
                yield from fold_examples(records, fold, ranks, first)
            return
        records = self._datamodule().candidates("test").records
        for number, (fold, ranks) in enumerate(zip(self._folds, self._ranks, strict=True)):
            matches = first_matches(fold, partial(self._files.blocks_of, number))
            yield from fold_examples(records, fold, ranks, matches)

    def result_rows(self) -> list[tuple[str, str]]:
        rows = [] if self._files is None else [("candidates", describe_folds(self._folds))]
        if self._two_stage is not None:
            rows.append(("scored by the model", self._two_stage.describe()))
        return [*rows, *recall_rows(self.scores)]

    def predict_step(self, batch: ScoringBlock, batch_idx: int) -> list[Matches]:
        """The best captions of each image of a block."""
        self.evaluate_batch(batch)
        return list(self._best().of_images(batch.number)) if batch.number >= 0 else []

    def _best(self) -> BestMatches:
        assert self._files is not None
        return BestMatches(self._files, self._datamodule().candidates("predict").records)

    def filled_in(self, records: CaptionRecords, index: int) -> Matches | None:
        """The first captions of the first fold."""
        return self._best().of_left_out_image(str(records.image_ids[index]))

    def write_predictions(self, predictions: Sequence[Matches], folder: Path) -> dict[str, Path]:
        """image_to_text.jsonl and text_to_image.jsonl: the ten best captions of each image, images of each caption.

        Captions of images without regions get the first images.
        """
        by_image, by_caption = folder / "image_to_text.jsonl", folder / "text_to_image.jsonl"
        with atomic_write(by_image) as file:
            for one in predictions:
                line = {"image_id": one.image_id, "top": one.top} | ({"filled_in": True} if one.filled_in else {})
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        best, left_out = self._best(), self._datamodule().left_out
        with atomic_write(by_caption) as file:
            for match in chain(
                best.of_captions(), () if left_out is None else best.of_left_out_captions(left_out.records)
            ):
                file.write(json.dumps(match, ensure_ascii=False) + "\n")
        return {"captions of images": by_image, "images of captions": by_caption, "all scores": best.files.folder}


def ranks_in(files: ScoreFiles) -> list[FoldRanks]:
    """The ranks in each fold, from scores that are all on the disk."""
    blocks = [partial(files.blocks_of, number) for number in range(len(files.folds))]
    return list(map(fold_ranks, files.folds, blocks))


def fold_examples(records: CaptionRecords, fold: Fold, ranks: FoldRanks, first: FirstMatches) -> Iterator[Outcome]:
    """What came out for each image and each caption of a fold, whose `first_matches` are given."""
    captions = [described(records, caption) for caption in fold.captions.tolist()]
    image_ids = [str(image_id) for image_id in records.image_ids[fold.images]]
    for image, rank in enumerate(ranks.image_to_text.tolist()):
        own = slice(*np.searchsorted(fold.owner, [image, image + 1]))
        truth = tuple(one["caption"] for one in captions[own])
        own_id, score = image_ids[image], 100.0 * (rank == 0)
        best = tuple(captions[place]["caption"] for place in first.captions[image].tolist())
        found = tuple(probabilities(first.caption_scores[image]))
        yield Outcome(own_id, own_id, score, DIRECTIONS[0], "", best[0], truth, rank, best=best, probabilities=found)
    for place, (one, rank) in enumerate(zip(captions, ranks.text_to_image.tolist(), strict=True)):
        own_id, image_id, score = str(one["caption_id"]), one["image_id"], 100.0 * (rank == 0)
        best = tuple(image_ids[image] for image in first.images[place].tolist())
        found = tuple(probabilities(first.image_scores[place]))
        yield Outcome(
            own_id, image_id, score, DIRECTIONS[1], one["caption"], best[0], (image_id,), rank, best=best,
            probabilities=found,
        )  # fmt: skip


def recall_rows(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """For a person: the recalls of each direction, and their mean."""

    def recalls(prefix: str) -> str:
        return "  ".join(f"{scores[f'{prefix}/R@{k}']:.2f}" for k in RECALL_AT)

    rows = []
    for direction in directions_of(scores):
        rows.append((f"{direction.replace('_to_', ' → ')}: R@1, R@5, R@10", recalls(direction)))
        rows.append(("  in random order", recalls(f"chance/{direction}")))
        if f"lost/{direction}/R@1" in scores:
            rows.append(("  lost against scoring all pairs", recalls(f"lost/{direction}")))
    many = "six" if len(directions_of(scores)) == len(DIRECTIONS) else "three"
    return [*rows, (f"mean of the {many}", f"{scores['recall_mean']:.2f}")]


def figures_of(ranks: Sequence[np.ndarray]) -> dict[str, float]:
    """Those of ranks in both directions; of hard captions from image to text only."""
    pairs = zip(DIRECTIONS, ranks, strict=False)
    return {f"{direction}/{name}": value for direction, one in pairs for name, value in recall(one).items()}


def directions_of(scores: Mapping[str, float]) -> list[str]:
    return [direction for direction in DIRECTIONS if f"{direction}/R@1" in scores]


def with_mean(figures: Sequence[Mapping[str, float]], folds: Sequence[Fold]) -> dict[str, float]:
    """The mean of the folds' figures, also of the six recalls or three, and what a random order would have."""
    scores = {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
    ways = directions_of(scores)
    mean = float(np.mean([scores[f"{direction}/R@{k}"] for direction in ways for k in RECALL_AT]))
    scores = {"recall_mean": mean, **scores}
    for k in RECALL_AT:
        by_chance = np.mean([chance(fold, k) for fold in folds], axis=0).tolist()
        scores |= {f"chance/{way}/R@{k}": value for way, value in zip(ways, by_chance, strict=False)}
    return scores


def describe_folds(folds: Sequence[Fold]) -> str:
    """ "5,000 images with 25,000 captions", or of which folds the result is the mean."""
    images, captions = len(folds[0].images), sum(len(fold.captions) for fold in folds)
    if len(folds) == 1:
        return f"{images:,} images with {captions:,} captions"
    return f"mean of {len(folds)} folds of {images:,} images, {captions:,} captions in all"
