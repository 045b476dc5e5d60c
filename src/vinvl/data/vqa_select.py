"""Some of the questions of a split."""

import numpy as np

from vinvl.data.columns import CategoricalColumn, RaggedTextColumn, TextColumn
from vinvl.data.vqa_records import RecordSources, VQARecords


def select(records: VQARecords, keep: np.ndarray) -> VQARecords:
    """The records where `keep` (Q,) bool is True, in their order."""
    kept = np.flatnonzero(keep).tolist()

    def categories(column: CategoricalColumn | None) -> CategoricalColumn | None:
        return None if column is None else CategoricalColumn(column.names, column.codes[kept])

    def texts(column: TextColumn) -> TextColumn:
        return TextColumn.from_texts(column[index] for index in kept)

    choices, answers, files = records.multiple_choice_answers, records.answers, records.sources.files
    return VQARecords(
        question_ids=records.question_ids[kept],
        image_ids=records.image_ids[kept],
        questions=texts(records.questions),
        answers=None if answers is None else RaggedTextColumn.from_lists([answers[index] for index in kept]),
        answer_types=categories(records.answer_types),
        question_types=categories(records.question_types),
        multiple_choice_answers=None if choices is None else texts(choices),
        sources=RecordSources(CategoricalColumn(files.names, files.codes[kept]), records.sources.numbers[kept]),
    )
