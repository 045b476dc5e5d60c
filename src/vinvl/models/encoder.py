"""The VinVL encoder: one BERT over text tokens, tag tokens and projected image regions.

Shapes: B batch, L text and tag tokens, R regions, D numbers per region row, H hidden size, P cached earlier positions,
S = L + R the joint sequence, T real positions in all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, BertModel, BertPreTrainedModel, Cache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler, BertSelfAttention

from vinvl.models.config import VinVLConfig
from vinvl.models.packing import PACKED, PackedLayout, PackedSequences, in_slots
from vinvl.run.errors import UserError


def run_layer(layer: nn.Module, hidden: Tensor, mask: Any, packed: PackedSequences | None = None) -> Tensor:
    """One layer on (B, S, H) padded states and a mask, or on (1, T, H) packed ones."""
    after: Tensor = layer(hidden, mask) if packed is None else layer(hidden, packed=packed)
    return after


def run_layer_at_first(layer: Any, hidden: Tensor, seen: Tensor | None) -> Tensor:
    """One layer on (B, S, H) padded states, only at the first position, (B, 1, H); `seen` is (B, 1, S) bool."""
    attended = layer.attention.output(layer.attention.self.attend_from_first(hidden, seen), hidden[:, :1])
    after: Tensor = layer.output(layer.intermediate(attended), attended)
    return after


def check_mask(attention_mask: Tensor, sequences: int, positions: int, earlier: int = 0) -> None:
    """Raises UserError unless the mask has the shape (B, P+S) or (B, S, P+S)."""
    rows = {2: (sequences,), 3: (sequences, positions)}.get(attention_mask.dim())
    if rows is None or attention_mask.shape != (*rows, earlier + positions):
        raise UserError(
            f"The attention mask has shape {tuple(attention_mask.shape)}, but {sequences} sequences of "
            f"{positions} tokens and regions after {earlier} earlier positions need (B, {earlier + positions}) "
            f"or (B, {positions}, {earlier + positions})."
        )


def layer_mask(config: VinVLConfig, attention_mask: Tensor | None, hidden: Tensor, past_length: int = 0) -> Any:
    """The mask as the chosen attention implementation expects it: None, (B, S), (B, 1, S, P+S) or a block mask."""
    if attention_mask is None:
        return None
    length = hidden.shape[1]
    check_mask(attention_mask, hidden.shape[0], length, past_length)
    if attention_mask.dim() == 2 and past_length:
        attention_mask = attention_mask[:, None, :].expand(-1, length, -1)
    if attention_mask.dim() == 3:
        return dense_attention_mask(attention_mask, config._attn_implementation, hidden.dtype)
    # By position, because the second parameter's name differs between transformers releases.
    return create_bidirectional_mask(config, hidden, attention_mask)


def dense_attention_mask(mask: Tensor, implementation: str | None, dtype: torch.dtype) -> Tensor:
    """A mask of who sees whom, (B, Q, K) with 1 = attend, as the attention implementation takes it: (B, 1, Q, K).

    "sdpa" and "packed" get booleans; "eager", which adds the mask to the scores, gets 0 and the lowest `dtype`; others
    take none. A row that may attend to nothing attends to everything: a softmax over nothing is NaN on some backends.
    """
    allowed = mask.bool()
    allowed = (allowed | ~allowed.any(dim=-1, keepdim=True))[:, None]
    if implementation in ("sdpa", PACKED):
        return allowed
    if implementation == "eager":
        return as_bias(allowed, dtype)
    raise UserError(
        f"{implementation!r} attention takes no mask of who sees whom; give a mask of shape (B, length) or load the "
        "model with attn_implementation='sdpa'."
    )


def check_request(
    implementation: str | None, weights: bool, region_features: Tensor | None, layout: PackedLayout | None
) -> None:
    """Raises UserError for attention weights that the implementation does not give, or rows of unknown regions."""
    if weights and implementation != "eager":
        raise UserError(
            f"Attention weights were asked for, but {implementation!r} attention does not compute them; "
            "load the model with attn_implementation='eager'."
        )
    if region_features is not None and region_features.dim() == 2 and layout is None:
        raise UserError("Region rows without padding were given without a layout; give (B, R, D) rows, or both.")


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to attention scores: 0 where `mask` is true, else the lowest number."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


class VinVLSelfAttention(BertSelfAttention):
    """BERT's self-attention that can also hand out its weights and attend within packed sequences.

    Attributes:
        first_attended: where it is a list, what the first position attends to, (B, heads, S) float32, is added to it.
    """

    first_attended: list[Tensor] | None = None

    def forward(  # type: ignore[override]  # transformers types the options as a TypedDict
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        attention_record: list[Tensor] | None = None,
        cache: Cache | None = None,
        packed: PackedSequences | None = None,
        **attention_options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; the weights (B, heads, S, P+S) are appended to `attention_record`.

        What older releases of transformers name past_key_values, newer ones name cache. With `packed`, the states are
        (1, T, H) of sequences end to end, and nothing but they counts.
        """
        if packed is not None:
            return self._attend_packed(hidden_states, packed), None
        earlier = past_key_values if cache is None else cache
        context, weights = super().forward(  # type: ignore[misc]  # transformers' annotation forgets the weights
            hidden_states, attention_mask, earlier, **attention_options
        )
        if attention_record is not None:
            attention_record.append(weights)
        if self.first_attended is not None and weights is not None:
            self.first_attended.append(weights[:, :, 0].detach().float())
        return context, weights

    @staticmethod
    def _are_plain(*linears: nn.Module) -> bool:
        """Whether they consist of nothing but weights: adapters (LoRA) replace them, and hooks need calls."""
        return all(type(one) is nn.Linear and not one._forward_hooks and not one._forward_pre_hooks for one in linears)

    def _attend_packed(self, hidden_states: Tensor, packed: PackedSequences) -> Tensor:
        """(1, T, H) → the same; one product for queries, keys and values, as their states are the same."""
        linears, states = (self.query, self.key, self.value), hidden_states.squeeze(0)
        if self._are_plain(*linears):
            weight, bias = (torch.cat([getattr(one, name) for one in linears]) for name in ("weight", "bias"))
            projected = functional.linear(states, weight, bias)
        else:
            projected = torch.cat([one(states) for one in linears], dim=-1)
        projected = projected.unflatten(-1, (3, self.num_attention_heads, self.attention_head_size))
        return packed.attend(projected, self.dropout.p if self.training else 0.0).flatten(1)[None]

    def attend_from_first(self, hidden_states: Tensor, seen: Tensor | None) -> Tensor:
        """What the first position reads, (B, 1, H); `seen` is (B, 1, S) bool, None for everything.

        For one query it is cheaper to take the key projection to the query and the value projection to the weighted
        sum of states than to project every state. The bias of the keys adds the same to all scores of a query, which
        no softmax sees: it only gets the gradient 0 that is its due, for DDP waits for every parameter.
        """
        heads = (self.num_attention_heads, self.attention_head_size)
        query = self.query(hidden_states[:, 0]).unflatten(-1, heads)  # (B, heads, H / heads)
        plain = self._are_plain(self.key, self.value)
        if plain:
            key_weight, value_weight = (linear.weight.unflatten(0, heads) for linear in (self.key, self.value))
            scores = torch.einsum("bnd,ndh->bnh", query, key_weight) @ hidden_states.transpose(1, 2)  # (B, heads, S)
        else:
            scores = torch.einsum("bnd,bsnd->bns", query, self.key(hidden_states).unflatten(-1, heads))
        scores = scores.float() * self.attention_head_size**-0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)
        if self.first_attended is not None:
            self.first_attended.append(weights.detach())
        weights = functional.dropout(weights, self.dropout.p, self.training)
        if not plain:
            value = self.value(hidden_states).unflatten(-1, heads)
            return torch.einsum("bns,bsnd->bnd", weights.to(value.dtype), value).flatten(1)[:, None]
        read = weights.to(hidden_states.dtype) @ hidden_states  # (B, heads, H)
        # The weights of a query add up to 1, apart from dropout: the bias of the values is dropped with them.
        context = torch.einsum("bnh,ndh->bnd", read, value_weight)
        context = context + weights.sum(dim=-1, keepdim=True).to(context.dtype) * self.value.bias.unflatten(0, heads)
        return context.flatten(1)[:, None] + 0 * self.key.bias.sum()


