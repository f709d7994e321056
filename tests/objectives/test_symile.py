"""Three sides at once against loops in float64, both kinds of negatives, and a fact that no two of the sides tell."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import mllm_align.objectives.symile as file
from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import Symile
from mllm_align.objectives.info_nce import info_nce
from mllm_align.objectives.symile import against_all, against_shuffled

WIDTH = 5


def drawn(count: int, seed: int = 0, width: int = WIDTH) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(3)]


def signals(values: list[torch.Tensor], rows: Any = None, size: int | None = None, ids: Any = ()) -> Signals:
    names = [feature.name for feature in Symile().needs.features]
    every = rows or [range(len(value)) for value in values]
    features = {
        name: Ragged(value, torch.tensor(list(of), dtype=torch.long))
        for name, value, of in zip(names, values, every, strict=True)
    }
    return Signals({}, {}, features=features, sources=("a",) * (size or len(values[0])), row_ids=tuple(ids))


def product(*vectors: torch.Tensor) -> float:
    return sum(math.prod(entries) for entries in zip(*(vector.tolist() for vector in vectors), strict=True))


def units(values: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    return [[vector / vector.norm() for vector in side] for side in values]


def slow(sides: list[list[torch.Tensor]], scale: float) -> float:
    """The sum over rows of the mean over anchors, each told from all pairs of the others."""
    number, total = len(sides[0]), 0.0
    for place in range(3):
        x, y, z = sides[place], sides[(place + 1) % 3], sides[(place + 2) % 3]
        for i in range(number):
            below = sum(math.exp(scale * product(x[i], y[j], z[k])) for j in range(number) for k in range(number))
            total += (math.log(below) - scale * product(x[i], y[i], z[i])) / 3
    return total


# Of four rows what each side read: rows 0 and 1 have one image, 1 and 2 one text, 0, 1 and 3 one third.
READ = ([0, 0, 2, 3], [0, 1, 1, 3], [0, 0, 2, 0])


def left_out(read: Any, i: int, j: int, k: int) -> bool:
    """Whether a pair is not the anchor's own and yet that of a row with its value."""
    x, y, z = read
    true = any((x[i], y[j], z[k]) == (x[r], y[r], z[r]) for r in range(len(x)))
    return true and (j, k) != (i, i)


@pytest.mark.parametrize("room", [1 << 22, 1])
def test_pairs_that_are_true_of_an_anchor_are_left_out(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "ROOM", room)
    x, y, z = drawn(4)
    kinds = [torch.tensor(own) for own in READ]
    scale = torch.tensor(0.5, dtype=torch.float64)
    of_all = against_all(x.requires_grad_(), y, z, scale, kinds)
    orders = [1, 0, 3, 2], [0, 3, 2, 1]
    of_some = against_shuffled(x, y, z, scale, orders, kinds)
    skipped = 0
    for i in range(4):
        right = math.exp(0.5 * product(x[i], y[i], z[i]))
        pairs = [(j, k) for j in range(4) for k in range(4) if not left_out(READ, i, j, k)]
        skipped += 16 - len(pairs)
        below = sum(math.exp(0.5 * product(x[i], y[j], z[k])) for j, k in pairs)
        assert of_all[i].item() == pytest.approx(math.log(below / right), abs=1e-9)
        drawn_pairs = [(j, k) for place, (j, k) in enumerate(zip(*orders, strict=True)) if place != i]
        kept = [(j, k) for j, k in drawn_pairs if (j, k) != (i, i) and not left_out(READ, i, j, k)]
        below = right + sum(math.exp(0.5 * product(x[i], y[j], z[k])) for j, k in kept)
        assert of_some[i].item() == pytest.approx(math.log(below / right), abs=1e-9)
    assert skipped > 10
    of_all.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("room", [1 << 22, 1])
def test_the_term_is_that_of_a_loop_however_many_anchors_fit(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "ROOM", room)
    values = drawn(4)
    (term,) = Symile(temperature=0.2)(signals(values), None).terms
    assert (term.name, int(term.count)) == ("symile", 4)
    assert term.sum.item() == pytest.approx(slow(units(values), 5.0), rel=1e-6)


