"""A trained model, opened from wherever it lies: what it says of itself, its tokenizer and its answers."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import BertTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vinvl.data.text import load_tokenizer, opened_tokenizer
from vinvl.models import MODEL_OF_TASK, model_of_task
from vinvl.models.answering import VinVLForAnswering
from vinvl.models.config import VinVLConfig
from vinvl.models.weight_files import (
    ANSWER_FILES,
    TRAINING_CHECKPOINT,
    USE_FILE,
    CheckpointFiles,
    Weights,
    find_checkpoint,
)
from vinvl.models.weights import (
    NEW,
    AnswerRows,
    answers_in,
    encoder_is_there,
    encoder_sizes,
    initialise,
    initialise_from,
    output_layer,
)
from vinvl.regions.store import FeatureRecord
from vinvl.run.checkpoint import OUR_KEY, read_checkpoint
from vinvl.run.errors import UserError
from vinvl.run.files import json_object, read_json
from vinvl.run.folders import CHECKPOINTS, NAMED_CHECKPOINTS, newest_checkpoint
from vinvl.run.values import OF_THE_ENCODER
from vinvl.vqa.answers import AnswerVocabulary, read_head_answers

logger = logging.getLogger(__name__)

# What a checkpoint of ours, or a folder that `vinvl.convert` has made, says besides its tensors.

DETECTOR_TASK = "vinvl.detector.task.DetectorTask"  # whose checkpoints are the business of vinvl.train_detector


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint of ours, a model folder or anybody's weights; nothing that it says is called.

    Attributes:
        files: where it lies.
        ours: what a checkpoint of ours holds besides its tensors, {} for anybody else's weights.
        said: what the vinvl.json of a model folder says, unchecked but for its task; {} if there is none.
    """

    files: CheckpointFiles
    ours: dict[str, Any]
    said: dict[str, Any]

    @classmethod
    def of(cls, name: str | Path) -> Self:
        """What lies in a run's folder (its best checkpoint, else its last), or wherever `find_checkpoint` finds it.

        Of a folder of runs, such as runs/NAME, the newest run counts.

        Raises UserError if there is no such model, or what it says is damaged.
        """
        folder = Path(name).expanduser()
        runs = (newest_checkpoint(folder.parent, folder.name, which) for which in NAMED_CHECKPOINTS)
        newest = max((path for path in runs if path is not None), key=lambda path: path.stat().st_mtime, default=None)
        places = [
            run / CHECKPOINTS / f"{which}.ckpt"
            for run in (folder, newest and newest.parents[1])
            if run
            for which in ("best", "last")
        ]
        files = find_checkpoint(next((path for path in places if os.path.isfile(path)), name))
        if files.weights.suffix == TRAINING_CHECKPOINT and files.config:
            ours = read_checkpoint(files.weights)
            del ours["state_dict"]  # read again where it is needed: two copies would not fit where one does
            return cls(files, ours, {})
        path = files.weights.parent / USE_FILE
        said = json_object(path) if path.is_file() else {}
        task = said.get("task")
        if task is not None and (not isinstance(task, str) or task not in MODEL_OF_TASK):
            raise UserError(f"The vinvl.json of {files.name} names an unknown task: convert the model again.")
        return cls(files, {}, said)

    @property
    def task(self) -> str | None:
        """What it was trained for, None where neither a run nor a folder says it."""
        if not self.ours:
            return self.said.get("task")
        room = class_of_task(self.ours, self.files.weights).split(".")[1]
        model_of_task(room)
        return room

    @property
    def features(self) -> FeatureRecord:
        """How the features were made that it was trained on, as far as is known."""
        return FeatureRecord.of_plain((self.ours.get(OUR_KEY) or self.said).get("features"))

    def provenance(self) -> dict[str, Any]:
        """What the model card says about the origin of the weights, by the arguments of `model_card`."""
        results = results_of(self.files.weights)
        scores = {name: value for name, value in results.get("scores", {}).items() if isinstance(value, int | float)}
        source = Path(self.files.name).name if Path(self.files.name).exists() else self.files.name
        return {"source": source, "data": self._data(), "split": results.get("split"), "scores": scores}

    def _data(self) -> dict[str, Any]:
        """Settings of the run's data that tell a reader something; of paths the last name alone."""
        run_config = self.ours[OUR_KEY]["run_config"] if self.ours else {}
        data = run_config.get("data")
        if not isinstance(data, dict):
            return {}
        names = ("train_split", "max_tokens", "max_regions", "use_tags", "use_regions")
        told = {"data": run_config.get("name"), "reader": data.get("_target_")}
        told |= {name: data.get(name) for name in names}
        places = {name: last_names(data.get(name)) for name in ("regions", "stores", "answers", "tokenizer")}
        told |= {name: ", ".join(dict.fromkeys(names)) for name, names in places.items() if names}
        return {name: value for name, value in told.items() if value is not None}


