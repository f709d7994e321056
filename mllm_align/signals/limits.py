"""What the model's attention allows: whether prefixes can be shared, and how far back a token sees."""

from __future__ import annotations

from typing import Any

from mllm_align.families import Family
from mllm_align.signals.attention import SHARED_PREFIX

FULL, SLIDING = "full_attention", "sliding_attention"
MASKABLE = ("sdpa", "eager", "flex_attention", SHARED_PREFIX)


def can_share_prefixes(family: Family, model: Any) -> tuple[bool, str]:
    """Whether several responses may follow one prefix in one sequence and, if not, why."""
    if not family.packs:
        return False, family.unpacked_reason
    text = model.config.get_text_config()
    backend = text._attn_implementation
    if backend not in MASKABLE:
        return False, f"attention back end {backend!r} takes no block mask; sdpa, flex_attention and eager do"
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds - {FULL, SLIDING}:
        return False, "layers with a recurrent state or chunked attention would leak one response into the next"
    return True, ""


def layer_windows(model: Any) -> dict[str, int | None]:
    """Per kind of decoder layer how many tokens back one sees; None for all of them."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not getattr(text, "use_sliding_window", True):
        window = None
    kinds = tuple(dict.fromkeys(getattr(text, "layer_types", None) or ()))
    if not kinds:
        kinds = (FULL,) if window is None else (SLIDING,)
    return {kind: int(window) if kind == SLIDING and window is not None else None for kind in kinds}