class EncoderInputs(TypedDict, total=False):
    """What every model takes beside `input_ids` and hands on to `VinVLModel.forward`, which says what each is."""

    token_type_ids: Tensor | None
    attention_mask: Tensor | None
    region_features: Tensor | None
    position_ids: Tensor | None
    output_hidden_states: bool | None
    output_attentions: bool | None
    layout: PackedLayout | None


# input_ids, token_type_ids, region_features and position_ids, as `VinVLModel.embed` takes them
Inputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class VinVLModel(BertPreTrainedModel):
    """Text, tags and regions as one sequence through a BERT encoder (Oscar, Li et al. 2020; VinVL, Zhang et al. 2021).

    Regions are projected from D to H, layer-normed where `config.use_img_layernorm`, dropped out and appended to the
    embedded tokens; they get no position and no segment embedding. Parameter names are those of the published
    Oscar checkpoints. Works with the attention implementations of transformers and with its gradient checkpointing.
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
            layer.attention.self = VinVLSelfAttention(config, layer_idx=index)
        self.pooler = BertPooler(config)
        self.img_embedding = nn.Linear(config.img_feature_dim, config.hidden_size)
        self.LayerNorm: nn.LayerNorm | None = None
        if config.use_img_layernorm:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.img_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self._run_layer: Callable[..., Tensor] = run_layer
        self._run_layer_at_first: Callable[..., Tensor] = run_layer_at_first
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]  # always an embedding

    def compile_layers(self, backend: str = "inductor", dynamic: bool | None = True, mode: str | None = None) -> None:
        """Compiles the layers, by torch.compile's arguments; parameters and their names stay what they are.

        The first layer is compiled and the others run its code, which takes a fraction of the time that the whole
        encoder would take. Decoding of captions is not compiled; on a GPU its steps are CUDA graphs (`StepGraphs`).
        """
        self._run_layer, self._run_layer_at_first = (
            torch.compile(run, backend=backend, dynamic=dynamic, mode=mode) for run in (run_layer, run_layer_at_first)
        )

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        layout: PackedLayout | None = None,
        only_first: bool = False,
    ) -> BaseModelOutputWithPooling:
        """Encode a batch. With "packed" attention nothing is computed for padding, whose hidden states are then 0.

        Args:
            input_ids: (B, L) int64 token ids, text then tags then padding.
            token_type_ids: (B, L) int64, 0 for text and 1 for tags; all 0 if not given.
            attention_mask: 1 = attend. (B, P+S) says which positions exist, (B, S, P+S) also who sees whom; all do if
                not given. What a position that may attend to nothing returns is not defined.
            region_features: (B, R, D) float region rows, or None for text only. R may be 0. With a layout also the
                (T_regions, D) rows of the regions that exist, without padding.
            position_ids: (B, L) int64 positions of the tokens; 0 … L-1 if not given.
            past_key_values: keys and values of P earlier positions, to which the current ones are added. Needs
                `position_ids`.
            output_hidden_states: also return the layers+1 hidden states; the configuration's value if not given. So for
                `output_attentions`, each layer's weights (B, heads, S, P+S), which only "eager" attention has.
            layout: `PackedLayout.of_mask` of the positions that exist, for "packed" attention; if not given, made from
                `attention_mask`, for which the host waits if that is on an accelerator.
            only_first: the last hidden state is needed only at the first position: that saves most of the last layer.

        Returns:
            last_hidden_state (B, S, H), or (B, 1, H) with `only_first`; pooler_output (B, H); the others as asked for.

        Raises:
            UserError: shapes that do not fit together or a mask that the attention implementation cannot take.
        """
        implementation = self.config._attn_implementation
        record_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        record_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        check_request(implementation, record_attentions, region_features, layout)
        plain = not record_states and not record_attentions and past_key_values is None
        # "eager" computes each layer completely, because the others are compared with it.
        short = only_first and plain and implementation != "eager"
        layers = list(self.encoder.layer)[: -1 if short else None]
        states: list[Tensor] | None = [] if record_states else None
        attentions: list[Tensor] | None = [] if record_attentions else None
        inputs = (input_ids, token_type_ids, region_features, position_ids)
        if plain and implementation == PACKED and attention_mask is not None:
            hidden = self._encode_packed(inputs, attention_mask, layout, layers)
        else:
            hidden = self._encode_padded(inputs, attention_mask, layout, layers, past_key_values, states, attentions)
        if short:
            hidden = self._last_layer_at_first(hidden, attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden[:, :1] if only_first else hidden,
            pooler_output=self.pooler(hidden),
            hidden_states=None if states is None else tuple(states),
            attentions=None if attentions is None else tuple(attentions),
        )

    def _encode_padded(
        self,
        inputs: Inputs,
        attention_mask: Tensor | None,
        layout: PackedLayout | None,
        layers: list[Any],
        past_key_values: Cache | None,
        states: list[Tensor] | None,
        attentions: list[Tensor] | None,
    ) -> Tensor:
        """Hidden states (B, S, H) after the layers; `states` and `attentions` are extended."""
        input_ids, token_type_ids, regions, position_ids = inputs
        if past_key_values is not None:
            if position_ids is None:
                raise UserError(
                    "past_key_values of earlier positions were given; give position_ids of the new ones too."
                )
            if self.training and any(layer.gradient_checkpointing for layer in layers):
                # transformers' checkpointed layers drop the cache, with a warning at most.
                raise UserError(
                    "past_key_values cannot be used in training with gradient checkpointing; switch one off."
                )
        if regions is not None and regions.dim() == 2:
            assert layout is not None and attention_mask is not None
            slots = attention_mask.shape[-1] - input_ids.shape[1]
            regions = in_slots(regions, layout.region_places, len(input_ids), slots)
        hidden = self.embed(input_ids, token_type_ids, regions, position_ids)
        mask = layer_mask(
            self.config, attention_mask, hidden, 0 if past_key_values is None else past_key_values.get_seq_length()
        )
        for layer in layers:
            if states is not None:
                states.append(hidden)
            if past_key_values is None and attentions is None:
                hidden = self._run_layer(layer, hidden, mask)
            else:  # the cache goes by its place, as its name differs between releases of transformers
                hidden = layer(hidden, mask, None, None, past_key_values, attention_record=attentions)
        if states is not None:
            states.append(hidden)
        return hidden

    def _encode_packed(
        self, inputs: Inputs, attention_mask: Tensor, layout: PackedLayout | None, layers: list[Any]
    ) -> Tensor:
        """Hidden states (B, S, H) after the layers, which see only real positions; the inputs are those of `embed`."""
        input_ids, token_type_ids, regions, position_ids = inputs
        sequences, slots = attention_mask.shape[0], attention_mask.shape[-1]
        length = input_ids.shape[1]
        if regions is None or regions.dim() == 3:
            check_mask(attention_mask, len(input_ids), length + (0 if regions is None else regions.shape[1]))
        if layout is None:
            exists = attention_mask if attention_mask.dim() == 2 else attention_mask.any(dim=-1)
            layout = PackedLayout.of_mask(exists.bool().cpu().numpy(), length).with_tensors(
                lambda tensor: tensor.to(attention_mask.device)
            )
        packed = PackedSequences.of(layout, attention_mask)
        self._check_length(input_ids, position_ids)
        text = layout.text_places
        hidden = self.embeddings(
            input_ids=input_ids.flatten()[text][None],
            token_type_ids=None if token_type_ids is None else token_type_ids.flatten()[text][None],
            position_ids=(text % length if position_ids is None else position_ids.flatten()[text])[None],
        )
        if regions is not None:
            rows = regions.flatten(0, 1)[layout.region_places] if regions.dim() == 3 else regions
            hidden = torch.cat([hidden, self.embed_regions(rows)[None]], dim=1).index_select(1, layout.merged)
        for layer in layers:
            hidden = self._run_layer(layer, hidden, None, packed)
        return in_slots(hidden[0], layout.places, sequences, slots)

    @contextmanager
    def recorded_attention(self) -> Iterator[list[Tensor]]:
        """What the first position attends to in the last layer, (B, heads, S) float32, of each batch within it.

        Of forward passes with `only_first`, and all of "eager" attention.
        """
        last: Any = self.encoder.layer[-1]
        recorded: list[Tensor] = []
        last.attention.self.first_attended = recorded
        try:
            yield recorded
        finally:
            last.attention.self.first_attended = None

    def _last_layer_at_first(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, 1, H) of what the layer before the last one gives, (B, S, H)."""
        seen = None
        if attention_mask is not None:
            seen = (attention_mask if attention_mask.dim() == 2 else attention_mask[:, 0]).bool()[:, None]  # (B, 1, S)
        return self._run_layer_at_first(self.encoder.layer[-1], hidden, seen)

    def embed(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        region_features: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """The encoder's input (B, L+R, H): embedded tokens, then projected regions. Arguments as in `forward`."""
        self._check_length(input_ids, position_ids)
        tokens = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
        if region_features is None:
            return tokens
        return torch.cat([tokens, self.embed_regions(region_features)], dim=1)

    def _check_length(self, input_ids: Tensor, position_ids: Tensor | None) -> None:
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit and position_ids is None:
            raise UserError(f"A text of {length} tokens was given to a model that knows {limit} positions; shorten it.")

    def embed_regions(self, region_features: Tensor) -> Tensor:
        """Region rows (..., D) as the encoder gets them, (..., H): projected, normed where configured, dropped out."""
        if region_features.shape[-1] != self.config.img_feature_dim:
            raise UserError(
                f"The region rows hold {region_features.shape[-1]} numbers but the model expects "
                f"{self.config.img_feature_dim}; set img_feature_dim to the store's feature dimension plus 6."
            )
        # With R = 0 this still runs, on an empty tensor: every parameter then has a gradient, which DDP relies on.
        if not torch.is_autocast_enabled(region_features.device.type):  # which converts the rows itself, once
            region_features = region_features.to(self.img_embedding.weight.dtype)
        regions = self.img_embedding(region_features)
        if self.LayerNorm is not None:
            regions = self.LayerNorm(regions)
        embedded: Tensor = self.dropout(regions)
        return embedded

    def pool_embedded(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The pooled vectors (B, H) of embedded sequences (B, S, H); `attention_mask` as in `forward`."""
        mask = layer_mask(self.config, attention_mask, hidden)
        layer: Any
        for layer in self.encoder.layer[:-1]:
            hidden = layer(hidden, mask)
        pooled: Tensor = self.pooler(self._last_layer_at_first(hidden, attention_mask))
        return pooled


AutoModel.register(VinVLConfig, VinVLModel, exist_ok=True)
