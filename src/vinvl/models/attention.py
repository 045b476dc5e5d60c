"""BERT's self-attention with what the encoder needs: packed sequences, weights, only the first position.

Shapes: B batch, S the joint sequence, P cached earlier positions, T real positions, H hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache
from transformers.models.bert.modeling_bert import BertSelfAttention

from vinvl.models.packing import PackedSequences


class VinVLSelfAttention(BertSelfAttention):
    """BERT's self-attention that can also hand out its weights and attend within packed sequences."""

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
        if packed is not None and self._are_plain(self.query, self.key, self.value):
            return self._attend_packed(hidden_states, packed), None
        if packed is not None:
            attention_options["packed"] = packed
        earlier = past_key_values if cache is None else cache
        context, weights = super().forward(  # type: ignore[misc]  # transformers' annotation forgets the weights
            hidden_states, attention_mask, earlier, **attention_options
        )
        if attention_record is not None:
            attention_record.append(weights)
        return context, weights

    @staticmethod
    def _are_plain(*linears: nn.Module) -> bool:
        """Whether they consist of nothing but weights: adapters (LoRA) replace them, and hooks need calls."""
        return all(type(one) is nn.Linear and not one._forward_hooks and not one._forward_pre_hooks for one in linears)

    def _attend_packed(self, hidden_states: Tensor, packed: PackedSequences) -> Tensor:
        """(1, T, H) → the same; one product for queries, keys and values, as their states are the same."""
        linears = (self.query, self.key, self.value)
        weight, bias = (torch.cat([getattr(one, name) for one in linears]) for name in ("weight", "bias"))
        projected = functional.linear(hidden_states.squeeze(0), weight, bias)
        projected = projected.unflatten(-1, (3, self.num_attention_heads, self.attention_head_size))
        return packed.attend_projected(projected, self.dropout.p if self.training else 0.0).flatten(1)[None]

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
        weights = functional.dropout(scores.softmax(dim=-1), self.dropout.p, self.training)
        if not plain:
            value = self.value(hidden_states).unflatten(-1, heads)
            return torch.einsum("bns,bsnd->bnd", weights.to(value.dtype), value).flatten(1)[:, None]
        read = weights.to(hidden_states.dtype) @ hidden_states  # (B, heads, H)
        # The weights of a query add up to 1, apart from dropout: the bias of the values is dropped with them.
        context = torch.einsum("bnh,ndh->bnd", read, value_weight)
        context = context + weights.sum(dim=-1, keepdim=True).to(context.dtype) * self.value.bias.unflatten(0, heads)
        return context.flatten(1)[:, None] + 0 * self.key.bias.sum()
