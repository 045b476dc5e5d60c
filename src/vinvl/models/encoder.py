"""The VinVL encoder: one BERT over text tokens, tag tokens and projected image regions.

Shapes: B batch, L text and tag tokens, R regions, D numbers per region row, H hidden size, P cached earlier positions,
S = L + R the joint sequence.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel, BertPreTrainedModel, Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler, BertSelfAttention

from vinvl.errors import UserError
from vinvl.models.configuration import VinVLConfig


class VinVLModel(BertPreTrainedModel):
    """Text, tags and regions as one sequence through a BERT encoder (Oscar, Li et al. 2020; VinVL, Zhang et al. 2021).

    Regions are projected from D to H, layer-normed where `config.use_img_layernorm`, dropped out and appended to the
    embedded tokens; they get no position and no segment embedding. Parameter names are those of the published
    Oscar checkpoints. Works with the attention implementations of transformers ("eager", "sdpa",
    "flash_attention_2", "flex_attention") and with its gradient checkpointing.
    """

    config_class = VinVLConfig
    config: VinVLConfig
    base_model_prefix = "bert"
    _no_split_modules = BertModel._no_split_modules

    def __init__(self, config: VinVLConfig) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        layer: Any  # a BertLayer; torch types what a ModuleList holds no closer than Module
        for index, layer in enumerate(self.encoder.layer):
            layer.attention.self = HeadMaskedSelfAttention(config, layer_idx=index)
        self.pooler = BertPooler(config)
        self.img_embedding = nn.Linear(config.img_feature_dim, config.hidden_size)
        self.LayerNorm: nn.LayerNorm | None = None
        if config.use_img_layernorm:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.img_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]  # always an embedding

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode a batch.

        Args:
            input_ids: (B, L) int64 token ids, text then tags then padding.
            token_type_ids: (B, L) int64, 0 for text and 1 for tags; all 0 if not given.
            attention_mask: 1 = attend. (B, P+S) says which positions exist, (B, S, P+S) also who sees whom; everything
                if not given. What a position that may attend to nothing returns is not defined.
            region_features: (B, R, D) float region rows, or None for text alone. R may be 0.
            position_ids: (B, L) int64 positions of the tokens; 0 … L-1 if not given.
            head_mask: (layers, heads) or (heads,) float factors on each head's attention.
            past_key_values: keys and values of P earlier positions (see `project_history`). They come before the
                current positions, and the cache grows by the current ones. Needs `position_ids`.
            output_hidden_states: also return the layers+1 hidden states; the configuration's value if not given.
            output_attentions: also return each layer's weights (B, heads, S, P+S); "eager" attention only.

        Returns:
            last_hidden_state (B, S, H), pooler_output (B, H), hidden_states and attentions as asked for.

        Raises:
            UserError: shapes that do not fit together or a mask that the attention implementation cannot take.
        """
        record_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        record_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        implementation = self.config._attn_implementation
        if record_attentions and implementation != "eager":
            raise UserError(
                f"Attention weights were asked for, but {implementation!r} attention does not compute them; "
                "load the model with attn_implementation='eager'."
            )
        self._check_history(past_key_values, position_ids)

        hidden = self.embed(input_ids, token_type_ids, region_features, position_ids)  # (B, S, H)
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask = self._attention_mask(attention_mask, hidden, past_length)
        scales = None if head_mask is None else head_mask.expand(len(self.encoder.layer), -1)

        states = [hidden]
        attentions: list[Tensor] | None = [] if record_attentions else None
        for index, layer in enumerate(self.encoder.layer):
            hidden = layer(
                hidden,
                mask,
                None,
                None,
                past_key_values,  # by its place, as its name differs between releases of transformers
                head_scale=None if scales is None else scales[index],
                attention_record=attentions,
            )
            if record_states:
                states.append(hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=self.pooler(hidden),
            hidden_states=tuple(states) if record_states else None,
            attentions=None if attentions is None else tuple(attentions),
        )

    def embed(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        region_features: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """The encoder's input (B, L+R, H): embedded tokens, then projected regions. Arguments as in `forward`."""
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit and position_ids is None:
            raise UserError(f"A text of {length} tokens was given to a model that knows {limit} positions; shorten it.")
        tokens = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
        if region_features is None:
            return tokens
        return torch.cat([tokens, self.embed_regions(region_features)], dim=1)

    def embed_regions(self, region_features: Tensor) -> Tensor:
        """Region rows (..., D) as the encoder gets them, (..., H): projected, normed where configured, dropped out.

        Raises:
            UserError: D is not the model's.
        """
        if region_features.shape[-1] != self.config.img_feature_dim:
            raise UserError(
                f"The region rows hold {region_features.shape[-1]} numbers but the model expects "
                f"{self.config.img_feature_dim}; set img_feature_dim to the store's feature dimension plus 6."
            )
        # With R = 0 this still runs, on an empty tensor: every parameter then has a gradient, which DDP relies on.
        regions = self.img_embedding(region_features.to(self.img_embedding.weight.dtype))
        if self.LayerNorm is not None:
            regions = self.LayerNorm(regions)
        embedded: Tensor = self.dropout(regions)
        return embedded

    def pool_embedded(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The pooled vectors (B, H) of sequences that are embedded already; for evaluation only.

        The last layer is computed at the first position alone, for nothing else of it reaches the pooled vector.

        Args:
            hidden: (B, S, H), such as `embed` returns.
            attention_mask: (B, S) or (B, S, S), as in `forward`; None if all attend to all.
        """
        mask = self._attention_mask(attention_mask, hidden, 0)
        layer: Any
        for layer in self.encoder.layer[:-1]:
            hidden = layer(hidden, mask)
        layer, seen = self.encoder.layer[-1], None
        if attention_mask is not None:
            seen = (attention_mask if attention_mask.dim() == 2 else attention_mask[:, 0]).bool()[:, None]  # (B, 1, S)
        context = layer.attention.self.attend_from_first(hidden, seen)
        attended = layer.attention.output(context, hidden[:, :1])
        pooled: Tensor = self.pooler(layer.output(layer.intermediate(attended), attended))
        return pooled

    def project_history(self, hidden_states: Sequence[Tensor]) -> DynamicCache:
        """Keys and values of P earlier positions from their hidden states, for `past_key_values`.

        `hidden_states[i]` (B, P, H) is what layer i got at those positions, as `forward` returns it; further entries
        are ignored. This is the published `encoder_history_states`.
        """
        cache = DynamicCache()
        layer: Any
        for index, (layer, states) in enumerate(zip(self.encoder.layer, hidden_states, strict=False)):
            attention = layer.attention.self
            heads = (*states.shape[:2], attention.num_attention_heads, attention.attention_head_size)
            key = attention.key(states).view(heads).transpose(1, 2)  # (B, heads, P, H / heads)
            value = attention.value(states).view(heads).transpose(1, 2)
            cache.update(key, value, index)
        return cache

    def _check_history(self, past_key_values: Cache | None, position_ids: Tensor | None) -> None:
        if past_key_values is None:
            return
        if position_ids is None:
            raise UserError("Earlier positions were given as past_key_values; give position_ids of the new ones too.")
        if self.training and any(layer.gradient_checkpointing for layer in self.encoder.layer):
            # transformers' checkpointed layers drop the cache, with a warning at most.
            raise UserError("past_key_values cannot be used in training with gradient checkpointing; switch one off.")

    def _attention_mask(self, attention_mask: Tensor | None, hidden: Tensor, past_length: int) -> Any:
        """The mask as the chosen attention implementation wants it: None, (B, S), (B, 1, S, P+S) or a block mask."""
        if attention_mask is None:
            return None
        length = hidden.shape[1]
        rows = {2: hidden.shape[:1], 3: hidden.shape[:2]}.get(attention_mask.dim())
        if rows is None or attention_mask.shape != (*rows, past_length + length):
            raise UserError(
                f"The attention mask has shape {tuple(attention_mask.shape)}, but {hidden.shape[0]} sequences of "
                f"{length} tokens and regions after {past_length} earlier positions need (B, {past_length + length}) "
                f"or (B, {length}, {past_length + length})."
            )
        if attention_mask.dim() == 3:
            return dense_attention_mask(attention_mask, self.config._attn_implementation, hidden.dtype)
        if past_length:
            every_row = attention_mask[:, None, :].expand(-1, length, -1)
            return dense_attention_mask(every_row, self.config._attn_implementation, hidden.dtype)
        # By position, because the second parameter's name differs between transformers releases.
        return create_bidirectional_mask(self.config, hidden, attention_mask)


def dense_attention_mask(mask: Tensor, implementation: str | None, dtype: torch.dtype) -> Tensor:
    """A mask of who sees whom, (B, Q, K) with 1 = attend, as the attention implementation takes it: (B, 1, Q, K).

    "sdpa" gets booleans; "eager", which adds the mask to the scores, gets 0 and the lowest `dtype`.
    A row that may attend to nothing attends to everything instead: its output is not meant to be used, and a softmax
    over nothing is NaN on some backends.

    Raises:
        UserError: the implementation (flash or flex attention) takes no such mask.
    """
    allowed = mask.bool()
    allowed = (allowed | ~allowed.any(dim=-1, keepdim=True))[:, None]
    if implementation == "sdpa":
        return allowed
    if implementation == "eager":
        additive = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return additive.masked_fill(~allowed, torch.finfo(dtype).min)
    raise UserError(
        f"{implementation!r} attention takes no mask of who sees whom; give a mask of shape (B, length) or load the "
        "model with attn_implementation='sdpa'."
    )


class HeadMaskedSelfAttention(BertSelfAttention):
    """BERT's self-attention that can also scale its heads and hand out its weights.

    Recent transformers releases have no head mask. Multiplying a head's weights by a factor is the same as multiplying
    what it reads by that factor, so this needs nothing from inside the attention.
    """

    def forward(  # type: ignore[override]  # transformers types the options as a TypedDict
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        head_scale: Tensor | None = None,
        attention_record: list[Tensor] | None = None,
        cache: Cache | None = None,
        **attention_options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; `head_scale` is (heads,), and the weights (B, heads, S, P+S) are appended to `attention_record`.

        What older releases of transformers name past_key_values, newer ones name cache.
        """
        earlier = past_key_values if cache is None else cache
        context, weights = super().forward(  # type: ignore[misc]  # transformers' annotation forgets the weights
            hidden_states, attention_mask, earlier, **attention_options
        )
        if head_scale is not None:
            context = (context.unflatten(-1, (self.num_attention_heads, -1)) * head_scale[:, None]).flatten(-2)
            weights = None if weights is None else weights * head_scale[:, None, None]
        if attention_record is not None:
            attention_record.append(weights)
        return context, weights

    def attend_from_first(self, hidden_states: Tensor, seen: Tensor | None) -> Tensor:
        """What the first position reads, (B, 1, H); `seen` is (B, 1, S) bool, None for everything.

        For one query it is cheaper to take the key projection to the query and the value projection to the weighted
        sum of states than to project every state. The bias of the keys adds the same to all scores, so it is left out.
        """
        heads = (self.num_attention_heads, self.attention_head_size)
        query = self.query(hidden_states[:, 0]).unflatten(-1, heads)  # (B, heads, H / heads)
        key_weight, value_weight = (linear.weight.unflatten(0, heads) for linear in (self.key, self.value))
        scores = torch.einsum("bnd,ndh->bnh", query, key_weight) @ hidden_states.transpose(1, 2)  # (B, heads, S)
        scores = scores.float() * self.attention_head_size**-0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        read = scores.softmax(dim=-1).to(hidden_states.dtype) @ hidden_states  # (B, heads, H)
        context = torch.einsum("bnh,ndh->bnd", read, value_weight).flatten(1) + self.value.bias
        return context[:, None]
