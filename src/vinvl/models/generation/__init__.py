"""Caption decoding: greedy, beam search, sampling and constrained beam search, with shared memory of the image."""

from vinvl.models.generation.constraints import Constraint, constraint_from_words, constraint_machine
from vinvl.models.generation.context import CaptionContext
from vinvl.models.generation.detections import constraints_from_detections
from vinvl.models.generation.generate import generate_captions
from vinvl.models.generation.options import DecodingOptions, SpecialTokens
from vinvl.models.generation.result import GeneratedCaptions

__all__ = [
    "CaptionContext",
    "Constraint",
    "DecodingOptions",
    "GeneratedCaptions",
    "SpecialTokens",
    "constraint_from_words",
    "constraint_machine",
    "constraints_from_detections",
    "generate_captions",
]
