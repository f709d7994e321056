"""Who sees whom in a pack: the prefix and the own branch, within the window, both ways inside a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

PADDING = -1
ONE_WAY = -1


@dataclass(frozen=True)
class Visibility:
    """What decides who sees whom in G packs of T tokens, (G, T) each.

    Attributes:
        segment: 0 for the prefix, 1.. for branches, -1 for padding.
        order: Distance in tokens from the start of prefix + own branch. A window counts in it, because the index in
            the pack counts other branches too.
        block: Tokens of one block (>= 0) see each other both ways; -1 sees backwards alone. None where all do.
        plain: How many of the first tokens are, in every pack, prefix tokens without a block.
        window_ends_blocks: Whether a window holds inside a block, too.
    """

    segment: Tensor
    order: Tensor
    block: Tensor | None
    plain: int
    window_ends_blocks: bool = True

    def rule(self, window: int | None) -> Callable[..., Tensor]:
        """`sees(pack, query, key)` for index tensors; a key is seen if it is true.

        Every token, padding too, sees itself: a softmax over a row without a single entry is undefined.
        """
        segment, order, block = self.segment, self.order, self.block

        def sees(pack: Any, query: Any, key: Any) -> Tensor:
            backwards = key <= query
            near: Any = True if window is None else order[pack, query] - order[pack, key] < window
            if block is not None:
                own = block[pack, query]
                together = (own == block[pack, key]) & (own != ONE_WAY)
                backwards = backwards | together
                near = near if self.window_ends_blocks else near | together
            in_reach = (segment[pack, key] == 0) | (segment[pack, key] == segment[pack, query])
            allowed = backwards & in_reach & (segment[pack, query] != PADDING)
            return (allowed & near) | (key == query)

        return sees


def dense_mask(visible: Visibility, dtype: torch.dtype, window: int | None = None, first: int = 0) -> Tensor:
    """(G, 1, T - first, T) additive mask of the queries from `first` on: 0 where seen, the least number elsewhere."""
    groups, size = visible.segment.shape
    device = visible.segment.device
    pack = torch.arange(groups, device=device)[:, None, None]
    query = torch.arange(first, size, device=device)[None, :, None]
    key = torch.arange(size, device=device)[None, None, :]
    sees = visible.rule(window)(pack, query, key)
    mask = torch.zeros(sees.shape, dtype=dtype, device=device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min).unsqueeze(1)


def flex_mask(visible: Visibility, window: int | None = None) -> BlockMask:
    """The same for FlexAttention: tiles that nobody sees are skipped, and no square mask is held."""
    groups, size = visible.segment.shape
    sees = visible.rule(window)

    def mask_mod(pack: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(pack, query, key)

    device: Any = visible.segment.device
    # Compiled, the square is never there while the tiles are found; on a CPU compiling costs more than it saves.
    return create_block_mask(mask_mod, groups, None, size, size, device=device, _compile=device.type == "cuda")


def attention_masks(
    visible: Visibility, backend: str, windows: Mapping[str, int | None], dtype: torch.dtype
) -> Tensor | BlockMask | dict[str, Any]:
    """What is passed as `attention_mask`: one mask, or one per kind of layer where kinds differ.

    Args:
        visible: The packs.
        backend: "sdpa", "eager" or "flex_attention"; "shared_prefix" for a mask of the responses alone.
        windows: Per kind of layer (`config.layer_types`) how far back a token sees; None for without limit.
        dtype: Of additive masks.
    """

    def build(window: int | None) -> Any:
        if backend == "flex_attention":
            return flex_mask(visible, window)
        reaches_all = window is None or visible.plain <= window
        first = visible.plain if backend == "shared_prefix" and reaches_all else 0
        return dense_mask(visible, dtype, window, first)

    masks = {kind: build(window) for kind, window in windows.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def in_dtype(mask: Any, dtype: torch.dtype) -> Any:
    """The same mask for a model that computes in `dtype`; what is not additive is handed back as it is.

    Written anew where something is hidden: the least float32 number is minus infinity in bfloat16.
    """
    if isinstance(mask, dict):
        return {kind: in_dtype(each, dtype) for kind, each in mask.items()}
    if not isinstance(mask, Tensor) or not mask.is_floating_point() or mask.dtype == dtype:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask != 0, torch.finfo(dtype).min)
