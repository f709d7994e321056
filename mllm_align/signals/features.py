"""Features: named tensors beside log-probabilities, of image tokens and of text read without an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mllm_align.contract import Batch, Feature, Needs, Ragged, Regions, View
from mllm_align.contract.needs import IMAGE_COLUMNS
from mllm_align.families import EncodedImages
from mllm_align.families.base import to_device
from mllm_align.signals.packing import PackedInputs, send

POOLINGS = {
    "projector": ("mean", "regions", "tokens", "region_tokens"),
    "text": ("mean", "last", "regions", "negatives", "positives", "tokens", "region_tokens"),
    "embedding": ("last", "mean", "tokens"),
    "teacher": ("mean", "regions"),
}
# What the texts of regions are measured as, in a batch of their own: not a name that a user's feature could have.
PHRASES = Feature("<phrases>", "text", "objects", pooling="last")
PHRASE_TOKENS = Feature("<phrase tokens>", "text", "objects", pooling="tokens")
PHRASE_VIEW = View(None, "objects")


def check_features(features: Sequence[Feature]) -> None:
    """Refuses a feature that the engine does not measure.

    Raises:
        ValueError: Naming it and what there is.
    """
    names = [feature.name for feature in features]
    for feature in features:
        if names.count(feature.name) > 1:
            raise ValueError(
                f"two features are called {feature.name!r}, and are not the same: name them apart, or give the "
                "objectives that want them the same prompt, pooling and source"
            )
        known = POOLINGS.get(feature.source, ())
        of_layers = feature.source == "embedding" or (feature.source == "text" and not feature.of_phrases)
        if feature.pooling not in known or (feature.layer is not None and not of_layers):
            there = "; ".join(f"{source}: {', '.join(names)}" for source, names in POOLINGS.items())
            raise ValueError(
                f"feature {feature.name!r} (source {feature.source!r}, layer {feature.layer}, pooling "
                f"{feature.pooling!r}) is not measured; sources and their poolings are {there}; what is not of texts "
                "or embeddings is of the last layer"
            )
        _check_layer(feature)
        if (feature.prompt is None) != (feature.source != "embedding" or feature.column == "prompt"):
            raise ValueError(
                f"feature {feature.name!r}: an embedding of a column needs a prompt, and nothing else has one; column "
                "'prompt' is read as it is"
            )
        if (feature.teacher is not None) != (feature.source == "teacher"):
            raise ValueError(f"feature {feature.name!r}: a teacher belongs to source 'teacher', and to no other")
        on_images = feature.of_regions or feature.source == "teacher"
        if on_images and feature.column not in IMAGE_COLUMNS:
            what = "regions" if feature.of_regions else "teachers' features"
            raise ValueError(
                f"feature {feature.name!r}: {what} are on images, column {feature.column!r} is none; name "
                f"{' or '.join(IMAGE_COLUMNS)}"
            )


def _check_layer(feature: Feature) -> None:
    layer = feature.layer
    whole = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
    if layer is not None and not whole and not (isinstance(layer, float) and 0 < layer < 1):
        raise ValueError(
            f"feature {feature.name!r}: layer must be a whole number of decoder layers, or a share of them between 0 "
            f"and 1, got {layer!r}"
        )


def layer_of(feature: Feature, depth: int) -> int | None:
    """How many of `depth` decoder layers are run for a feature; None for all, and the norm behind them.

    Raises:
        ValueError: If there are not that many.
    """
    if isinstance(feature.layer, float):
        return round(feature.layer * depth)
    if feature.layer is not None and feature.layer > depth:
        raise ValueError(f"feature {feature.name!r}: layer {feature.layer} is not there, the model has {depth}")
    return feature.layer


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
    listed = {"negatives": batch.region_negatives, "positives": batch.region_positives}
    return listed.get(feature.pooling, batch.region_phrases).get(feature.column)


def image_feature_rows(batch: Batch, feature: Feature) -> list[int]:
    """The row of each entry of an image feature: rows with images, as often as these have tokens, or of regions.

    None where no row of the batch wants a feature of texts, of all tokens of regions, or of a teacher, whatever other
    features its regions have.

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
    if feature.pooling in ("negatives", "positives"):
        listed = getattr(regions, feature.pooling)
        return [row for row, own in zip(regions.row, listed, strict=True) for _ in own]
    if feature.pooling == "region_tokens":
        if not feature.of_phrases and feature.column not in batch.region_tokens:
            return []
        counts = regions.num_words if feature.of_phrases else regions.num_tokens
        return [row for row, count in zip(regions.row, counts, strict=True) for _ in range(count)]
    rows = rows_with_images(batch, feature.column)
    if feature.pooling != "tokens":
        return rows
    if len(batch.image_sizes) != len(batch.images):
        raise ValueError(f"the batch does not say how many tokens its images have: give it image_sizes ({feature})")
    images = (batch.row_images or {}).get(feature.column, ())
    return [row for row in rows for image in images[row] for _ in range(batch.image_sizes[image])]


