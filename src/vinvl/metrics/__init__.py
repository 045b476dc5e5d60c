"""What a run reports: `torchmetrics.Metric` classes over pure functions."""

from vinvl.metrics.answer_text import normalise_answer
from vinvl.metrics.exact_mean import ExactMean
from vinvl.metrics.soft_target_score import SoftTargetScore
from vinvl.metrics.vqa_accuracy import VQAAccuracy, leave_one_out_points, official_accuracy

__all__ = [
    "ExactMean",
    "SoftTargetScore",
    "VQAAccuracy",
    "leave_one_out_points",
    "normalise_answer",
    "official_accuracy",
]