def test_rows_without_all_sides_take_no_part() -> None:
    values = drawn(3, seed=1)
    rows = ([4, 0, 2], [2, 4, 1], [2, 1, 4])
    (term,) = Symile(temperature=0.2)(signals(values, rows, 5), None).terms
    both = [[side[rows[place].index(row)] for row in (2, 4)] for place, side in enumerate(units(values))]
    assert int(term.count) == 2
    assert term.sum.item() == pytest.approx(slow(both, 5.0), rel=1e-6)
    for nothing in (Signals({}, {}, sources=("a",)), signals(values, ([0, 1, 2], [3, 4, 5], [0, 1, 2]), 6)):
        outcome = Symile()(nothing, None)
        assert (outcome.loss.item(), int(outcome.terms[0].count)) == (0, 0)
        outcome.loss.backward()


def test_constant_similarities_are_worth_two_logs() -> None:
    """Of all pairs there are N squared."""
    same = [torch.ones(7, WIDTH, dtype=torch.float64)] * 3
    assert Symile()(signals(same), None).loss.item() == pytest.approx(2 * math.log(7))
    assert Symile(negatives="n")(signals(same), None).loss.item() < math.log(7) + 1e-6


def test_own_is_right_where_it_is_better_than_all_others_of_its_side() -> None:
    same = [torch.ones(4, WIDTH)] * 3
    told = Symile()(signals(same), None).metrics
    assert [told[f"accuracy/{side}"].tolist() for side in file.SIDES] == [[0.0] * 4] * 3
    values, size = drawn(6, seed=2), 6
    found, sides = Symile()(signals(values), None).metrics, units(values)
    right = 0.0
    for place, name in enumerate(file.SIDES):
        x, y, z = sides[place], sides[(place + 1) % 3], sides[(place + 2) % 3]
        table = [[product(x[j], y[i], z[i]) for j in range(size)] for i in range(size)]
        expected = [float(all(row[i] > row[j] for j in range(size) if j != i)) for i, row in enumerate(table)]
        assert found[f"accuracy/{name}"].tolist() == expected
        right += sum(expected)
    assert 0 < right < 3 * size


def test_with_a_third_side_of_ones_it_is_info_nce_and_a_log() -> None:
    images, texts, _ = (torch.nn.functional.normalize(value, dim=1) for value in drawn(6))
    ones, scale = torch.ones_like(images), torch.tensor(4.0, dtype=torch.float64)
    both = 0.5 * (against_all(images, texts, ones, scale) + against_all(texts, ones, images, scale))
    expected, _ = info_nce(images, texts, torch.ones(6, dtype=torch.bool), scale)
    torch.testing.assert_close(both, expected + math.log(6))


def test_shuffled_negatives_are_those_of_a_loop() -> None:
    x, y, z = drawn(5)
    # The fourth place has the second row's own pair, the first place the first row's.
    orders = ([0, 3, 4, 1, 2], [0, 2, 3, 1, 4])
    found = against_shuffled(x, y, z, torch.tensor(0.5, dtype=torch.float64), orders)
    for i in range(5):
        places = [j for j in range(5) if j != i and not orders[0][j] == orders[1][j] == i]
        right = math.exp(0.5 * product(x[i], y[i], z[i]))
        others = [math.exp(0.5 * product(x[i], y[orders[0][j]], z[orders[1][j]])) for j in places]
        assert len(others) == (3 if i == 1 else 4)
        assert found[i].item() == pytest.approx(-math.log(right / (right + sum(others))), rel=1e-9)


def test_draws_hang_on_the_seed_and_on_what_rows_there_are() -> None:
    objective = Symile(negatives="n", temperature=0.2)
    given = signals(drawn(6), ids=[f"row {number}" for number in range(6)])
    loss = objective(given, None).loss
    assert objective(given, None).loss == loss
    torch.testing.assert_close(objective(given.select([3, 0, 5, 1, 4, 2]), None).loss, loss)
    assert Symile(negatives="n", temperature=0.2, seed=1)(given, None).loss != loss
    others = replace(given, row_ids=tuple(f"other {number}" for number in range(6)))
    assert objective(others, None).loss != loss


