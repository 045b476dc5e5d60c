"""README.md of an exported model: what it is, what it was trained on, what it reaches, how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from vinvl.errors import printable
from vinvl.models.checkpoints import LoadingReport
from vinvl.models.configuration import VinVLConfig

SENTENCES = {
    "vqa": "visual question answering: a classifier over answers",
    "gqa": "question answering on GQA: a classifier over answers",
    "nlvr2": "NLVR2: true or false of a statement about two pictures",
    "retrieval": "image-text retrieval: a caption matches a picture or not",
    "captioning": "image captioning: masked words are predicted from left to right",
    "pretraining": "Oscar+ pre-training: masked tokens, and matched or mismatched triplets",
    "encoder": "the encoder alone; its heads are yet to be trained",
}


@dataclass(frozen=True)
class Provenance:
    """Where an exported model comes from, as far as its checkpoint says.

    Attributes:
        source: the checkpoint.
        task: a key of `MODEL_OF_TASK`, None if unknown.
        data: settings of the data that it was trained on, by name.
        split: what it was scored on.
        scores: its figures there, by name.
    """

    source: str
    task: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def model_card(model: PreTrainedModel, provenance: Provenance, report: LoadingReport) -> str:
    """The text of README.md."""
    what = SENTENCES.get(provenance.task or "", "a task that its checkpoint does not name")
    config = model.config
    assert isinstance(config, VinVLConfig)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        "---",
        "tags: [vinvl, oscar, vision-language]",
        "---",
        "",
        f"# {type(model).__name__}",
        "",
        f"VinVL (Zhang et al. 2021) for {what}.",
        "",
        f"- {parameters:,} parameters: {config.num_hidden_layers} layers, hidden size {config.hidden_size}",
        f"- region rows of {config.img_feature_dim} numbers, the last 6 of them the box",
        f"- converted from `{provenance.source}`; conversion.txt says what became of every tensor",
    ]
    if report.missing:
        lines.append(f"- **not trained**, random: {', '.join(f'`{name}`' for name in report.missing)}")
    lines += ["", "## How to load", "", "```python", f"from vinvl.models import {type(model).__name__}", ""]
    lines += [f'model = {type(model).__name__}.from_pretrained("FOLDER").eval()', "```", ""]
    lines.append("`python -m vinvl.train model.init=FOLDER data.tokenizer=FOLDER` goes on from it.")
    lines += ["", "## Data", "", *_rows(provenance.data, "The checkpoint does not say what it was trained on.")]
    lines += ["", "## Metrics", ""]
    if provenance.scores:
        lines += [f"On `{provenance.split}`:", "", "| metric | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4g} |" for name, value in provenance.scores.items()]
    else:
        lines.append("None are known: no results.json of this checkpoint lay beside it.")
    return "\n".join(map(printable, lines)) + "\n"


def _rows(data: Mapping[str, Any], otherwise: str) -> list[str]:
    return [f"- {name}: `{value}`" for name, value in data.items()] or [otherwise]
