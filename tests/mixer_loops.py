"""What mixers are tested with: drawn inputs, and their parts once more in float64, one vector at a time, in loops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mllm_align.vision.mixers import Cells, Map, Mixer, Sight, Widths

Vector = list[float]
Kind = TypeVar("Kind", bound=Mixer)

WIDTHS = Widths(base=6, place=6, language=6, extra=(5, 4))
CELLS: Cells = (2, 3)


def sight(
    mixer: Mixer,
    *,
    cells: Cells = CELLS,
    views: int = 2,
    off: Sequence[int] = (),
    base_side: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
) -> tuple[Tensor, Sight]:
    """What `mixer` reads, drawn; the encoders in `off` (from 0) are switched off, the others' values are the same."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(of: Cells, width: int) -> Tensor:
        return torch.randn(views, of[0] * of[1], width, generator=generator, dtype=torch.float64).to(dtype)

    fine = (cells[0] * base_side, cells[1] * base_side)
    x, base = drawn(cells, mixer.widths.place), Map(drawn(fine, mixer.widths.base), fine)
    extra = [
        Map(drawn(of, width), (of[0], of[1])) for of, width in zip(mixer.wants(cells), mixer.widths.extra, strict=True)
    ]
    return x, Sight(cells, base, tuple(None if k in off else each for k, each in enumerate(extra)))


def weighty(mixer: Kind, seed: int = 2) -> Kind:
    """In float64, in evaluation, with weights so large that everything counts."""
    generator = torch.Generator().manual_seed(seed)
    mixer.double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    return mixer


def gradients_check(mixer: Mixer, x: Tensor, seen: Sight) -> bool:
    """Whether gradients of inputs and of all parameters are those of finite differences."""
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    maps = [each for each in (seen.base, *seen.extra) if each is not None]

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        values = iter(rest)
        base, *extra = (None if each is None else Map(next(values), each.cells) for each in (seen.base, *seen.extra))
        assert base is not None
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(mixer, given, (x, Sight(seen.cells, base, tuple(extra))))

    given = [x, *(each.values for each in maps), *parameters]
    return torch.autograd.gradcheck(run, [each.detach().clone().requires_grad_() for each in given])


def linear(layer: Any, x: Vector) -> Vector:
    rows = layer.weight.tolist()
    biases = [0.0] * len(rows) if layer.bias is None else layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(rows, biases, strict=True)]


def gelu(x: Vector) -> Vector:
    return [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]


def layer_norm(layer: Any, x: Vector) -> Vector:
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
    return [(v - mean) / spread * w + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def two_layers(first: Any, second: Any, x: Vector) -> Vector:
    return linear(second, gelu(linear(first, x)))


def plus(*vectors: Vector) -> Vector:
    return [sum(values) for values in zip(*vectors, strict=True)]


def times(number: float, x: Vector) -> Vector:
    return [number * v for v in x]


def norm(x: Vector) -> float:
    return math.sqrt(sum(v * v for v in x))


def in_cell(values: list[Vector], cells: Cells, side: int, cell: tuple[int, int]) -> list[Vector]:
    """What of a grid that is `side` times as fine lies in one cell, row by row."""
    (_, columns), (row, column) = cells, cell
    return [
        values[(row * side + down) * columns * side + column * side + across]
        for down in range(side)
        for across in range(side)
    ]


def attend(attention: Any, query: Vector, sources: Mapping[int, list[Vector]]) -> tuple[Vector, dict[int, float]]:
    """One query, one softmax over all that all sources have, head by head; and what part of it each source had."""

    def through(normed: nn.Sequential, x: Vector) -> Vector:
        return linear(normed[1], layer_norm(normed[0], x))

    asked = through(attention.query, query)
    size = len(asked) // attention.heads
    keys = [(which, through(attention.key[which], has)) for which, all_of in sources.items() for has in all_of]
    values = [through(attention.value[which], has) for which, all_of in sources.items() for has in all_of]
    out, parts = list[float](), dict.fromkeys(sources, 0.0)
    for head in range(attention.heads):
        own = range(head * size, (head + 1) * size)
        raw = [math.exp(sum(asked[i] * key[i] for i in own) / math.sqrt(size)) for _, key in keys]
        weights = [each / sum(raw) for each in raw]
        out += [sum(weight * value[i] for weight, value in zip(weights, values, strict=True)) for i in own]
        for weight, (which, _) in zip(weights, keys, strict=True):
            parts[which] += weight / attention.heads
    return out, parts


def aggregator_layer(
    layer: Any, query: Vector, context: Vector, sources: Mapping[int, list[Vector]]
) -> tuple[Vector, dict[int, float]]:
    """Of SVA: q' = W_in [q; W_ctx g], h = LN(q' + W_o attention), q + MLP(h); and what part of it each source had."""
    joined = linear(layer.join, query + linear(layer.context, context))
    placed = {
        k: [plus(has, layer.positions[str(k)][at].tolist()) for at, has in enumerate(all_of)]
        if len(all_of) > 1
        else all_of
        for k, all_of in sources.items()
    }
    attended, parts = attend(layer.attention, joined, placed)
    hidden = layer_norm(layer.norm, plus(joined, linear(layer.out, attended)))
    return plus(query, two_layers(layer.mlp[0], layer.mlp[2], hidden)), parts
