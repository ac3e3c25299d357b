"""Faster decoding on a CPU for models whose query heads share key-value heads.

With a padding mask, transformers copies the whole key-value cache once for every query head of a
group, at every token: half of the time of a step. When one token is decoded, the queries of a group
can stand as rows of one attention over the shared heads; the numbers are the same and nothing is
copied. benchmarks/generation.py measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

NAME = "sdpa_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention [batch, head, token, d] -> [batch, token, head, d]."""
    batch, heads, tokens, width = query.shape
    groups = getattr(module, "num_key_value_groups", 1)
    if tokens != 1 or groups == 1:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return result
    mask = None
    if attention_mask is not None:
        mask = attention_mask[..., : key.shape[-2]].expand(batch, 1, groups, -1)
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups, width), key, value, mask, scale=scaling
    )
    return output.reshape(batch, 1, heads, width), None


def use_grouped_attention(model: Any) -> None:
    """Switch a model on the CPU from transformers' SDPA attention to :func:`grouped_attention`."""
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
        AttentionInterface.register(NAME, grouped_attention)
        AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(NAME)
