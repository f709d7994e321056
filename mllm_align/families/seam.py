"""Where a mixer joins a family's vision side: which pixels its tower is shown, and how its projector's rows lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mllm_align.families.grids import pair


@dataclass(frozen=True, kw_only=True)
class Seam:
    """A family's answers for `vision.attach`, for the common case: one tensor of equally large views.

    A view is what the tower is shown at once: an image, a tile, a crop.

    Attributes:
        first_linear: The projector's first linear layer, by its path in the projector, if there is one row for each
            token that the language model reads; None where the projector is linear as a whole, so that what is added
            behind it is as if there were more input channels.
        projects_in_tower: Whether the projector lies in the tower and reads its patches in an order of its own: tokens
            are then mixed behind the tower.
        fixed_tokens: Why an image cannot become another number of tokens than it has; "" where it can.
    """

    first_linear: str | None = "linear_1"
    projects_in_tower: bool = False
    fixed_tokens: str = ""

    def tower_views(self, config: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The views (3, h, w) of one call of the tower, in the order of their tokens.

        Args:
            config: The model's.
            args: Of the call.
            kwargs: Of the call.
        """
        return list(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])

    def read_cells(self, config: Any, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of what the projector reads of a view (..., h, w): here one row per patch."""
        height, width = pair(config.vision_config.patch_size)
        return pixels.shape[-2] // height, pixels.shape[-1] // width

    def linear_order(self, config: Any, views: Sequence[Tensor]) -> Tensor | None:
        """Which token, counted over all views, each row of the first linear layer is of; None where they are in order.

        Args:
            config: The model's.
            views: Of one call of the tower.
        """
        return None

    def set_view_tokens(self, processor: Any, tokens: int, cells: tuple[int, int]) -> None:
        """Tells the processor how many tokens each view becomes.

        Args:
            processor: The model's; changed in place.
            tokens: Of one view.
            cells: Rows and columns of its tokens without a mixer.

        Raises:
            ValueError: If the family cannot have another number.
        """
        raise ValueError(self.fixed_tokens or "the processor has no setting for it")
