"""Models that judge a statement about two pictures (NLVR2): the VinVL encoder with a classifier over both.

Shapes: B examples, so 2B rows; L text and tag tokens, R regions, D numbers per region row, H hidden size, A answers.
"""

from torch import Tensor, nn
from transformers import BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from vinvl.errors import UserError
from vinvl.models.configuration import VinVLConfig
from vinvl.models.encoder import VinVLModel
from vinvl.models.heads import answer_loss
from vinvl.models.packing import PackedLayout


class VinVLForPairs(BertPreTrainedModel):
    """A classifier over A = `config.num_labels` answers on the pooled vectors of two pictures, put side by side.

    Each picture goes through the encoder with the statement; only the classifier sees both. Head, losses and
    parameter names are those of the published Oscar model for NLVR2 in paired mode.
    """

    config_class = VinVLConfig
    config: VinVLConfig
    base_model_prefix = "bert"

    def __init__(self, config: VinVLConfig) -> None:
        super().__init__(config)
        self.bert = VinVLModel(config)
        own_rate = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if own_rate is None else own_rate)
        self.classifier = pair_classifier(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        layout: PackedLayout | None = None,
    ) -> SequenceClassifierOutput:
        """Score the answers.

        Args:
            input_ids: (2B, L) int64; rows 2i and 2i + 1 are the left and the right picture of example i. This and the
                other arguments are described in `VinVLModel.forward`; all have 2B rows.
            labels: for the B examples, what `answer_loss` takes for `config.loss_type`; no loss if not given.

        Returns:
            logits (B, A), loss () if labels were given, hidden_states and attentions (of the 2B rows) as asked for.

        Raises:
            UserError: an odd number of rows, or shapes that do not fit together.
        """
        if input_ids.shape[0] % 2:
            raise UserError(
                f"A batch of pairs holds {input_ids.shape[0]} rows, which is odd; give two rows per example, the left "
                "picture's and the right one's."
            )
        encoded = self.bert(
            input_ids,
            token_type_ids=token_type_ids,
            attention_mask=attention_mask,
            region_features=region_features,
            position_ids=position_ids,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            layout=layout,
            only_first=True,
        )
        pooled = self.dropout(encoded.pooler_output)  # (2B, H)
        logits = self.classifier(pooled.reshape(-1, 2 * pooled.shape[-1]))  # (B, A)
        return SequenceClassifierOutput(
            loss=None if labels is None else answer_loss(logits, labels, self.config.loss_type),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def pair_classifier(config: VinVLConfig) -> nn.Module:
    """The module from two pooled vectors (B, 2H) to answer logits (B, A) that `config.classifier` names.

    As published, the "mlp" has a layer norm before its last layer exactly where the projected regions have one.
    """
    answers, width = config.num_labels, config.hidden_size * config.cls_hidden_scale
    assert answers is not None  # transformers fills it in
    if config.classifier == "linear":
        return nn.Linear(2 * config.hidden_size, answers)
    hidden: list[nn.Module] = [nn.Linear(2 * config.hidden_size, width), nn.ReLU()]
    if config.use_img_layernorm:
        hidden.append(nn.LayerNorm(width, eps=config.layer_norm_eps))
    return nn.Sequential(*hidden, nn.Linear(width, answers))
