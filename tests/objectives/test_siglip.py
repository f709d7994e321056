"""SigLIP against loops and the numbers that are known of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import mllm_align.objectives.siglip as file
from live_memory import Largest, kept_for_backward
from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import SigLIP
from mllm_align.objectives.identity import Ids
from mllm_align.objectives.siglip import sigmoid_losses, tiled_sigmoid_losses


def signals(objective: SigLIP, *values: torch.Tensor, rows: tuple[list[int], ...], size: int) -> Signals:
    named = zip(objective.needs.features, values, rows, strict=True)
    features = {feature.name: Ragged(each, torch.tensor(own)) for feature, each, own in named}
    return Signals({}, {}, features=features, sources=("x",) * size)


def at(*numbers: float) -> list[torch.Tensor]:
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


@pytest.mark.parametrize(
    ("count", "expected"), [(2, 10.000091), (7, 10.000318), (256, 10.011622), (2000, 10 + 4.54e-5 + 1999 * 4.54e-5)]
)
def test_nothing_known_yet(count: int, expected: float) -> None:
    """All cosines 0 at the start: log(1 + e^10) + (N - 1) log(1 + e^-10)."""
    losses = sigmoid_losses(torch.zeros(count, count), torch.ones(count, dtype=torch.bool), *at(10.0, -10.0))
    assert losses.mean().item() == pytest.approx(expected, rel=1e-5)


def test_numbers_that_are_known() -> None:
    there = torch.ones(256, dtype=torch.bool)
    found = sigmoid_losses(torch.eye(256, dtype=torch.float64), there, *at(10.0, -10.0)).mean()
    assert found.item() == pytest.approx(0.704724, abs=1e-6)
    even = sigmoid_losses(torch.zeros(7, 7, dtype=torch.float64), there[:7], *at(1.0, 0.0)).mean()
    assert even.item() == pytest.approx(7 * math.log(2))
    cosines = torch.tensor([[0.8, 0.2], [0.1, 0.6]], dtype=torch.float64)
    assert sigmoid_losses(cosines, there[:2], *at(10.0, -10.0)).mean().item() == pytest.approx(3.0727683738, abs=1e-10)


def test_the_objective_is_a_loop_over_pairs() -> None:
    objective = SigLIP(temperature=0.2, bias=-3.0, text_prompt="In one word:", negatives=True)
    images, texts = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    false = torch.randn(3, 4, dtype=torch.float64)
    given = signals(objective, images, texts, false, rows=([4, 0, 2], [2, 4, 1], [0, 2, 2]), size=5)
    outcome = objective(given, None)
    unit = [[v / math.sqrt(float(v @ v)) for v in side] for side in (images, texts, false)]
    # Rows 2 and 4 have both; row 0 has no text, and so nothing of it counts.
    pictures, captions, wrong = [unit[0][2], unit[0][0]], [unit[1][0], unit[1][1]], unit[2][1:]
    expected = 0.0
    for n in range(2):
        for m in range(2):
            logit = 5 * float(pictures[n] @ captions[m]) - 3
            expected += math.log1p(math.exp(-logit if n == m else logit))
        expected += sum(math.log1p(math.exp(5 * float(pictures[n] @ v) - 3)) for v in wrong)
    assert outcome.terms[0].sum.item() == pytest.approx(expected, rel=1e-6)
    assert outcome.terms[0].count.item() == 2
    assert outcome.metrics["bias"].item() == -3
    nearer = all(float(pictures[0] @ captions[0]) > float(pictures[0] @ v) for v in wrong)
    assert outcome.metrics["accuracy/negatives"].tolist() == [float(nearer)]


def test_of_what_was_read_twice_nothing_is_asked() -> None:
    """Rows 0 and 2 have one image, 1 and 2 one text; the second listed text is true of rows 0 and 2."""
    cosines, further = (2 * torch.rand(4, count, dtype=torch.float64) - 1 for count in (4, 2))
    there, counts = torch.tensor([True, True, True, False]), torch.ones(2, dtype=torch.bool)
    ids = Ids.of([1, 0, 1, 2], [0, 5, 5, 6], [(0, 1), (2, 1)], "cpu")
    losses = sigmoid_losses(cosines, there, *at(3.0, -1.0), (further, counts), ids)
    for n in range(3):
        expected = math.log1p(math.exp(1 - 3 * float(cosines[n, n])))
        for m in range(3):
            if m != n and {n, m} not in ({0, 2}, {1, 2}):
                expected += math.log1p(math.exp(3 * float(cosines[n, m]) - 1))
        listed = (0,) if n in (0, 2) else (0, 1)
        expected += sum(math.log1p(math.exp(3 * float(further[n, m]) - 1)) for m in listed)
        assert losses[n].item() == pytest.approx(expected, abs=1e-12)
    assert losses[3] == 0


def test_scores_beyond_what_an_exponential_holds() -> None:
    """At the least temperature e^logit is beyond float32, where all vectors are still alike."""
    cosines = torch.ones(2, 2, requires_grad=True)
    there, scale, bias = torch.ones(2, dtype=torch.bool), torch.tensor(100.0), torch.tensor(-5.0)
    losses = sigmoid_losses(cosines, there, scale, bias, (torch.ones(2, 1), torch.tensor([True])))
    assert losses.tolist() == pytest.approx([190, 190])
    losses.sum().backward()
    torch.testing.assert_close(cosines.grad, 100 * (1 - torch.eye(2)))


def whole_and_tiled(ids: Ids | None, dtype: torch.dtype, tile: int) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Losses and gradients of nine rows, seven of which take part, and five further texts."""
    generator = torch.Generator().manual_seed(0)
    sides = [
        torch.nn.functional.normalize(torch.randn(count, 6, generator=generator, dtype=dtype), dim=1).requires_grad_()
        for count in (9, 9, 5)
    ]
    present, counts = torch.ones(9, dtype=torch.bool), torch.tensor([True, False, True, True, True])
    present[[3, 8]] = False
    scale, bias = (torch.tensor(number, dtype=dtype, requires_grad=True) for number in (7.0, -2.0))
    images, texts, false = sides
    every = (
        sigmoid_losses(images @ texts.T, present, scale, bias, (images @ false.T, counts), ids),
        tiled_sigmoid_losses(images, texts, present, scale, bias, tile, negatives=(false, counts), ids=ids),
    )
    arriving = torch.randn(9, generator=generator, dtype=dtype)
    return [(each, list(torch.autograd.grad((each * arriving).sum(), [*sides, scale, bias]))) for each in every]


