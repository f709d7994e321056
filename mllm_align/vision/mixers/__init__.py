"""Mixers: what joins several vision encoders into the tokens that the language model reads, by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping

from mllm_align.vision.mixers.additive import AdditiveMoF
from mllm_align.vision.mixers.base import Cells, Map, Mixer, Place, Sight, Widths
from mllm_align.vision.mixers.concat import ChannelConcat
from mllm_align.vision.mixers.gated import GatedResidual
from mllm_align.vision.mixers.interleave import InterleavedMoF
from mllm_align.vision.mixers.sva import SpatialVisionAggregator
from mllm_align.vision.mixers.window import WindowAttention
from mllm_align.vision.mixers.x_former import XFormer

MIXERS: dict[str, type[Mixer]] = {
    "additive": AdditiveMoF,
    "interleave": InterleavedMoF,
    "concat": ChannelConcat,
    "gated": GatedResidual,
    "window": WindowAttention,
    "sva": SpatialVisionAggregator,
    "x_former": XFormer,
}

__all__ = ["MIXERS", "Cells", "Map", "Mixer", "Place", "Sight", "Widths", "make_mixer"]


def make_mixer(kind: str, widths: Widths, options: Mapping[str, object] | None = None) -> Mixer:
    """A new mixer; of another one's kind, widths and `options`, one with the same parameters' names and shapes.

    Args:
        kind: One of `MIXERS`.
        widths: How wide the vectors are that it joins.
        options: Of the kind; what is left out has its default.

    Raises:
        ValueError: If there is no such kind or option, or a value cannot be used.
    """
    if kind not in MIXERS:
        raise ValueError(f"no mixer {kind!r}{_nearest(kind, MIXERS)} ({', '.join(MIXERS)})")
    options = dict(options or {})
    known = [name for name in inspect.signature(MIXERS[kind]).parameters if name != "widths"]
    for name in options:
        if name not in known:
            raise ValueError(f"mixer {kind!r} has no option {name!r}{_nearest(name, known)} ({', '.join(known)})")
    try:
        return MIXERS[kind](widths, **options)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ValueError(f"mixer {kind!r}: {error}") from None


def _nearest(word: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
