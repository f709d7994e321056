"""ExpertContrast against loops in float64: the adapter, the pairs, the loss, and where its gradient goes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.objectives import ExpertContrast, RegionContrast
from mllm_align.objectives.load import objective_from

BOX = (0.0, 0.0, 0.2, 0.2)
# Row, image, id, text, box.
TOLD: tuple[tuple[Any, ...], ...] = (
    (0, 0, "a", "", BOX),
    (0, 0, "b", "", (0.5, 0.5, 0.9, 0.9)),
    (0, 1, "b", "", BOX),
    (0, 1, "a", "cup", (0.5, 0.0, 0.9, 0.4)),
    (0, 1, "c", "Cup", (0.5, 0.5, 0.9, 0.9)),
    (1, 0, "a", "", BOX),
    (1, 1, "a", "", BOX),
    (1, 1, "d", "", (0.5, 0.5, 0.9, 0.9)),
    (1, 1, "", "", (0.6, 0.0, 0.9, 0.3)),
    (2, 0, "alone", "", BOX),
)
WIDTHS = (4, 6)


def told() -> Regions:
    row, image, ids, texts, boxes = zip(*TOLD, strict=True)
    return Regions(row, image, boxes, ids, texts, ("",) * len(TOLD))


def ready(**options: Any) -> ExpertContrast:
    torch.manual_seed(2)
    objective = ExpertContrast("expert", **options)
    objective.set_widths({"regions:image": WIDTHS[1], "teacher:expert:image": WIDTHS[0]})
    return objective.double()


def values() -> tuple[torch.Tensor, torch.Tensor]:
    drawing = torch.Generator().manual_seed(3)
    return tuple(torch.randn(len(TOLD), width, generator=drawing, dtype=torch.float64) for width in WIDTHS)


def signals(expert: torch.Tensor, seen: torch.Tensor) -> Signals:
    row = torch.tensor([entry[0] for entry in TOLD])
    features = {"regions:image": Ragged(seen, row), "teacher:expert:image": Ragged(expert, row)}
    return Signals({}, {}, features=features, sources=("x",) * 3, regions={"image": told()})


def adapted(objective: ExpertContrast, value: torch.Tensor) -> list[float]:
    """Layer norm, linear, GELU, linear, number by number."""
    state = {name: tensor.tolist() for name, tensor in objective.adapter.state_dict().items()}
    numbers = value.tolist()
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in numbers) / len(numbers) + 1e-5)
    scaled = [
        (each - mean) / deviation * gain + shift
        for each, gain, shift in zip(numbers, state["0.weight"], state["0.bias"], strict=True)
    ]

    def linear(name: str, given: list[float]) -> list[float]:
        weights, biases = state[f"{name}.weight"], state[f"{name}.bias"]
        return [
            sum(w * each for w, each in zip(row, given, strict=True)) + bias
            for row, bias in zip(weights, biases, strict=True)
        ]

    hidden = [each * 0.5 * (1 + math.erf(each / math.sqrt(2))) for each in linear("1", scaled)]
    return linear("3", hidden)


def is_positive(one: Any, other: Any) -> bool:
    return one[0] == other[0] and one[1] != other[1] and one[2] == other[2] != ""


def is_negative(one: Any, other: Any, scope: str) -> bool:
    """None of these regions lies within another one of its image."""
    if one[3] and one[3].lower() == other[3].lower():
        return False
    if one[0] != other[0]:
        return scope == "batch"
    return one[2] != other[2] and (one[1] != other[1] or scope != "pair")


@pytest.mark.parametrize(
    ("scope", "normalise", "temperature"), [("pair", False, 1.0), ("row", True, 0.2), ("batch", True, 0.5)]
)
def test_the_loss_is_that_of_a_loop(scope: str, normalise: bool, temperature: float) -> None:
    objective = ready(negatives=scope, normalise=normalise, temperature=temperature)
    expert, seen = values()
    outcome = objective(signals(expert, seen), None)
    losses, right, counts = [], [], []
    for n, one in enumerate(TOLD):
        anchor = adapted(objective, expert[n])
        similar = []
        for m in range(len(TOLD)):
            key = seen[m].tolist()
            dot = sum(a * b for a, b in zip(anchor, key, strict=True))
            norms = math.sqrt(sum(a * a for a in anchor)) * math.sqrt(sum(b * b for b in key))
            similar.append(dot / norms if normalise else dot)
        positives = [m for m, other in enumerate(TOLD) if is_positive(one, other)]
        negatives = [m for m, other in enumerate(TOLD) if m != n and is_negative(one, other, scope)]
        if not positives or not negatives:
            continue
        (k,) = positives
        losses.append(math.log(1 + sum(math.exp((similar[m] - similar[k]) / temperature) for m in negatives)))
        right.append(float(similar[k] > max(similar[m] for m in negatives)))
        counts.append(float(len(negatives)))
    (term,) = outcome.terms
    # Both views of a row are anchors in turn.
    assert term.count == len(losses) >= 5
    assert term.sum.item() == pytest.approx(sum(losses), abs=1e-6)
    assert outcome.metrics["accuracy"].tolist() == right
    assert outcome.metrics["negatives"].tolist() == counts
    assert outcome.metrics["temperature"].item() == pytest.approx(temperature)


def test_pairs_are_those_of_region_contrast() -> None:
    _, seen = values()
    for scope in ("pair", "row", "batch"):
        mine = ready(negatives=scope)(signals(values()[0], seen), None)
        theirs = RegionContrast(negatives=scope)(signals(values()[0], seen), None)
        assert mine.metrics["negatives"].tolist() == theirs.metrics["negatives"].tolist()
        assert mine.terms[0].count == theirs.terms[0].count > 0


def test_swapping_the_sides_is_another_loss() -> None:
    """It is one-sided: the anchor is the expert's, keys are the LVLM's."""
    objective = ready(negatives="pair", normalise=False, temperature=1.0)
    expert, seen = values()
    before = objective(signals(expert, seen), None).loss
    moved = seen.clone()
    moved[9] += 5  # alone on its image and in its row: nobody's key within a pair
    assert torch.equal(objective(signals(expert, moved), None).loss, before)
    moved = expert.clone()
    moved[4] += torch.randn(WIDTHS[0])  # "c" has no partner: it is no anchor, though the LVLM's "c" is a key
    assert torch.equal(objective(signals(moved, seen), None).loss, before)
    moved = seen.clone()
    moved[4] += 1
    assert not torch.equal(objective(signals(expert, moved), None).loss, before)


@pytest.mark.parametrize("train_keys", [True, False])
def test_gradients_are_those_of_finite_differences(train_keys: bool) -> None:
    objective = ready(negatives="row", train_keys=train_keys, normalise=False, temperature=2.0)
    expert, seen = values()
    names = [name for name, _ in objective.named_parameters()]

    def loss(keys: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(objective, state, (signals(expert, keys), None)).loss

    parameters = [each.detach().clone().requires_grad_() for each in objective.parameters()]
    if train_keys:
        assert torch.autograd.gradcheck(loss, (seen.requires_grad_(), *parameters))
        return
    assert torch.autograd.gradcheck(lambda *each: loss(seen, *each), tuple(parameters))
    loss(seen.requires_grad_(), *parameters).backward()
    assert seen.grad is None
    assert all(each.grad is not None for each in parameters)


def test_the_preset() -> None:
    objective = objective_from({"name": "expert_contrast.colva", "teacher": {"model": "expert", "size": 32}})
    assert (objective.negatives, objective.normalise, objective.train_keys) == ("pair", False, False)
    assert objective.log_scale.item() == 0
    assert not objective.log_scale.requires_grad
    feature = objective.needs.features[1]
    assert (feature.source, feature.pooling, feature.teacher.size) == ("teacher", "regions", 32)


def test_what_it_keeps() -> None:
    objective = ExpertContrast("expert")
    assert objective.keeps == ()
    objective.set_widths({"regions:image": 6, "teacher:expert:image": 4})
    ((teacher, adapter),) = objective.keeps
    assert (teacher.model, adapter.widths) == ("expert", (4, 6))
    objective.set_widths({"regions:image": 6, "teacher:expert:image": 4})
    assert objective.keeps[0].adapter is adapter
    with pytest.raises(ValueError, match=r"made for widths \(4, 6\), not \(4, 7\)"):
        objective.set_widths({"regions:image": 7, "teacher:expert:image": 4})


def test_nothing_to_contrast_is_zero_with_the_parameters_in_the_graph() -> None:
    objective = ready()
    nothing = objective(Signals({}, {}, sources=("x",)), None)
    assert (nothing.loss.item(), nothing.terms[0].count.item()) == (0, 0)
    nothing.loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "all"}, "negatives must be one of pair, row, batch, got 'all'"),
        ({"columns": ("images",)}, r"columns must be among image, contrast_image, got \('images',\)"),
        ({"temperature": 0.001}, "temperature must be at least 0.01"),
        ({"train_keys": 1}, "train_keys must be true or false"),
        ({"teacher": {"model": "x", "kind": "document"}}, "reads words; an expert is a vision model"),
        ({"teacher": {}}, "ExpertContrast: teacher must be"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertContrast(**options)


def test_an_adapter_must_be_there() -> None:
    with pytest.raises(ValueError, match="its adapter is not made: call set_widths"):
        ExpertContrast()(signals(*values()), None)