@pytest.mark.parametrize("tile", [1, 2, 5, 9, 100])
@pytest.mark.parametrize("twice", [False, True])
def test_tiles_are_the_whole(tile: int, twice: bool) -> None:
    ids = Ids.of([1, 2, 1, 3, 4, 5, 6, 7, 8], [11, 12, 13, 14, 12, 15, 16, 17, 18], [(0, 1), (7, 4)], "cpu")
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        (expected, wanted), (losses, found) = whole_and_tiled(ids if twice else None, dtype, tile)
        torch.testing.assert_close(losses, expected, atol=close, rtol=0)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=10 * close, rtol=close)


def test_the_objective_in_tiles_is_the_objective() -> None:
    generator = torch.Generator().manual_seed(2)
    values = [torch.randn(count, 6, generator=generator) for count in (7, 7, 4)]
    rows, found = (list(range(7)), [1, 0, 2, 3, 4, 6, 5], [0, 0, 3, 6]), []
    for tile in (None, 3):
        objective = SigLIP(text_prompt="In one word:", negatives=True, dimensions=(4,), tile=tile)
        found.append(objective(signals(objective, *values, rows=rows, size=7), None))
    whole, tiled = found
    torch.testing.assert_close(tiled.loss, whole.loss)
    assert tiled.metrics.keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        torch.testing.assert_close(tiled.metrics[name], value)