def last_names(paths: object) -> list[str]:
    """The last names of paths, in lists and by split too; of a store {from: …, to: …} that is made, the store's."""
    if isinstance(paths, Mapping):
        return [name for key, one in paths.items() if key == "to" or "to" not in paths for name in last_names(one)]
    if isinstance(paths, list):
        return [name for one in paths for name in last_names(one)]
    return [Path(paths).name] if isinstance(paths, str) else []


def results_of(weights: Path) -> dict[str, Any]:
    """The results.json of a checkpoint's run, if they are this checkpoint's and not another's."""
    folder = weights.parent.parent if weights.parent.name == CHECKPOINTS else weights.parent
    path = folder / "results.json"
    results = read_json(path) if path.is_file() else None
    if not isinstance(results, dict) or not isinstance(results.get("scores"), dict):
        return {}  # a result file of another program
    scored = results.get("checkpoint")
    return results if scored is not None and Path(str(scored)).name == weights.name else {}


def class_of_task(checkpoint: Mapping[str, Any], path: Path) -> str:
    """The task class that a checkpoint of ours names, `vinvl.ROOM.task.NAME`; UserError if not so, or the detector."""
    name = str(checkpoint[OUR_KEY].get("task_class"))
    if name == DETECTOR_TASK:
        raise UserError(
            f"{path} is a detector's checkpoint, which python -m vinvl.train_detector goes on with and vinvl.evaluate "
            "scores; to use the detector, give the detector.pth of its run as weights to python -m vinvl.extract."
        )
    if not re.fullmatch(r"vinvl\.\w+\.task\.\w+", name):
        raise UserError(f"{path} is a checkpoint of '{name}', unknown to this version of vinvl.")
    return name


# The texts of the answers that an answering model chooses between.


def known_answers(files: CheckpointFiles, size: int) -> list[str] | None:
    """The answers of a checkpoint's head of `size` rows, by row; None if it does not say them.

    They are those of the training run, or in config.json, or in a file beside the weights: `ANSWER_FILES`. Raises
    UserError if such a file is damaged.
    """
    if files.training:
        carried = files.training.get("hyper_parameters", {}).get("answers")
        whole = isinstance(carried, list) and len(carried) == size and all(isinstance(one, str) for one in carried)
        return carried if whole else None
    named = answers_in(files.config.get("id2label"))
    if named is not None and len(named) == size:
        return named
    beside = {read_head_answers(path) for name in ANSWER_FILES for path in sorted(files.weights.parent.glob(name))}
    fitting = [answers for answers in beside if len(answers) == size]
    return list(fitting[0]) if len(fitting) == 1 else None


def match_answers(there: Sequence[str], here: Sequence[str], name: str) -> AnswerRows:
    """Which row of a head with the answers `there` each of `here` takes: as it is written, or else in normal form.

    Raises UserError if the checkpoint `name` names an answer twice.
    """
    try:
        vocabulary = AnswerVocabulary(tuple(there))
    except ValueError as error:
        raise UserError(f"The answers of {name} cannot be told apart: {error}") from None
    found = [vocabulary.find(answer) for answer in here]
    return AnswerRows(tuple(there), tuple(here), tuple(NEW if row is None else row for row in found))


def given_answers(given: str | Path | Sequence[str]) -> list[str]:
    """The answers of a file, or the texts themselves; UserError if they are no texts, or one is there twice."""
    if isinstance(given, str | Path):
        AnswerVocabulary.load(given)
        return list(read_head_answers(given))
    if not all(isinstance(one, str) for one in given):
        raise UserError("answers holds what is no text: give a file, or the texts in the order of the outputs.")
    return list(given)


def find_answers(
    given: str | Path | Sequence[str] | None, files: CheckpointFiles, model: PreTrainedModel
) -> list[str] | None:
    """The answers of a model that has been made of a checkpoint: those given, or else those known; None if not named.

    Raises UserError if those that were given are not as many as the model's, or no texts.
    """
    size = model.config.num_labels
    assert size is not None  # transformers fills it in
    if given is None:
        return known_answers(files, size)
    texts = given_answers(given)
    if len(texts) != size:
        place = str(given) if isinstance(given, str | Path) else "answers"
        raise UserError(
            f"{place} lists {len(texts):,} answers, and {files.name} has a head for {size:,}: give those that it was "
            "trained on."
        )
    return texts


