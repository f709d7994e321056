"""What an arm of the study of views is asked: does each view of an unseen thing find it, and do the worst ones?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.data.world.catalogue import SMALL
from mllm_align.data.world.correspondence import Frame, Thing, draw
from mllm_align.data.world.language import paraphrases
from mllm_align.objectives import RegionContrast
from mllm_align_eval.items import Item, Picture
from region_features import Part, measured
from view_rows import canonical_frame, frames_of, picture_of, things_of

# At the most, and views of each.
NUM_THINGS, NUM_VIEWS = 100, 12
WORST_SHARE = 3


def own_and_found(views: Tensor, canonical: Tensor) -> tuple[Tensor, Tensor]:
    """How similar each view is to the canonical view of its own thing, and whether it is to no other as much.

    Args:
        views: (T, V, d) features of V views of each of T things.
        canonical: (T, d) of the things.

    Returns:
        (T, V) cosines, and (T, V) bool.
    """
    cosines = F.normalize(views, dim=2) @ F.normalize(canonical, dim=1).T
    own = torch.arange(len(canonical))
    mine = cosines[own, :, own]
    others = cosines.clone()
    others[own, :, own] = -torch.inf
    return mine, mine > others.amax(dim=2)


def parts_of(own: Tensor, found: Tensor, names: Sequence[str]) -> dict[str, Part]:
    """R@1 of all views, of things by their worst view, and of the third of a thing's views that resemble it least.

    Args:
        own: (T, V) similarity of each view to its own thing.
        found: (T, V) bool, whether it retrieves its thing.
        names: (T,) of the things, which are the clusters.

    Returns:
        "mean_view", T x V numbers; "worst_third", a third of them; "worst_view", T numbers: 1 where all views of a
        thing retrieve it.
    """
    right = found.double()
    least = own.argsort(dim=1)[:, : own.shape[1] // WORST_SHARE]

    def part(values: Tensor) -> Part:
        return Part(values.flatten().tolist(), [name for name in names for _ in range(values.shape[1])])

    return {
        "mean_view": part(right),
        "worst_third": part(right.gather(1, least)),
        "worst_view": part(right.amin(dim=1, keepdim=True)),
    }


def retrieval_parts(model: Any, processor: Any, split: str, level: str) -> dict[str, Part]:
    """`parts_of` unseen things of a split, by the image tokens that a thing covers; nothing is read or written."""
    things = things_of(split)[:NUM_THINGS]
    canonical = _features(model, processor, [canonical_frame(thing) for thing in things])
    frames = [frame for thing in things for frame in frames_of(thing, NUM_VIEWS, 0, level)]
    views = _features(model, processor, frames).unflatten(0, (len(things), NUM_VIEWS))
    return parts_of(*own_and_found(views, canonical), [thing.name for thing in things])


def colour_items(split: str, level: str) -> list[Item]:
    """Which colour a thing has, asked of the same views."""
    return [
        _item(thing, frame, f"views/{split}/{level}/{thing.name}", number)
        for thing in things_of(split)[:NUM_THINGS]
        for number, frame in enumerate(frames_of(thing, NUM_VIEWS, 0, level))
    ]


def _item(thing: Thing, frame: Frame, cluster: str, number: int) -> Item:
    return Item(
        id=f"{cluster}/{number}",
        benchmark="views",
        split="views",
        kind="colour",
        cluster=cluster,
        prompt=_asked(thing),
        pictures=(Picture(f"{cluster}/{number}", partial(draw, frame)),),
        choices=SMALL.colours,
        answer=thing.colour,
    )


def _asked(thing: Thing) -> str:
    return paraphrases("colour")[0].format(thing.shape)


def _features(model: Any, processor: Any, frames: Sequence[Frame]) -> Tensor:
    """(N, d) float64, of the one thing of each picture, in their order."""
    rows = []
    for number, frame in enumerate(frames):
        (image, objects), thing = picture_of(frame), frame.placed[0].thing
        row = {"id": str(number), "image": image, "objects": objects}
        rows.append({**row, "prompt": _asked(thing), "chosen": thing.colour})
    batches = measured(model, processor, RegionContrast(("image",)), rows)
    return torch.cat([signals.features["regions:image"].values.double().cpu() for _, signals in batches])
