"""Features: named tensors beside log-probabilities, of image tokens and of text read without an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mllm_align.contract import Batch, Feature, Needs, Ragged, View
from mllm_align.families import EncodedImages
from mllm_align.families.base import to_device
from mllm_align.signals.packing import PackedInputs, send

POOLINGS = {"projector": ("mean", "regions"), "text": ("mean", "last")}


def check_features(features: Sequence[Feature]) -> None:
    """Refuses a feature that the engine does not measure.

    Raises:
        ValueError: Naming it and what there is.
    """
    for feature in features:
        known = POOLINGS.get(feature.source, ())
        if feature.pooling not in known or feature.layer is not None:
            there = "; ".join(f"{source}: {', '.join(names)}" for source, names in POOLINGS.items())
            raise ValueError(
                f"feature {feature.name!r} (source {feature.source!r}, layer {feature.layer}, pooling "
                f"{feature.pooling!r}) is not measured; sources and their poolings are {there}, of the last layer"
            )


def scored_views(needs: Needs) -> tuple[View, ...] | None:
    """Views whose log-probabilities are wanted, or None for all that a batch has.

    A batch has views that are read for a feature alone.
    """
    return (*needs.views, *needs.optional) if needs.features else None


def rows_with_images(batch: Batch, column: str) -> list[int]:
    """The rows that have an image in a column that a feature is taken of.

    Raises:
        ValueError: If the batch does not say which images are whose.
    """
    if batch.row_images is None:
        raise ValueError(f"the batch does not say which images of column {column!r} a row has: give it row_images")
    return [row for row, images in enumerate(batch.row_images.get(column, ())) if images]


def image_feature_rows(batch: Batch, feature: Feature) -> list[int]:
    """The row of each entry of an image feature: rows with images, or the rows of regions.

    Raises:
        ValueError: If the batch does not say which images are whose.
    """
    if feature.pooling != "regions":
        return rows_with_images(batch, feature.column)
    return list(batch.regions[feature.column].row) if feature.column in batch.regions else []


def text_view(feature: Feature) -> View | None:
    """The view whose tokens a feature pools, or None where it pools none."""
    return View(None, feature.column) if feature.source == "text" else None


@dataclass(frozen=True)
class Pool:
    """How one feature is pooled from the hidden states (N, d) of one forward pass.

    The state that predicts the last token of a response has read everything before it; the last token itself, the end
    of the turn, is never read.

    Attributes:
        name: Of the feature.
        index: (M,) which states take part.
        part: (M,) the response of each, 0 .. n - 1.
        weight: (n, 1) one over the number of states of each response.
        rows: The batch row of each response.
    """

    name: str
    index: Tensor
    part: Tensor
    weight: Tensor
    rows: tuple[int, ...]

    def __call__(self, hidden: Tensor) -> Tensor:
        """(n, d) means, in float32."""
        states = hidden[self.index].float()
        total = torch.zeros(len(self.rows), states.shape[1], dtype=states.dtype, device=states.device)
        return total.index_add(0, self.part, states) * self.weight


def pools_of(batch: Batch, inputs: PackedInputs, features: Sequence[Feature]) -> tuple[Pool, ...]:
    """The poolings of those text features that some response of a group has."""
    pools = []
    device = inputs.targets.device
    for feature in features:
        view = text_view(feature)
        members = [index for index in dict.fromkeys(inputs.branch.tolist()) if batch.branches[index].view == view]
        if not members:
            continue
        states = [np.flatnonzero(inputs.branch == member) for member in members]
        if feature.pooling == "last":
            states = [own[-1:] for own in states]
        sizes = [len(own) for own in states]
        host = (
            np.concatenate(states),
            np.repeat(np.arange(len(members)), sizes),
            1 / np.array(sizes, dtype=np.float32)[:, None],
        )
        rows = tuple(batch.branches[member].row for member in members)
        pools.append(Pool(feature.name, *(send(array, device) for array in host), rows=rows))
    return tuple(pools)


def image_features(
    batch: Batch, encoded: EncodedImages, features: Sequence[Feature]
) -> dict[str, tuple[Ragged, list[int]]]:
    """Means of the LLM-ready tokens of each row's images, or of the regions on them, in float32, and their rows once
    more on the host.

    A row without an image, or without regions, has no entry.

    Raises:
        ValueError: If the batch does not say which images are whose.
    """
    found = {}
    for feature in features:
        if feature.source != "projector":
            continue
        rows = image_feature_rows(batch, feature)
        if feature.pooling == "regions":
            if rows:
                pooled = region_means(batch, encoded, feature.column)
                found[feature.name] = Ragged(pooled, send(np.array(rows), pooled.device)), rows
            continue
        images = [(batch.row_images or {})[feature.column][row] for row in rows]
        values = [torch.cat([encoded.tokens[image] for image in own]).float().mean(dim=0) for own in images]
        if values:
            found[feature.name] = Ragged(torch.stack(values), send(np.array(rows), values[0].device)), rows
    return found


def region_means(batch: Batch, encoded: EncodedImages, column: str) -> Tensor:
    """(R, d) float32: of each region on the images of a column the mean of its image's tokens by its weights."""
    regions, weights = batch.regions[column], batch.region_weights[column]
    of_image: dict[int, list[int]] = {}
    for number, (row, place) in enumerate(zip(regions.row, regions.image, strict=True)):
        of_image.setdefault((batch.row_images or {})[column][row][place], []).append(number)
    pooled = []
    for image, members in of_image.items():
        tokens = encoded.tokens[image].float()
        own = torch.stack([to_device(weights[member], tokens.device) for member in members])
        # The sum of float32 products, whatever precision autocast has for matrix products.
        with torch.autocast(tokens.device.type, enabled=False):
            pooled.append(own @ tokens[: own.shape[1]] / own.sum(dim=1, keepdim=True))
    order = [number for members in of_image.values() for number in members]
    back = np.argsort(np.array(order))
    joined = torch.cat(pooled)
    return joined[send(back, joined.device)]
