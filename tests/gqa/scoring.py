"""GQA's official figures of files, without records and tables."""

from pathlib import Path

from vinvl.gqa.metric import OfficialScores
from vinvl.gqa.official import Official, read_grounding
from vinvl.gqa.results import read_predictions_given


def score_files(
    questions: Path,
    predictions: Path,
    *,
    choices: Path | None = None,
    scene_graphs: Path | None = None,
    attentions: Path | None = None,
    consistency: bool | None = None,
) -> OfficialScores:
    """Each a file or a folder of parts."""
    official = Official.read(questions, choices, scene_graphs)
    said = {question_id: answer for _, question_id, answer in read_predictions_given(predictions)}
    grounding = None if attentions is None else read_grounding(attentions, official.objects or {})
    return official.scores(said, grounding, consistency)
