"""Gradient caching (Gao et al., 2021, https://arxiv.org/abs/2101.06983), for any objective and on image tokens too.

A batch is measured without a graph. The objective is differentiated with respect to what was measured, which is
small. Then each group of sequences is run once more, with a graph, and its part of that gradient is sent back through
it; at last the images, in parts, with the gradient of their tokens. So the memory of a step is that of its largest
group, whatever the batch, for one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mllm_align.contract import Batch, Feature, Signals, View
from mllm_align.families import EncodedImages, family_of, unwrap
from mllm_align.signals.cached_reference import CachedReference
from mllm_align.signals.features import image_features
from mllm_align.signals.measure import measure_reference
from mllm_align.signals.options import DEFAULTS, EngineOptions
from mllm_align.signals.phrases import phrase_features
from mllm_align.signals.plan import Group, plan_groups
from mllm_align.signals.reference import Reference
from mllm_align.signals.scoring import (
    Measured,
    assemble,
    encode,
    images_alone,
    joined_images,
    parts_of,
    score_group,
)
from mllm_align.signals.vision import frozen_tower_once, trained_image_parameters


class Replay:
    """A batch measured without a graph, and the passes that send a gradient back through it.

    Args:
        model: As for `measure`.
        batch: As for `measure`.
        reference: As for `measure`.
        tokens: As for `measure`.
        features: As for `measure`.
        scored: As for `measure`.
        options: As for `measure`; `max_tokens_per_forward` decides what one pass holds.

    Attributes:
        policy: Its signals; differentiable with respect to what was measured.
        reference: Signals of the reference, or None.

    Example:
        >>> replay = Replay(model, batch)  # doctest: +SKIP
        >>> objective(replay.policy, replay.reference).loss.backward()  # doctest: +SKIP
        >>> for again in replay.passes():  # doctest: +SKIP
        ...     again().backward()
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        reference: Reference | CachedReference | None = None,
        tokens: bool = False,
        features: Sequence[Feature] = (),
        scored: Collection[View] | None = None,
        options: EngineOptions = DEFAULTS,
    ) -> None:
        """Measures; see the class."""
        self.hf = unwrap(model)
        self.family = family_of(self.hf)
        self.batch, self.options = batch, options
        live = None if isinstance(reference, CachedReference) else reference
        self.groups = plan_groups(
            self.family, self.hf, batch, options, reference=live is not None, features=features, scored=scored
        )
        self.parts = parts_of(len(batch.images), options.max_images_per_forward)
        self.random: dict[Any, _Random] = {}
        self.reference: Signals | None = None
        with torch.no_grad(), self._once() as again:
            encoded = self._encode_parts()
            if live is not None:
                again()
                at_once = options.max_images_per_forward
                self.reference = measure_reference(model, batch, live, encoded, self.groups, tokens, options, at_once)
        with torch.no_grad():
            measured = [self._score(number, encoded) for number in range(len(self.groups))]
        image_names = set(trained_image_parameters(self.family, self.hf))
        decoder_trains = any(p.requires_grad and name not in image_names for name, p in self.hf.named_parameters())
        self.encoded = encoded.replaced([_leaf(tensor, bool(image_names)) for tensor in encoded.tensors])
        self.measured = []
        for group, each in zip(self.groups, measured, strict=True):
            moves = decoder_trains or bool(image_names and group.inputs.images)
            self.measured.append(each.replaced([_leaf(tensor, moves) for tensor in each.tensors]))
        found = image_features(batch, self.encoded, features)
        found |= phrase_features(self.hf, batch, self.groups, self.measured, features)
        self.policy = assemble(batch, self.groups, self.measured, tokens, self.hf.device, found, features)
        if isinstance(reference, CachedReference):
            self.reference = reference.signals(batch, tokens=tokens, device=self.hf.device, scored=scored)

    @property
    def leaves(self) -> list[Tensor]:
        """What was measured: where the gradient of an objective ends."""
        leaves = [tensor for each in self.measured for tensor in each.tensors] + list(self.encoded.tensors)
        return [tensor for tensor in leaves if tensor.requires_grad]

    def passes(self) -> Iterator[Callable[[], Tensor]]:
        """What is left to do once the leaves have gradients, in order; each gives a 0-d tensor to go back from.

        The next is asked for after the last one's backward pass: image tokens collect their gradients on the way.
        """
        for number, group in enumerate(self.groups):
            if any(leaf.grad is not None for leaf in self.measured[number].tensors):
                yield lambda number=number, group=group: self._group_again(number, group)
        for number, part in enumerate(self.parts):
            if any(leaf.grad is not None for leaf in self._tensors_of(part)):
                yield lambda number=number, part=part: self._images_again(number, part)

    def _group_again(self, number: int, group: Group) -> Tensor:
        with self.random["group", number].again():
            measured = score_group(self.family, self.hf, self.encoded, group, self.options.logits_chunk_size)
        return _towards(measured.tensors, self.measured[number].tensors)

    def _images_again(self, number: int, part: range) -> Tensor:
        with self.random["images", number].again():
            encoded = self._encode(images_alone(self.batch, part))
        return _towards(encoded.tensors, self._tensors_of(part))

    def _tensors_of(self, part: range) -> tuple[Tensor, ...]:
        tokens = tuple(self.encoded.tokens[index] for index in part)
        deep = tuple(self.encoded.deepstack[index] for index in part) if self.encoded.deepstack else ()
        return EncodedImages(tokens, deep).tensors

    def _encode_parts(self) -> EncodedImages:
        encoded = []
        for number, part in enumerate(self.parts):
            self.random["images", number] = _Random(self.hf.device)
            images = images_alone(self.batch, part)
            encoded.append(self._encode(images))
        return joined_images(encoded)

    def _encode(self, images: Batch) -> EncodedImages:
        return encode(self.family, self.hf, images, self.options.feature_cache, self.options.encoder_cache)

    def _once(self) -> AbstractContextManager[Callable[[], None]]:
        return frozen_tower_once(self.family, self.hf, encoders=self.options.encoder_cache is None)

    def _score(self, number: int, encoded: EncodedImages) -> Measured:
        self.random["group", number] = _Random(self.hf.device)
        group = self.groups[number]
        return score_group(self.family, self.hf, encoded, group, self.options.logits_chunk_size)


class _Random:
    """The state of the random generators at one moment: dropout must draw the same in both passes."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.host = torch.get_rng_state()
        self.on_device = [torch.cuda.get_rng_state(device) for device in self.devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """The generators as they were; as they are now when it ends."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.host)
            for device, state in zip(self.devices, self.on_device, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def _leaf(tensor: Tensor, wanted: bool = True) -> Tensor:
    return tensor.detach().requires_grad_(wanted and tensor.is_floating_point())


def _towards(values: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
    """0-d, whose gradient is the leaves' own; parts that no gradient reached are left out."""
    parts = [(value * leaf.grad).sum() for value, leaf in zip(values, leaves, strict=True) if leaf.grad is not None]
    return torch.stack(parts).sum()
