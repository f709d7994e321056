"""The contrast of short texts and the prediction of long ones, against loops; rows that have one of both."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Needs, Ragged, Signals, View
from mllm_align.objectives import Discriminative
from mllm_align.objectives.load import objective_from
from mllm_align.objectives.pairs import IMAGE_PROMPT, TEXT_PROMPT

OWN = View("image", "chosen")
WIDTH = 4


def drawn(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(size, WIDTH, generator=generator, dtype=torch.float64) for size in sizes]


def signals(
    needs: Needs, values: list[torch.Tensor], rows: list[list[int]], logps: torch.Tensor | None, counts: Any = ()
) -> Signals:
    features = {
        feature.name: Ragged(value, torch.tensor(of, dtype=torch.long))
        for feature, value, of in zip(needs.features, values, rows, strict=True)
    }
    views = {} if logps is None else {OWN: logps}
    return Signals(views, {view: torch.tensor(counts) for view in views}, features=features, sources=("a",) * 4)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other) / math.sqrt(float(one @ one)) / math.sqrt(float(other @ other))


def sum_of_both(images: torch.Tensor, texts: torch.Tensor, scale: float, false: torch.Tensor | None = None) -> float:
    """Of all pairs -log softmax among texts, with further ones, plus -log softmax among images."""
    total = 0.0
    for k in range(len(images)):
        right = math.exp(scale * cosine(images[k], texts[k]))
        among = sum(math.exp(scale * cosine(images[k], text)) for text in texts)
        among += sum(math.exp(scale * cosine(images[k], text)) for text in (false if false is not None else ()))
        back = sum(math.exp(scale * cosine(image, texts[k])) for image in images)
        total -= math.log(right / among) + math.log(right / back)
    return total


def test_what_it_needs() -> None:
    needs = Discriminative().needs
    image, text = needs.features
    assert (image.source, image.column, image.prompt, image.pooling) == ("embedding", "image", IMAGE_PROMPT, "last")
    assert (text.source, text.column, text.prompt, text.pooling) == ("embedding", "caption", TEXT_PROMPT, "last")
    assert (needs.views, needs.optional, needs.reference) == ((), (OWN,), False)
    false = Discriminative(negatives=True, text_prompt="Sum up:").needs.features[2]
    assert (false.column, false.prompt) == ("negatives", "Sum up:")
    assert Discriminative(image="prompt").needs.features[0].prompt is None


@pytest.mark.parametrize("negatives", [False, True])
def test_the_terms_are_those_of_loops(negatives: bool) -> None:
    """Row 3 has no short text; rows 1 and 2 no long one."""
    objective = Discriminative(0.5, 2.0, temperature=0.25, negatives=negatives)
    images, texts, false = drawn(4, 3, 2)
    values, rows = [images, texts], [[0, 1, 2, 3], [0, 1, 2]]
    if negatives:
        values, rows = [*values, false], [*rows, [0, 2]]
    logps = torch.tensor([-7.0, 0.0, 0.0, -5.0], dtype=torch.float64)
    outcome = objective(signals(objective.needs, values, rows, logps, [4, 0, 0, 2]), None)
    contrast, predicted = outcome.terms
    assert (contrast.name, contrast.weight, int(contrast.count)) == ("contrast", 0.5, 3)
    expected = sum_of_both(images[:3], texts, 4.0, false if negatives else None)
    assert contrast.sum.item() == pytest.approx(expected, rel=1e-6)
    assert (predicted.name, predicted.weight, int(predicted.count)) == ("next_token", 2.0, 6)
    assert predicted.sum.item() == 12.0
    assert outcome.loss.item() == pytest.approx(0.5 * expected / 3 + 2 * 12 / 6, rel=1e-6)


def test_constant_similarities_are_worth_two_logs() -> None:
    objective = Discriminative()
    same = torch.ones(4, WIDTH)
    outcome = objective(signals(objective.needs, [same, same], [[0, 1, 2, 3]] * 2, None), None)
    assert outcome.loss.item() == pytest.approx(2 * math.log(4), rel=1e-6)


def test_batches_of_short_texts_alone_and_of_long_ones_alone() -> None:
    objective = Discriminative()
    images, texts = (value.requires_grad_() for value in drawn(4, 4))
    short = objective(signals(objective.needs, [images, texts], [[0, 1, 2, 3]] * 2, None), None)
    assert [(term.name, int(term.count)) for term in short.terms] == [("contrast", 4), ("next_token", 0)]
    short.loss.backward()
    logps = torch.full((4,), -3.0, requires_grad=True)
    needs = objective.needs
    for values, rows in (([images[:0], texts[:0]], [[], []]), ([images, texts[:0]], [[0, 1, 2, 3], []])):
        outcome = objective(signals(needs, values, rows, logps, [3] * 4), None)
        assert [(term.name, int(term.count)) for term in outcome.terms] == [("contrast", 0), ("next_token", 12)]
        assert outcome.loss.item() == 1.0
        outcome.loss.backward()
    only = objective(Signals({OWN: logps}, {OWN: torch.full((4,), 3)}, sources=("a",) * 4), None)
    assert only.loss.item() == 1.0


def test_gradients() -> None:
    objective = Discriminative(temperature=0.5, dim=3)
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    objective.double()
    logps = torch.tensor([-7.0, 0.0, 0.0, -5.0], dtype=torch.float64, requires_grad=True)
    values = [value.requires_grad_() for value in drawn(4, 3)]

    def loss(*given: torch.Tensor) -> torch.Tensor:
        own = signals(objective.needs, list(given[:2]), [[0, 1, 2, 3], [0, 1, 2]], given[2], [4, 0, 0, 2])
        return objective(own, None).loss

    assert torch.autograd.gradcheck(loss, (*values, logps))
    loss(*values, logps).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in objective.parameters())
    assert set(objective.embedding.heads) == {"image", "text"}


def test_the_temperature_is_learnt_unless_it_shall_not_be() -> None:
    for options, learnt in (({}, True), ({"temperature": 0.02, "learn_temperature": False}, False)):
        objective = objective_from({"name": "discriminative", **options})
        assert isinstance(objective, Discriminative)
        assert objective.contrast.log_scale.requires_grad == learnt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"next_token_weight": 0}, "Discriminative: next_token_weight must be a number above 0, got 0"),
        ({"sides": "image_to_text"}, "Discriminative has no option 'sides'"),
        ({"temperature": 0.001}, "InfoNCE: temperature must be at least 0.01, got 0.001"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Discriminative(**options)
