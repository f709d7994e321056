"""Keys of earlier batches: first in, first out; who is a negative of whom, against loops; resuming."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.objectives import NextToken, RegionContrast, Weighted
from mllm_align.objectives.identity import Ids
from mllm_align.objectives.memory import Memory, exchange, numbers_of
from mllm_align.trainers.checkpoint import load_objective, save_objective
from runs import make_trainer
from two_pictures import rows_of_two_pictures

TEXTS = ("cup", "Cup", "", "plate", "", "tree")


def test_the_oldest_go_first() -> None:
    memory, kept = Memory(5, 2), deque[tuple[float, int]](maxlen=5)
    number = 0
    for count in (2, 0, 4, 1, 7, 3):
        values = [float(number + n) for n in range(count)]
        rows = torch.tensor([int(value) + 100 for value in values], dtype=torch.long)
        memory.add(torch.tensor(values)[:, None].expand(-1, 2), rows, rows + 1)
        kept.extend((value, int(value) + 100) for value in values)
        number += count
        filled = memory.filled()
        assert filled.sum() == len(kept)
        found = zip(memory.keys[filled, 0].tolist(), memory.rows[filled].tolist(), strict=True)
        assert sorted(found) == sorted(kept)
        assert torch.equal(memory.texts[filled], memory.rows[filled] + 1)


def test_numbers_are_of_the_name_alone() -> None:
    first, second = numbers_of(["a", "", "b"]), numbers_of(["b", "a"])
    assert first[1] == 0
    assert (first[0], first[2]) == (second[1], second[0])
    assert first[0] != first[2]


def batch(number: int, ids: tuple[str, ...]) -> Signals:
    """Two rows, each with one thing in two images, and another in the second."""
    entries = [
        (row, image, name, TEXTS[(number + 3 * row + image + (name == "b")) % 6])
        for row in range(2)
        for image, name in ((0, "a"), (1, "a"), (1, "b"))
    ]
    row, image, things, texts = zip(*entries, strict=True)
    boxes = tuple((0.3 * n % 1, 0.0, 0.3 * n % 1 + 0.1, 0.1) for n in range(6))
    generator = torch.Generator().manual_seed(number)
    values = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    regions = Regions(row, image, boxes, things, texts, ("",) * 6)
    return Signals(
        {}, {}, features={"regions:image": Ragged(values, torch.tensor(row))}, sources=("x", "x"), row_ids=ids,
        regions={"image": regions},
    )  # fmt: skip


def test_losses_are_those_of_loops_over_a_list() -> None:
    objective = RegionContrast(temperature=0.5, memory=8)
    objective.set_widths({"regions:image": 4})
    objective.double()
    earlier: list[tuple[torch.Tensor, str, str]] = []
    rows = (("r0", "r1"), ("r2", "r0"), ("r1", "r3"), ("r4", "r0"))
    for number, ids in enumerate(rows):
        given = batch(number, ids)
        told, ragged = given.regions["image"], given.features["regions:image"]
        unit = [value / math.sqrt(float(value @ value)) for value in ragged.values.detach()]
        expected = []
        for n in range(6):
            positives = [m for m in range(6) if m != n and (told.row[m], told.object_ids[m]) == (told.row[n], "a")]
            if told.object_ids[n] != "a":
                continue
            below = 0.0
            for m in range(6):
                same = told.texts[n] and told.texts[n].lower() == told.texts[m].lower()
                one_thing = told.row[n] == told.row[m] and told.object_ids[n] == told.object_ids[m]
                if not (m == n or same or one_thing):
                    below += math.exp(float(unit[n] @ unit[m]) / 0.5)
            for vector, row, text in earlier[-8:]:
                if row != ids[told.row[n]] and not (text and text.lower() == told.texts[n].lower()):
                    below += math.exp(float(unit[n] @ vector) / 0.5)
            above = [math.exp(float(unit[n] @ unit[p]) / 0.5) for p in positives]
            expected.append(sum(math.log((value + below) / value) for value in above) / len(above))
        (term,) = objective(given, None).terms
        assert term.count == len(expected) == 4
        assert term.sum.item() == pytest.approx(sum(expected), rel=1e-9)
        term.sum.backward()
        assert ragged.values.grad is not None
        earlier += [(unit[n], ids[told.row[n]], told.texts[n]) for n in range(6)]


def test_nothing_is_kept_in_evaluation() -> None:
    objective = RegionContrast(memory=8).eval()
    objective.set_widths({"regions:image": 4})
    objective(batch(0, ("a", "b")), None)
    assert objective.memory is not None
    assert objective.memory.added == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"memory": -1}, "memory must be a number of keys from 0 up, got -1"),
        ({"memory": 8, "negatives": "pair"}, "no negatives with negatives='pair'"),
    ],
)
def test_options_without_a_meaning(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RegionContrast(**options)


def test_without_room_it_says_so() -> None:
    with pytest.raises(ValueError, match="set_widths"):
        RegionContrast(memory=8)(batch(0, ("a", "b")), None)


def test_a_decoupled_positive_is_not_in_its_own_denominator() -> None:
    given = batch(0, ("a", "b"))
    with_positive, without = (RegionContrast(temperature=1.0, decoupled=way)(given, None) for way in (False, True))
    values = torch.nn.functional.normalize(given.features["regions:image"].values, dim=1).detach()
    positive, negative = RegionContrast().pairs(dict(given.regions), "cpu")
    cosines = values @ values.T
    expected = [
        math.log(sum(math.exp(cosines[n, m]) for m in range(6) if negative[n, m])) - float(cosines[n][positive[n]])
        for n in range(6)
        if positive[n].any()
    ]
    assert without.terms[0].sum.item() == pytest.approx(sum(expected))
    assert without.terms[0].sum < with_positive.terms[0].sum


def test_things_of_one_class_are_told_apart_or_not() -> None:
    given = batch(0, ("a", "b"))
    told = given.regions["image"]
    same = Regions(told.row, told.image, told.boxes, told.object_ids, ("",) * 6, ("vase", "vase", "cup") * 2)
    for way, expected in ((True, 4.0), (False, 2.0)):
        found = RegionContrast(same_class=way).pairs({"image": same}, "cpu")[1].sum(dim=1).float()
        assert found[0] == expected


def test_colva_is_a_raw_product_within_the_pair() -> None:
    objective = RegionContrast.colva()
    assert (objective.negatives, objective.normalise, objective.log_scale.item()) == ("pair", False, 0.0)
    assert not objective.log_scale.requires_grad


def test_a_resumed_run_has_its_memory(tmp_path: Path) -> None:
    def both() -> Weighted:
        return Weighted((RegionContrast(memory=16), 1.0), (NextToken(matched=False), 1.0))

    settings: dict[str, Any] = {"adapter": None, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "a", both(), rows_of_two_pictures(), max_steps=4, **settings)
    whole.train()
    make_trainer(tmp_path / "b", both(), rows_of_two_pictures(), max_steps=2, **settings).train()
    second = make_trainer(tmp_path / "b", both(), rows_of_two_pictures(), max_steps=4, **settings)
    second.train(resume_from_checkpoint=True)
    for one, other in zip(whole.objective.state_dict().values(), second.objective.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert whole.objective.parts[0].objective.memory.added > 16


def test_classes_are_not_told_apart_in_memory_either() -> None:
    given = batch(0, ("a", "b"))
    told = given.regions["image"]
    same = Regions(told.row, told.image, told.boxes, told.object_ids, ("",) * 6, ("vase",) * 6)
    for way, expected in ((True, 6), (False, 0)):
        objective = RegionContrast(same_class=way, memory=8)
        objective.set_widths({"regions:image": 4})
        for ids in (("r0", "r1"), ("r2", "r3")):
            seen = Signals({}, {}, features=given.features, sources=("x", "x"), row_ids=ids, regions={"image": same})
            assert objective.memory is not None
            before = int(objective.memory.filled().sum())
            negatives = objective(seen, None).metrics["negatives"]
            within = RegionContrast(same_class=way)(seen, None).metrics["negatives"]
        assert before == 6
        assert negatives.numel() == 0 or negatives.max() - (within.max() if within.numel() else 0) == expected


def test_a_memory_of_another_size_is_named(tmp_path: Path) -> None:
    for size in (8, 16):
        objective = RegionContrast(memory=size)
        objective.set_widths({"regions:image": 4})
        if size == 8:
            save_objective(objective, str(tmp_path))
    with pytest.raises(ValueError, match=r"'memory.keys' is \(8, 4\), this objective's \(16, 4\)"):
        load_objective(objective, str(tmp_path))


def test_an_earlier_row_with_the_same_text_or_image_is_no_negative() -> None:
    before = Memory(4, 2), Memory(4, 2)
    values, row = torch.randn(3, 2), numbers_of(("a", "b", "c"))
    earlier = Ids.of([11, 12, 0], [21, 22, 0], [], "cpu")
    exchange(before, values, values, row, torch.arange(3), earlier)
    now = Ids.of([12, 13, 0], [25, 21, 0], [], "cpu")
    found = exchange(before, values, values, numbers_of(("d", "e", "f")), None, now)
    for _, counts in found:
        assert counts.tolist() == [[True, False, True, False], [False, True, True, False], [True, True, True, False]]


def test_pairs_are_handed_over_before_their_own_batch_is_kept() -> None:
    before = Memory(3, 2), Memory(3, 2)
    row = numbers_of(("a", "b", ""))
    images, texts = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)
    (_, of_texts), (_, of_images) = exchange(before, images, texts, row, torch.tensor([0, 2]))
    assert not of_texts.any()
    assert not of_images.any()
    for _ in range(2):
        (old_texts, of_texts), (old_images, of_images) = exchange(before, images, texts, row, None)
        assert torch.equal(old_texts[:2], texts[[0, 2]])
        assert torch.equal(old_images[:2], images[[0, 2]])
        # A row does not meet itself; one without a name is known by nothing.
        assert (
            of_texts.tolist() == of_images.tolist() == [[False, True, False], [True, True, False], [True, True, False]]
        )
        assert not old_images.requires_grad
