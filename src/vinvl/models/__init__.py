"""The VinVL models in plain torch and transformers; they know nothing of training, data or Hydra."""

from vinvl.models.answering import VinVLForAnswering, VinVLForPairs, answer_loss, answer_loss_per_example
from vinvl.models.captioning import VinVLForCaptioning, masked_word_loss, seq2seq_attention_mask
from vinvl.models.config import VinVLConfig
from vinvl.models.encoder import VinVLModel
from vinvl.models.pretraining import VinVLForPreTraining
from vinvl.models.weight_files import load_published_state_dict
from vinvl.models.weights import LoadingReport, initialise

__all__ = [
    "LoadingReport",
    "VinVLConfig",
    "VinVLForAnswering",
    "VinVLForCaptioning",
    "VinVLForPairs",
    "VinVLForPreTraining",
    "VinVLModel",
    "answer_loss",
    "answer_loss_per_example",
    "initialise",
    "load_published_state_dict",
    "masked_word_loss",
    "seq2seq_attention_mask",
]
