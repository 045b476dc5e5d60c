"""Caption metrics: BLEU, ROUGE-L and CIDEr in this process; METEOR and SPICE through Java where it is present."""

from vinvl.metrics.captions.caption_scores import CaptionScores
from vinvl.metrics.captions.cider import Cider
from vinvl.metrics.captions.evaluation import CaptionEvaluation, evaluate_captions
from vinvl.metrics.captions.tokenizer import CaptionTokenizer, regex_tokenize, split_at_blanks

__all__ = [
    "CaptionEvaluation",
    "CaptionScores",
    "CaptionTokenizer",
    "Cider",
    "evaluate_captions",
    "regex_tokenize",
    "split_at_blanks",
]