def name_the_answers(model: PreTrainedModel, task: str | None, given: str | None, files: CheckpointFiles) -> None:
    """Puts the texts of its answers into a model's configuration; UserError if given ones are not this model's."""
    if given is not None and not isinstance(model, VinVLForAnswering):
        raise UserError(f"{files.name} is a {type(model).__name__}, which has no answers: leave answers=… out.")
    if given is not None or task in ("vqa", "gqa"):
        answers = find_answers(given, files, model)
        if answers is not None:
            model.config.id2label = dict(enumerate(answers))
            model.config.label2id = {answer: number for number, answer in enumerate(answers)}


def rows_of_given(
    given: str | Path | Sequence[str] | None, files: CheckpointFiles, size: int, new_ones: bool
) -> AnswerRows | None:
    """Where the answers that were given have their rows in a checkpoint's head of `size` rows that are named.

    None if they are the head's in its order: none were given, the head's are not known, or none of them is known, which
    is taken for new names of the same answers, in another language for instance. Raises UserError if some but not all
    of them are known, and `new_ones` forbids that.
    """
    known = None if given is None else known_answers(files, size)
    if given is None or known is None:
        return None
    rows = match_answers(known, given_answers(given), files.name)
    if not rows.kept or rows.here == rows.there or (len(rows.here) != size and not new_ones):
        return None
    if rows.new and not new_ones:
        raise UserError(
            f"{files.name} was not trained with {len(rows.new):,} of the answers that were given, the first "
            f"{rows.new[0]!r}: give its own, in any order."
        )
    return rows


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
VOCABULARY = "vocab.txt"
UNUSED = re.compile(r"\[unused\d+\]")
WORDS_SHOWN = 3
Words = dict[int, str]
"""The words of a tokenizer by number."""


def find_tokenizer(name: str | None, files: CheckpointFiles) -> tuple[str, PreTrainedTokenizerBase]:
    """The tokenizer that a person named, or else that of the training run, or else the one beside the weights.

    Raises UserError if there is none, or it has other words than the model was trained with.
    """
    found = _find(name, files)
    if name is not None or files.training:
        refuse_other_words(known_words(files), words_of(found[1]), files.name, "tokenizer")
    return found


def words_of(tokenizer: PreTrainedTokenizerBase) -> Words:
    """The words of a tokenizer by number, added ones included."""
    return {number: word for word, number in tokenizer.get_vocab().items()}


def known_words(files: CheckpointFiles) -> Words | None:
    """The words of the tokenizer that a checkpoint was trained with, None if it is not known."""
    if files.training:
        return words_of_run(files.training)
    try:
        return words_of(_find(None, files)[1])
    except UserError:
        return None


def words_of_run(checkpoint: Mapping[str, Any]) -> Words | None:
    """Those that a training checkpoint of ours carries or, where it is too old for that, of the tokenizer it names."""
    record = checkpoint.get(OUR_KEY, {})
    words, name = record.get("words"), _named_by_run(checkpoint)
    if isinstance(words, dict) and all(isinstance(n, int) and isinstance(word, str) for n, word in words.items()):
        return words
    try:
        return None if name is None else words_of(_open(name)[1])
    except UserError:
        return None


def refuse_other_words(there: Words | None, here: Words, model: str, setting: str) -> None:
    """Raises UserError for a tokenizer whose words have other numbers than the model was trained with, if known.

    Words in place of BERT's [unused0], [unused1], …, and further ones at the end, are no other words: they are new.
    """
    differing = [
        f"{number} was {there[number]!r} and is {word!r}"
        for number, word in sorted(here.items())
        if there is not None and word != there.get(number, word) and not UNUSED.fullmatch(there[number])
    ]
    if differing:
        shown = "; ".join(differing[:WORDS_SHOWN])
        raise UserError(
            f"{model} was trained with other words than the tokenizer has: {len(differing):,} of {len(here):,} differ "
            f"({shown}{'; …' if len(differing) > WORDS_SHOWN else ''}), so its embeddings would stand for other words; "
            f"pass {setting}=FOLDER of the one that it was trained with."
        )


def _named_by_run(checkpoint: Mapping[str, Any]) -> str | None:
    config = checkpoint.get(OUR_KEY, {}).get("run_config")
    data = config.get("data") if isinstance(config, dict) else None
    said = data.get("tokenizer") if isinstance(data, dict) else None
    return said if isinstance(said, str) else None