@pytest.mark.parametrize("negatives", ["n_squared", "n"])
@pytest.mark.parametrize("dim", [None, 2])
def test_gradients(negatives: str, dim: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "ROOM", 16)
    torch.manual_seed(0)
    objective = Symile(negatives=negatives, temperature=0.5, dim=dim)
    with pytest.raises(ValueError, match="set_widths") if dim else pytest.MonkeyPatch.context():
        objective(signals(drawn(2)), None)
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    objective.double()
    values = [value.requires_grad_() for value in drawn(3)]
    assert torch.autograd.gradcheck(lambda *given: objective(signals(list(given)), None).loss, values)
    objective(signals(values), None).loss.backward()
    assert len(list(objective.parameters())) == (4 if dim else 1)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in objective.parameters())


def learnt(loss_of: Any) -> list[torch.Tensor]:
    """Vectors of both values of three bits, the third of which is the exclusive or of the others."""
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(2, 8, generator=generator).requires_grad_() for _ in range(3)]
    optimizer = torch.optim.Adam(tables, lr=0.05)
    for _ in range(60):
        first, second = torch.randint(2, (2, 24), generator=generator)
        loss = loss_of([table[bits] for table, bits in zip(tables, (first, second, first ^ second), strict=True)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [torch.nn.functional.normalize(table.detach(), dim=1) for table in tables]


def test_an_exclusive_or_is_learnt_by_the_product_and_by_no_pair() -> None:
    combinations = [(0, 0), (0, 1), (1, 0), (1, 1)]

    def share_right(scores: list[torch.Tensor]) -> float:
        right = [int(own.argmax()) == a ^ b for own, (a, b) in zip(scores, combinations, strict=True)]
        return sum(right) / 4

    for negatives in ("n_squared", "n"):
        objective = Symile(negatives=negatives, temperature=0.1, learn_temperature=False)
        x, y, z = learnt(lambda sides, objective=objective: objective(signals(sides), None).loss)
        assert share_right([z @ (x[a] * y[b]) for a, b in combinations]) == 1.0
        assert min(abs(float(z[0] @ (x[a] * y[b]) - z[1] @ (x[a] * y[b]))) for a, b in combinations) > 0.4

    def pairwise(sides: list[torch.Tensor]) -> torch.Tensor:
        units = [torch.nn.functional.normalize(side, dim=1) for side in sides]
        present, scale = torch.ones(len(units[0]), dtype=torch.bool), torch.tensor(10.0)
        pairs = ((0, 1), (1, 2), (0, 2))
        return sum((info_nce(units[a], units[b], present, scale)[0].mean() for a, b in pairs), torch.zeros(()))

    x, y, z = learnt(pairwise)
    # What two cosines add up to is no exclusive or, whatever the vectors are.
    assert share_right([z @ (x[a] + y[b]) for a, b in combinations]) <= 0.75
    # Nor do the vectors hold it: their product is about the same for both values.
    assert max(abs(float(z[0] @ (x[a] * y[b]) - z[1] @ (x[a] * y[b]))) for a, b in combinations) < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "all"}, "Symile: negatives must be 'n_squared' or 'n', got 'all'"),
        ({"third": "caption"}, "Symile: third must be another column than text, got 'caption' twice"),
        ({"third": "image"}, "Symile: text must be a column of texts, got 'image'"),
        ({"pooling": "query"}, "Symile: pooling must be 'last' or 'mean', got 'query'"),
        ({"dim": 0}, "Symile: dim must be a whole number above 0, or nothing for no heads, got 0"),
        ({"temperature": 0.001}, "Symile: temperature must be at least 0.01, got 0.001"),
        ({"learn_temperature": 1}, "Symile: learn_temperature must be true or false, got 1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Symile(**options)
