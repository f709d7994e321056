"""X-Former against its equations in loops, with and without the autoencoder, and what words may change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm_align.trainers.x_former import masks
from mllm_align.vision.mixers import Map, Sight, Widths, make_mixer
from mllm_align.vision.mixers.q_former import Attention, FeedForward
from mllm_align.vision.mixers.x_former import CrossBlock, XFormer

WIDTHS = Widths(base=12, place=10, language=10, extra=(6,))
OPTIONS = {"num_queries": 3, "width": 8, "depth": 3, "heads": 2}


def made(**changes: object) -> XFormer:
    """In float64, with weights so large that everything counts."""
    torch.manual_seed(0)
    mixer = XFormer(WIDTHS, **{**OPTIONS, **changes}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, 0.5)
    return mixer.eval()


def seen(detail: bool = True, cells: tuple[int, int] = (2, 3)) -> tuple[Tensor, Sight]:
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(2, 6, 10, dtype=torch.float64)
    base = Map(torch.randn(2, 6, 12, generator=generator, dtype=torch.float64), (2, 3))
    values = torch.randn(2, cells[0] * cells[1], 6, generator=generator, dtype=torch.float64)
    return x, Sight((2, 3), base, (Map(values, cells) if detail else None,))


def attend(attention: Attention, x: Tensor, source: Tensor) -> Tensor:
    """Of one view, vector by vector and head by head."""
    query, key, value = attention.query(x), attention.key(source), attention.value(source)
    size = query.shape[1] // attention.heads
    rows = []
    for one in range(len(x)):
        parts = []
        for head in range(attention.heads):
            own = slice(head * size, (head + 1) * size)
            scores = [float(query[one, own] @ key[other, own]) / math.sqrt(size) for other in range(len(source))]
            total = sum(math.exp(score) for score in scores)
            parts.append(sum(math.exp(score) / total * value[at, own] for at, score in enumerate(scores)))
        rows.append(torch.cat(parts))  # type: ignore[arg-type]
    return attention.output(torch.stack(rows))


def fed(part: FeedForward, x: Tensor) -> Tensor:
    return part.norm(x + part.down(F.gelu(part.up(x))))


def crossed(block: CrossBlock, x: Tensor, source: Tensor) -> Tensor:
    x = x + attend(block.attention, block.norm(x), block.source_norm(source))
    return x + block.down(F.gelu(block.up(block.feedforward_norm(x))))


def expected(mixer: XFormer, sight: Sight) -> Tensor:
    found = []
    for view in range(len(sight.base.values)):
        base = mixer.q_former.base_norm(sight.base.values[view])
        queries = mixer.q_former.norm(mixer.q_former.queries)
        layers: Any = mixer.q_former.layers
        for number, layer in enumerate(layers):
            queries = layer.norm(queries + attend(layer.attention, queries, queries))
            if number % 2 == 0:
                queries = layer.cross_norm(queries + attend(layer.cross, queries, base))
            queries = fed(layer.feedforward, queries)
        if (detail := sight.extra[0]) is not None:
            enriched = crossed(mixer.dual.to_detail, detail.values[view], queries)
            queries = crossed(mixer.dual.to_queries, queries, enriched)
        found.append(mixer.to_language(queries))
    return torch.stack(found)


@pytest.mark.parametrize("detail", [True, False])
@torch.no_grad()
def test_it_is_what_its_equations_say(detail: bool) -> None:
    mixer, (x, sight) = made(), seen(detail)
    torch.testing.assert_close(mixer(x, sight), expected(mixer, sight), rtol=1e-9, atol=1e-9)


def test_gradient() -> None:
    mixer, (x, sight) = made(depth=1), seen()

    def run(base: Tensor, detail: Tensor) -> Tensor:
        return mixer(x, Sight(sight.cells, Map(base, (2, 3)), (Map(detail, (2, 3)),)))

    given = [each.values.clone().requires_grad_() for each in (sight.base, sight.extra[0]) if each is not None]
    assert torch.autograd.gradcheck(run, given)


def test_tokens_are_the_queries_and_the_autoencoder_has_its_own_grid() -> None:
    mixer, (x, sight) = made(detail_cells=[4, 2]), seen(cells=(4, 2))
    assert mixer.num_tokens((24, 24)) == 3
    assert mixer.wants((2, 3)) == [(4, 2)]
    assert mixer(x, sight).shape == (2, 3, 10)
    with pytest.raises(ValueError, match="4 x 2 cells expected"):
        mixer(*seen())
    again = make_mixer("x_former", WIDTHS, mixer.options).double()
    again.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(again(x, sight), mixer(x, sight), rtol=0, atol=0)


@pytest.mark.parametrize("width", [96, 768])
def test_at_every_width_attention_begins_as_sharp_as_berts(width: int) -> None:
    torch.manual_seed(0)
    mixer = XFormer(Widths(base=width, place=width, language=10, extra=(width,)), width=width, depth=1, heads=4)
    if width == 768:
        assert mixer.dual.to_detail.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    unit = F.layer_norm(torch.randn(64, width), (width,))
    for attention in (mixer.q_former.layers[0].cross, mixer.dual.to_detail.attention, mixer.dual.to_queries.attention):
        scores = attention.query(unit) @ attention.key(unit).T / width**0.5  # type: ignore[union-attr, operator]
        assert scores.std().item() == pytest.approx(0.02**2 * 768, rel=0.15)
        assert attention.query.bias.abs().max() == 0  # type: ignore[union-attr, operator]


def test_left_out_by_dropout_is_as_switched_off_with_gradients() -> None:
    mixer = made(encoder_dropout=0.999).train()
    torch.manual_seed(0)
    found = mixer(*seen())
    torch.testing.assert_close(found, mixer(*seen(detail=False)))
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in mixer.parameters())


def test_half_precision_stays_outside() -> None:
    mixer, (x, sight) = made().float(), seen()
    halves = [Map(each.values.bfloat16(), each.cells) for each in (sight.base, sight.extra[0]) if each is not None]
    assert mixer(x.bfloat16(), Sight((2, 3), halves[0], (halves[1],))).dtype == torch.bfloat16


@pytest.mark.parametrize("mask", [masks.unimodal, masks.bidirectional, masks.causal])
@torch.no_grad()
def test_what_words_change(mask: Any) -> None:
    """Another word, and another picture: whose states move is what the mask says, through all layers."""
    mixer = made()
    words, present = torch.randn(1, 4, 8, dtype=torch.float64), torch.tensor([[True, True, True, False]])
    feedforwards = nn.ModuleList(FeedForward(8, 8) for _ in range(3)).double()
    visible = mask(3, present)
    base, other = torch.randn(2, 1, 6, 12, dtype=torch.float64)
    changed = words.clone()
    changed[:, 2] += 1
    padded = words.clone()
    padded[:, 3] += 1

    def moved(base: Tensor, words: Tensor) -> tuple[list[bool], list[bool]]:
        states = mixer.q_former(base, words, visible, feedforwards)
        deltas = [(a - b).abs().amax(dim=(0, 2)) > 1e-9 for a, b in zip(states, usual, strict=True)]
        return deltas[0].tolist(), deltas[1].tolist()[:3]

    usual = mixer.q_former(base, words, visible, feedforwards)
    by_word, by_picture = moved(base, changed), moved(other, words)
    assert moved(base, padded) == ([False] * 3, [False] * 3)
    assert by_picture[0] == [True] * 3
    meant = {
        masks.unimodal: ([False] * 3, [True] * 3, [False] * 3),
        masks.bidirectional: ([True] * 3, [True] * 3, [True] * 3),
        masks.causal: ([False] * 3, [False, False, True], [True] * 3),
    }
    assert (*by_word, by_picture[1]) == meant[mask]


@pytest.mark.parametrize(
    ("widths", "options", "said"),
    [
        (WIDTHS._replace(extra=(6, 6)), OPTIONS, "one further encoder"),
        (WIDTHS, OPTIONS | {"heads": 3}, "3 heads do not divide the width 8"),
        (WIDTHS, OPTIONS | {"depth": 0}, "depth"),
        (WIDTHS, OPTIONS | {"detail_cells": [4]}, "rows and columns"),
    ],
)
def test_what_cannot_be_built_is_refused(widths: Widths, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_mixer("x_former", widths, options)