def test_in_tiles_no_matrix_of_all_pairs_is_made_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself it takes tiles where there are more rows than one holds; one tile is made, and not kept."""
    values = [torch.randn(64, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(2)]
    matrix = 64 * 64
    for objective, whole in ((SigLIP(tile=8), False), (SigLIP(), False), (SigLIP(tile=64), False), (SigLIP(), True)):
        monkeypatch.setattr(file, "TILE", 64 if whole else 8)
        given = signals(objective, *values, rows=(list(range(64)),) * 2, size=64)
        kept = kept_for_backward(lambda run=objective, given=given: run(given, None), ())
        assert (kept < 4 * matrix) != whole
        with Largest() as largest:
            objective(given, None).loss.backward()
        assert (largest.numbers < matrix) != (whole or objective.tile == 64)


def test_gradients() -> None:
    """Of a pair it is -z sigmoid(-z x), whatever the other pairs are."""
    cosines = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    further = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    present, counts = torch.tensor([True, True, False, True]), torch.tensor([True, False, True])
    scale, bias = (each.requires_grad_() for each in at(3.0, -1.0))
    assert torch.autograd.gradcheck(
        lambda c, f, s, b: sigmoid_losses(c, present, s, b, (f, counts)), (cosines, further, scale, bias)
    )
    whole = torch.ones(4, dtype=torch.bool)
    (got,) = torch.autograd.grad(sigmoid_losses(cosines, whole, scale, bias).mean(), cosines)
    sign = 2 * torch.eye(4, dtype=torch.float64) - 1
    logits = (3 * cosines - 1).detach()
    torch.testing.assert_close(got, 3 * -sign * torch.sigmoid(-sign * logits) / 4)


def test_a_constant_in_all_similarities_counts() -> None:
    """Which no softmax sees."""
    cosines, there = torch.randn(4, 4, dtype=torch.float64), torch.ones(4, dtype=torch.bool)
    before, after = (sigmoid_losses(cosines + shift, there, *at(1.0, 0.0)).sum() for shift in (0, 1))
    assert abs(float(after - before)) > 0.1


def test_temperature_and_bias_start_as_published_and_are_learnt_if_asked_for() -> None:
    objective = SigLIP()
    assert objective.log_scale.item() == pytest.approx(math.log(10))
    assert objective.bias.item() == -10
    assert objective.log_scale.requires_grad
    assert objective.bias.requires_grad
    fixed = SigLIP(learn_temperature=False, learn_bias=False)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())


def test_leading_dimensions_are_embeddings_by_themselves() -> None:
    images, texts = torch.randn(3, 6), torch.randn(3, 6)
    rows = ([0, 1, 2], [0, 1, 2])
    found = []
    for size in (2, 4, 6):
        plain = SigLIP()
        found.append(plain(signals(plain, images[:, :size], texts[:, :size], rows=rows, size=3), None).loss.item())
    nested = SigLIP(dimensions=(2, 4))
    nested.set_widths({feature.name: 6 for feature in nested.needs.features})
    assert nested(signals(nested, images, texts, rows=rows, size=3), None).loss.item() == pytest.approx(sum(found) / 3)
    assert nested.embedding.dimensions == (2, 4)


def test_vectors_that_are_all_alike_find_nothing() -> None:
    objective = SigLIP()
    alike = torch.ones(5, 37)
    outcome = objective(signals(objective, alike, alike, rows=(list(range(5)),) * 2, size=5), None)
    assert outcome.metrics["accuracy/image_to_text"].tolist() == [0] * 5
    assert outcome.metrics["ties"].tolist() == [8] * 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 0}, "SigLIP: temperature must be a number above 0, got 0"),
        ({"bias": None}, "SigLIP: bias must be a number, got None"),
        ({"bias": math.inf}, "SigLIP: bias must be a number, got inf"),
        ({"learn_bias": 1}, "SigLIP: learn_bias must be true or false, got 1"),
        ({"negatives": True}, "SigLIP: negatives are read before an instruction: give text_prompt"),
        ({"tile": 0}, "SigLIP: tile must be a whole number above 0, or nothing, got 0"),
        ({"dim": 0}, "SigLIP: dim must be a whole number above 0"),
    ],
)
def test_options_without_a_meaning(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SigLIP(**options)
