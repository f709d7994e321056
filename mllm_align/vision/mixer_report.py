"""What a mixer makes of its encoders: how much it takes of each, how long tokens are, and how alike they all are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mllm_align.families import family_of, inner, unwrap
from mllm_align.vision.cka import LinearCKA
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixers import Cells, Map, Mixer, Sight

OWN, MIXED, PLAIN = "own", "mixed", "plain"


class MixerReport(NamedTuple):
    """What was measured.

    Attributes:
        kind: Class of the mixer.
        encoders: The model's own, then the further ones, by name.
        num_views: How many views were encoded.
        watched: What the mixer writes of itself (`Mixer.watched`), means over views.
        lengths: Mean length of the vectors that the language model reads: "mixed", "plain" (without the mixer), and
            "text", of the embeddings of words.
        names: Of the rows and columns of `cka`: "own", what the projector reads; "encoder 1", ..., the further ones;
            "mixed", what the mixer gives at its place, all vectors of a cell as one. "mixed" is not there where its
            tokens lie on no grid.
        cka: Linear CKA of all with all, cell by cell; finer grids by their means over a cell.
        tokens_cka: Of the tokens with and without the mixer; None where there is no telling which belong together.
    """

    kind: str
    encoders: list[str]
    num_views: int
    watched: dict[str, float]
    lengths: dict[str, float]
    names: list[str]
    cka: list[list[float]]
    tokens_cka: float | None


class MixerMeter:
    """Adds up over batches of images what a `MixerReport` says; changes nothing of the model.

    Args:
        model: With a mixer, wrapped in adapters or not: the copy of the mixer that is active is looked at.
        samples: Most cells of a batch that CKA compares, drawn at random: their products are a square of that side.

    Raises:
        ValueError: If the model has no mixer.
    """

    def __init__(self, model: nn.Module, samples: int = 1024) -> None:
        self.model: Any = unwrap(model)
        mixed = mixed_of(inner(self.model))
        if mixed is None:
            raise ValueError("the model has no mixer: there is nothing to look at")
        self.mixed, self.family, self.samples = mixed, family_of(self.model), samples
        self.cka, self.tokens_cka = LinearCKA(), LinearCKA()
        self.generator = torch.Generator().manual_seed(0)
        self.num_views = 0
        self._watched: dict[str, float] = defaultdict(float)
        self._lengths: dict[str, tuple[float, int]] = {}
        self._cells: dict[str, list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def images(self, images: Sequence[Mapping[str, Tensor]]) -> None:
        """Encodes a batch of images, with the mixer and without.

        Args:
            images: Per image the processor's tensors.
        """
        with self._watching():
            mixed = torch.cat(self.family.encode_images(self.model, images).tokens)
        before, self.mixed.enabled = self.mixed.enabled, False
        try:
            plain = torch.cat(self.family.encode_images(self.model, images).tokens)
        finally:
            self.mixed.enabled = before
        self._long(MIXED, mixed)
        self._long(PLAIN, plain)
        cells = {name: torch.cat(parts) for name, parts in self._cells.items()}
        self._cells.clear()
        if min(map(len, cells.values()), default=0) >= 4:
            self.cka.add(self._some(cells))
        several = len(mixed) // len(plain)
        if self.mixed.kind.on_grid and len(mixed) == several * len(plain) >= 4 * several:
            self.tokens_cka.add(self._some({PLAIN: plain, MIXED: mixed.view(len(plain), -1)}))

    @torch.no_grad()
    def text(self, ids: Tensor) -> None:
        """Tokens that stand beside the images: the length of their embeddings. Those of images are left out.

        Args:
            ids: (T,)
        """
        embed = self.model.get_input_embeddings()
        words = ids[ids != self.model.config.image_token_id]
        self._long("text", embed(words.to(embed.weight.device)))

    def report(self) -> MixerReport:
        """What all batches together say."""
        return MixerReport(
            kind=type(self.mixed.kind).__name__,
            encoders=[OWN, *(encoder.spec.model for encoder in self.mixed.seeing)],
            num_views=self.num_views,
            watched={name: total / self.num_views for name, total in self._watched.items()},
            lengths={name: total / count for name, (total, count) in self._lengths.items()},
            names=list(self.cka.names),
            cka=self.cka.matrix(),
            tokens_cka=self.tokens_cka.between(PLAIN, MIXED) if self.tokens_cka.names else None,
        )

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Inside, what passes through the mixer is kept; of several copies only the active one runs."""
        copies = [module for module in self.mixed.mixer.modules() if isinstance(module, Mixer)]
        before = [each.watched for each in copies]
        handles = [each.register_forward_hook(self._passed) for each in copies]
        for each in copies:
            each.watched = {}
        try:
            yield
        finally:
            for each, own, handle in zip(copies, before, handles, strict=True):
                each.watched = own
                handle.remove()

    def _passed(self, mixer: Any, args: tuple[Tensor, Sight], output: Tensor) -> None:
        x, sight = args
        for name, value in mixer.watched.items():
            self._watched[name] += float(value) * len(x)
        self.num_views += len(x)
        self._cells[OWN].append(_in_cells(sight.base, sight.cells))
        for number, each in enumerate(sight.extra, 1):
            if each is not None:
                self._cells[f"encoder {number}"].append(_in_cells(each, sight.cells))
        if mixer.on_grid:
            self._cells[MIXED].append(output.reshape(x.shape[0] * x.shape[1], -1))

    def _some(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same rows of each, drawn."""
        count = min(map(len, vectors.values()))
        rows = torch.randperm(count, generator=self.generator)[: self.samples]
        return {name: each[rows.to(each.device)] for name, each in vectors.items()}

    def _long(self, name: str, vectors: Tensor) -> None:
        total, count = self._lengths.get(name, (0.0, 0))
        self._lengths[name] = total + vectors.float().norm(dim=-1).sum().item(), count + len(vectors)


def _in_cells(seen: Map, cells: Cells) -> Tensor:
    """(V * rows * columns, d): the mean of what lies in each cell."""
    values = seen.values
    if seen.cells != cells:
        planes = values.float().transpose(1, 2).unflatten(2, seen.cells)
        values = nn.functional.adaptive_avg_pool2d(planes, cells).flatten(2).transpose(1, 2)
    return values.flatten(0, 1)