def _find(name: str | None, files: CheckpointFiles) -> tuple[str, PreTrainedTokenizerBase]:
    if name is None:
        name = _named_by_run(files.training)
    if name is None and not any((files.weights.parent / one).is_file() for one in (*TOKENIZER_FILES, VOCABULARY)):
        raise UserError(
            f"{files.name} has no tokenizer: pass tokenizer=bert-base-uncased, or the folder of the one that "
            "the model was trained with."
        )
    return _open(str(files.weights.parent) if name is None else name)


def _open(name: str) -> tuple[str, PreTrainedTokenizerBase]:
    folder = Path(name).expanduser()
    if not any(os.path.isfile(folder / one) for one in TOKENIZER_FILES) and os.path.isfile(folder / VOCABULARY):
        return str(folder), tokenizer_of_vocabulary(folder / VOCABULARY)  # as Oscar was published
    return name, load_tokenizer(name)


def tokenizer_of_vocabulary(path: Path) -> PreTrainedTokenizerBase:
    """BERT's lower-casing tokenizer, from only a vocab.txt; UserError if it is something else."""
    try:
        words = path.read_text(encoding="utf-8").splitlines()
        missing = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word not in words]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the file again, or pass tokenizer=NAME.") from None
    if missing:
        raise UserError(f"{path} is no vocabulary of BERT's: it has no {missing[0]}; pass tokenizer=NAME.")
    return opened_tokenizer(lambda: BertTokenizer.from_pretrained(path.parent, do_lower_case=True), str(path.parent))


# Starting a task from other weights whose rows are named: no answer, and no word, is taken for another.

ANEW = "none"  # model.init_answers: a new head


FOLLOWED = (*OF_THE_ENCODER, "use_img_layernorm", "img_layer_norm_eps")  # by a model, the weights that it starts from


def start_model(
    model_class: type[PreTrainedModel],
    fields: Mapping[str, Any],
    init: str | None,
    *,
    data: Mapping[str, Any],
    answers: Sequence[str] | None,
    init_answers: str | None,
    words: Words | None,
) -> PreTrainedModel:
    """`models.initialise` for a task: an answer head is matched by the texts of its answers, and words are compared.

    Args:
        fields: of a `VinVLConfig`. Of an encoder's size, those left out are as in `init`, or else as in `data`.
        answers: those of the task's head, by row; None if it chooses no answers.
        init_answers: a file with those of the checkpoint's head, if it does not state them, or "none".
        words: of the run's tokenizer, if it is known.

    Raises:
        UserError: as `initialise`; or the checkpoint has other words, or a head of as many answers without names.
    """
    if init is None:
        return initialise(model_class, VinVLConfig(**{**data, **fields}), None)
    files = find_checkpoint(init)
    if words is not None:
        refuse_other_words(known_words(files), words, files.name, "data.tokenizer")
    weights = Weights.of(files)
    encoder_is_there(weights)
    config = VinVLConfig(**{**data, **encoder_sizes(weights), **fields})
    size = next((len(weights.found[name]) for name in output_layer(weights.found)), 0)  # 0: it has no such head
    rows = _rows(files, size, answers, init_answers) if model_class is VinVLForAnswering else None
    model, report = initialise_from(model_class, config, weights, answers=rows)
    logger.info("%s", report)
    return model


def _rows(
    files: CheckpointFiles, size: int, answers: Sequence[str] | None, init_answers: str | None
) -> AnswerRows | None:
    """Where a task's answers are in the checkpoint's head; None to take the head as it stands, if it fits."""
    if not size:
        return None
    known = known_answers(files, size) if init_answers is None else None
    if answers is None:  # its classes have the same meaning in every checkpoint of the task
        return None if known is None else AnswerRows.anew(("mismatched", "matched"))
    if init_answers not in (None, ANEW):
        known = list(read_head_answers(str(init_answers)))
        if len(known) != size:
            raise UserError(
                f"model.init_answers={init_answers} lists {len(known):,} answers, and {files.name} has a head for "
                f"{size:,}: give those that it was trained with."
            )
    if known is not None:
        return match_answers(known, answers, files.name)
    if init_answers == ANEW or files.training:  # ours names its answers, if it has any
        return AnswerRows.anew(answers)
    if size != len(answers):
        return None  # such a head is new in any case
    raise UserError(
        f"{files.name} has a head of {size:,} answers and does not say which, so its rows might get the names of "
        "others: pass model.init_answers=FILE, with its answers in the order of its rows (JSON, or the "
        f"trainval_ans2label.pkl it was published with), or model.init_answers={ANEW} to begin the head anew."
    )
