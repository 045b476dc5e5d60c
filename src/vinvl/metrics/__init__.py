"""What a run reports: `torchmetrics.Metric` classes over pure functions."""

from vinvl.metrics.answer_text import normalise_answer
from vinvl.metrics.attribute_recall import AttributeRecall
from vinvl.metrics.average_precision import AveragePrecision
from vinvl.metrics.captions import CaptionEvaluation, CaptionScores, evaluate_captions
from vinvl.metrics.cider_reward import CiderReward, greedy_baseline, mean_of_others_baseline, scst_loss
from vinvl.metrics.exact_mean import ExactMean
from vinvl.metrics.grouped_accuracy import GroupedAccuracy
from vinvl.metrics.pair_accuracy import PairAccuracy
from vinvl.metrics.recall import RecallAtK
from vinvl.metrics.soft_target_score import SoftTargetScore
from vinvl.metrics.typed_accuracy import TypedAccuracy, answer_distribution_distance
from vinvl.metrics.vqa_accuracy import VQAAccuracy, leave_one_out_points, official_accuracy

__all__ = [
    "AttributeRecall",
    "AveragePrecision",
    "CaptionEvaluation",
    "CaptionScores",
    "CiderReward",
    "ExactMean",
    "GroupedAccuracy",
    "PairAccuracy",
    "RecallAtK",
    "SoftTargetScore",
    "TypedAccuracy",
    "VQAAccuracy",
    "answer_distribution_distance",
    "evaluate_captions",
    "greedy_baseline",
    "leave_one_out_points",
    "mean_of_others_baseline",
    "normalise_answer",
    "official_accuracy",
    "scst_loss",
]
