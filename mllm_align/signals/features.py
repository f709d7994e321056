"""Features: named tensors beside log-probabilities, of image tokens and of text read without an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mllm_align.contract import Batch, Feature, Needs, Ragged, Regions, View
from mllm_align.families import EncodedImages
from mllm_align.families.base import to_device
from mllm_align.signals.packing import PackedInputs, send

POOLINGS = {
    "projector": ("mean", "regions", "tokens"),
    "text": ("mean", "last", "regions", "negatives", "tokens"),
    "teacher": ("mean", "regions"),
}
IMAGE_COLUMNS = ("image", "contrast_image")
# What the texts of regions are measured as, in a batch of their own: not a name that a user's feature could have.
PHRASES = Feature("<phrases>", "text", "objects", pooling="last")
PHRASE_VIEW = View(None, "objects")


def check_features(features: Sequence[Feature]) -> None:
    """Refuses a feature that the engine does not measure.

    Raises:
        ValueError: Naming it and what there is.
    """
    names = [feature.name for feature in features]
    for feature in features:
        if names.count(feature.name) > 1:
            raise ValueError(f"two features are called {feature.name!r}, and are not the same: name them apart")
        known = POOLINGS.get(feature.source, ())
        if feature.pooling not in known or feature.layer is not None:
            there = "; ".join(f"{source}: {', '.join(names)}" for source, names in POOLINGS.items())
            raise ValueError(
                f"feature {feature.name!r} (source {feature.source!r}, layer {feature.layer}, pooling "
                f"{feature.pooling!r}) is not measured; sources and their poolings are {there}, of the last layer"
            )
        if (feature.teacher is not None) != (feature.source == "teacher"):
            raise ValueError(f"feature {feature.name!r}: a teacher belongs to source 'teacher', and to no other")
        on_images = feature.pooling == "regions" or feature.of_phrases or feature.source == "teacher"
        if on_images and feature.column not in IMAGE_COLUMNS:
            what = "regions" if feature.pooling == "regions" or feature.of_phrases else "teachers' features"
            raise ValueError(
                f"feature {feature.name!r}: {what} are on images, column {feature.column!r} is none; name "
                f"{' or '.join(IMAGE_COLUMNS)}"
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


def phrases_told(batch: Batch, feature: Feature) -> tuple[int, ...] | None:
    """Which of the batch's phrases each entry of a feature of regions' texts is; None where no row wants it."""
    told = batch.region_phrases if feature.pooling == "regions" else batch.region_negatives
    return told.get(feature.column)


def image_feature_rows(batch: Batch, feature: Feature) -> list[int]:
    """The row of each entry of an image feature: rows with images, as often as these have tokens, or of regions.

    None where no row of the batch wants a feature of texts or of a teacher, whatever other features its regions have.

    Raises:
        ValueError: If the batch does not say which images are whose, or how many tokens they have.
    """
    if feature.of_phrases and phrases_told(batch, feature) is None:
        return []
    if feature.source == "teacher" and feature.name not in batch.teacher_features:
        return []
    regions = batch.regions.get(feature.column, Regions())
    if feature.pooling == "regions":
        return list(regions.row)
    if feature.pooling == "negatives":
        return [row for row, own in zip(regions.row, regions.negatives, strict=True) for _ in own]
    rows = rows_with_images(batch, feature.column)
    if feature.pooling != "tokens":
        return rows
    if len(batch.image_sizes) != len(batch.images):
        raise ValueError(f"the batch does not say how many tokens its images have: give it image_sizes ({feature})")
    images = (batch.row_images or {}).get(feature.column, ())
    return [row for row in rows for image in images[row] for _ in range(batch.image_sizes[image])]


def text_view(feature: Feature) -> View | None:
    """The view whose tokens a feature pools, or None where it pools none."""
    return View(None, feature.column) if feature.source == "text" and not feature.of_phrases else None


def text_feature_rows(batch: Batch, feature: Feature, view: View) -> list[int]:
    """The row of each entry of a feature of responses, in order of their branches."""
    own = [branch for branch in batch.branches if branch.view == view]
    if feature.pooling != "tokens":
        return [branch.row for branch in own]
    return [branch.row for branch in own for _ in range(max(branch.token_ids.numel() - 1, 1))]


@dataclass(frozen=True)
class Pool:
    """How one feature is pooled from the hidden states (N, d) of one forward pass.

    The state that predicts the last token of a response has read everything before it; the last token itself, the end
    of the turn, is never read.

    Attributes:
        name: Of the feature.
        index: (M,) which states take part.
        part: (M,) the entry of each, 0 .. n - 1: its response, or itself where all of them are wanted.
        weight: (n, 1) one over the number of states of each entry.
        rows: The batch row of each entry.
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
        rows = [batch.branches[member].row for member in members]
        if feature.pooling == "last":
            states = [own[-1:] for own in states]
        if feature.pooling == "tokens":
            # The first is the prompt's; a response of its end alone has no other.
            states = [own[1:] if len(own) > 1 else own for own in states]
            rows = [row for row, own in zip(rows, states, strict=True) for _ in own]
            states = np.split(np.concatenate(states), len(rows))
        sizes = [len(own) for own in states]
        host = (
            np.concatenate(states),
            np.repeat(np.arange(len(rows)), sizes),
            1 / np.array(sizes, dtype=np.float32)[:, None],
        )
        pools.append(Pool(feature.name, *(send(array, device) for array in host), rows=tuple(rows)))
    return tuple(pools)


def image_features(
    batch: Batch, encoded: EncodedImages, features: Sequence[Feature]
) -> dict[str, tuple[Ragged, list[int]]]:
    """The LLM-ready tokens of each row's images, their means, or those of the regions on them, in float32, and their
    rows once more on the host.

    A row without an image, or without regions, has no entry.

    Raises:
        ValueError: If the batch does not say which images are whose.
    """
    found = {}
    for feature in features:
        if feature.source == "teacher" and feature.name in batch.teacher_features:
            given = batch.teacher_features[feature.name].float()
            rows = image_feature_rows(batch, feature)
            found[feature.name] = Ragged(given, send(np.array(rows), given.device)), rows
        if feature.source != "projector":
            continue
        rows = image_feature_rows(batch, feature)
        if feature.pooling == "regions":
            if rows:
                pooled = region_means(batch, encoded, feature.column)
                found[feature.name] = Ragged(pooled, send(np.array(rows), pooled.device)), rows
            continue
        images = [(batch.row_images or {})[feature.column][row] for row in rows_with_images(batch, feature.column)]
        values = [torch.cat([encoded.tokens[image] for image in own]).float() for own in images]
        if values:
            joined = torch.cat(values) if feature.pooling == "tokens" else torch.stack([own.mean(0) for own in values])
            found[feature.name] = Ragged(joined, send(np.array(rows), joined.device)), rows
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