def text_feature_rows(batch: Batch, feature: Feature, view: View) -> list[int]:
    """The row of each entry of a feature of responses, in order of their branches."""
    own = [branch for branch in batch.branches if branch.view == view]
    if feature.pooling != "tokens":
        return [branch.row for branch in own]
    if feature.source == "embedding":
        return [branch.row for branch in own for _ in range(batch.prefixes[branch.prefix].input_ids.numel())]
    return [branch.row for branch in own for _ in range(max(branch.token_ids.numel() - 1, 1))]


def feature_ids(batch: Batch, feature: Feature) -> list[int] | None:
    """A number for each entry of a feature that is equal where the same was read (`Signals.host_feature_ids`).

    In the order of `image_feature_rows` or `text_feature_rows`. None for features of regions or of a teacher; 0 for
    entries that read images where the batch has no `image_ids`.
    """
    if feature.view is not None:
        prefixes: dict[int, int] = {}
        found = []
        for branch in batch.branches:
            if branch.view != feature.view:
                continue
            prefix = batch.prefixes[branch.prefix]
            if branch.prefix not in prefixes:
                prefixes[branch.prefix] = _number(batch, [_bytes(prefix.input_ids)], prefix.images)
            number = prefixes[branch.prefix]
            if number and feature.source == "text":
                number = _number(batch, [number.to_bytes(8, "little", signed=True), _bytes(branch.token_ids)])
            entries = prefix.input_ids.numel() if feature.source == "embedding" else branch.token_ids.numel() - 1
            found += [number] * (max(entries, 1) if feature.pooling == "tokens" else 1)
        return found
    if feature.source != "projector" or feature.of_regions:
        return None
    images = (batch.row_images or {}).get(feature.column, ())
    of_row = {row: _number(batch, [], images[row]) for row in rows_with_images(batch, feature.column)}
    return [of_row[row] for row in image_feature_rows(batch, feature)]


def _number(batch: Batch, parts: Sequence[bytes], images: Sequence[int] = ()) -> int:
    """Of some bytes and of images; 0 only for images that have no id."""
    if images and not batch.image_ids:
        return 0
    state = hashlib.blake2b(digest_size=8)
    for part in (*parts, *(batch.image_ids[image].encode() for image in images)):
        # With its length before each part, no two lists of parts read the same.
        state.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(state.digest(), "little", signed=True) or 1


def _bytes(tokens: Tensor) -> bytes:
    # Token ids never leave the host.
    return tokens.numpy().tobytes()


