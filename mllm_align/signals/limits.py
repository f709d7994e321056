"""What the model's attention allows: whether prefixes can be shared, and how far back a token sees."""

from __future__ import annotations

from typing import Any

from mllm_align.families import Family

MASKABLE = ("sdpa", "eager")


def can_share_prefixes(family: Family, model: Any) -> tuple[bool, str]:
    """Whether several responses may follow one prefix in one sequence and, if not, why."""
    if not family.packs:
        return False, family.unpacked_reason
    text = model.config.get_text_config()
    backend = text._attn_implementation
    if backend not in MASKABLE:
        return False, f"attention back end {backend!r} takes no block mask; sdpa and eager do"
    layers = set(getattr(text, "layer_types", None) or ())
    if layers - {"full_attention", "sliding_attention"}:
        return False, "layers with a recurrent state would leak one response into the next"
    if len(layers) > 1:
        return False, "layers with different windows need a mask each"
    return True, ""


def attention_window(model: Any) -> int | None:
    """Tokens that one token sees, where every layer slides; None where attention is full."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    layers = set(getattr(text, "layer_types", None) or ())
    if window is None or layers == {"full_attention"} or not getattr(text, "use_sliding_window", True):
        return None
    return int(window)
