"""Corruptions by name, as recipes write them: `{kind: crop, scale: [0.01, 0.2]}`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from mllm_align.data.corrupt.base import Corruption
from mllm_align.data.corrupt.crop import Crop
from mllm_align.data.corrupt.noise import DiffusionNoise, GaussianNoise
from mllm_align.data.corrupt.patches import MaskPatches, PatchShuffle
from mllm_align.data.corrupt.plain import Blank, MeanImage
from mllm_align.data.corrupt.swap import Swap
from mllm_align.data.corrupt.transform import Blur, Mirror, Rotate
from mllm_align.data.errors import DataError

KINDS: dict[str, type[Corruption] | type[Swap]] = {
    "crop": Crop,
    "diffusion_noise": DiffusionNoise,
    "gaussian_noise": GaussianNoise,
    "blank": Blank,
    "mean_image": MeanImage,
    "patch_shuffle": PatchShuffle,
    "mask_patches": MaskPatches,
    "blur": Blur,
    "rotate": Rotate,
    "mirror": Mirror,
    "swap": Swap,
}


def corruption_from(options: str | Mapping[str, Any]) -> Corruption | Swap:
    """The corruption that `{"kind": name, option: value, ...}` describes; a name alone is one with its defaults.

    Raises:
        DataError: If there is no such kind or option (the nearest is named), or a value makes no sense.
    """
    given = {"kind": options} if isinstance(options, str) else options
    if not isinstance(given, Mapping) or "kind" not in given:
        raise DataError(f"a corruption is {{'kind': name, options...}} with a kind of {', '.join(KINDS)}")
    kind = given["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(f"unknown kind {kind!r}; there is {', '.join(KINDS)}{nearest(str(kind), KINDS)}")
    fields = [field.name for field in dataclasses.fields(KINDS[kind])]
    values = {name: value for name, value in given.items() if name != "kind"}
    for name in values:
        if name not in fields:
            known = f"it has {', '.join(fields)}" if fields else "it has no options"
            raise DataError(f"{kind!r} has no option {name!r}; {known}{nearest(str(name), fields)}")
    try:
        return KINDS[kind](**values)
    except ValueError as error:
        raise DataError(f"{kind!r}: {error}") from error


def nearest(name: str, known: Any) -> str:
    """The end of an error message that says what may have been meant."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