@dataclass(frozen=True)
class Pool:
    """How one feature is pooled from the hidden states (G, T, d) of one forward pass.

    The state that predicts the last token of a response has read everything before it; the last token itself, the end
    of the turn, is never read.

    Attributes:
        name: Of the feature.
        sequence: (M,) of which sequences states take part.
        position: (M,) where in them.
        part: (M,) the entry of each, 0 .. n - 1: its response or prompt, or itself where all of them are wanted.
        weight: (n, 1) one over the number of states of each entry.
        rows: The batch row of each entry.
        branches: The batch's branch of each entry.
        layer: How many decoder layers the states have gone through; None for all, and the norm behind them.
    """

    name: str
    sequence: Tensor
    position: Tensor
    part: Tensor
    weight: Tensor
    rows: tuple[int, ...]
    branches: tuple[int, ...]
    layer: int | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """(n, d) means, in float32."""
        states = hidden[self.sequence, self.position].float()
        total = torch.zeros(len(self.rows), states.shape[1], dtype=states.dtype, device=states.device)
        return total.index_add(0, self.part, states) * self.weight


def pools_of(batch: Batch, inputs: PackedInputs, features: Sequence[Feature], depth: int) -> tuple[Pool, ...]:
    """The poolings of those features that some branch of a group is read for, in a model of `depth` layers."""
    pools = []
    device = inputs.targets.device
    for feature in features:
        members = [
            index for index in dict.fromkeys(inputs.branch.tolist()) if batch.branches[index].view == feature.view
        ]
        if not members or feature.view is None:
            continue
        states = _prompt_states(batch, inputs, feature, members) if feature.source == "embedding" else None
        if states is None:
            states = _response_states(inputs, feature, members)
        if feature.pooling == "tokens":
            members = [member for member, (_, own) in zip(members, states, strict=True) for _ in own]
            flat = [np.concatenate(each) for each in zip(*states, strict=True)]
            states = [(flat[0][place : place + 1], flat[1][place : place + 1]) for place in range(len(members))]
        sizes = [len(own) for _, own in states]
        host = (
            np.concatenate([own for own, _ in states]),
            np.concatenate([own for _, own in states]),
            np.repeat(np.arange(len(states)), sizes),
            1 / np.array(sizes, dtype=np.float32)[:, None],
        )
        rows = tuple(batch.branches[member].row for member in members)
        moved = (send(array, device) for array in host)
        pools.append(Pool(feature.name, *moved, rows=rows, branches=tuple(members), layer=layer_of(feature, depth)))
    return tuple(pools)


_Places = list[tuple[np.ndarray, np.ndarray]]


def _response_states(inputs: PackedInputs, feature: Feature, members: Sequence[int]) -> _Places:
    """Of each branch the sequence and the positions of the states that predict its response."""
    found = [np.flatnonzero(inputs.branch == member) for member in members]
    if feature.pooling == "last":
        found = [own[-1:] for own in found]
    if feature.pooling == "tokens":
        # The first is the prompt's; a response of its end alone has no other.
        found = [own[1:] if len(own) > 1 else own for own in found]
    return [(inputs.host_sequence[own], inputs.host_position[own]) for own in found]


def _prompt_states(batch: Batch, inputs: PackedInputs, feature: Feature, members: Sequence[int]) -> _Places:
    """Of each branch the sequence and the positions of its prompt's states, or of the last of them."""
    pack_of = {branch: number for number, pack in enumerate(inputs.packs) for branch in pack.branches}
    found = []
    for member in members:
        size = batch.prefixes[batch.branches[member].prefix].input_ids.numel()
        position = np.arange(size - 1 if feature.pooling == "last" else 0, size)
        found.append((np.full(len(position), pack_of[member]), position))
    return found


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
        if feature.of_regions:
            if rows:
                measure = region_means if feature.pooling == "regions" else region_tokens
                pooled = measure(batch, encoded, feature.column)
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


def region_tokens(batch: Batch, encoded: EncodedImages, column: str) -> Tensor:
    """(N, d) float32: the tokens that each region on the images of a column covers, region after region."""
    regions, covered = batch.regions[column], batch.region_tokens[column]
    images = [(batch.row_images or {})[column][row][n] for row, n in zip(regions.row, regions.image, strict=True)]
    # One copy to the device for all of them.
    index = send(torch.cat(covered).numpy(), encoded.tokens[images[0]].device).split([len(own) for own in covered])
    return torch.cat([encoded.tokens[image][own].float() for image, own in zip(images, index, strict=True)])
