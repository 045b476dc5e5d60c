"""Command lines about pictures, as Hydra takes them."""

from __future__ import annotations

import re

from vinvl.options import IN_QUOTES, as_text

QUOTED = ("image", "question", "text", "weights", "labels", "features", "output")  # texts and file names
ITEM = re.compile(rf"\s*({IN_QUOTES.pattern}|[^,]+)\s*(?:,|$)")  # of a list


def picture_arguments(arguments: list[str]) -> list[str]:
    """Command-line arguments of a call about pictures, so that Hydra takes texts as they are and leaves no run folder.

    Others come back as they are. Questions and file names hold commas, quotes and brackets, which mean something to
    Hydra.
    """
    if not any(argument.startswith("image=") for argument in arguments):
        return arguments
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    quoted = [argument if sweep else _quoted(argument) for argument in arguments]
    settings = {"hydra.run.dir": ".", "hydra.output_subdir": "null", "hydra/job_logging": "none"}
    said = {argument.split("=", 1)[0] for argument in arguments}
    return [*quoted, *(f"{key}={value}" for key, value in settings.items() if key not in said)]


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key not in QUOTED or not equals or value in ("", "null"):
        return argument
    if value.startswith("[") and value.endswith("]"):
        items = (one.strip() for one in ITEM.findall(value[1:-1]))
        return f"{key}=[{','.join(as_text(item) for item in items)}]"
    return f"{key}={as_text(value)}"
