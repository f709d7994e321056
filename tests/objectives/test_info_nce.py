"""InfoNCE against a loop in float64, its gradients, and rows without a partner."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import InfoNCE
from mllm_align.objectives.info_nce import info_nce


def slow(images: list[list[float]], texts: list[list[float]], scale: float) -> list[float]:
    """The loss of every pair, all of them present."""

    def unit(vector: list[float]) -> list[float]:
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]

    images, texts = [unit(v) for v in images], [unit(v) for v in texts]
    cosine = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in texts] for i in images]
    losses = []
    for k in range(len(images)):
        row = math.log(sum(math.exp(x) for x in cosine[k])) - cosine[k][k]
        column = math.log(sum(math.exp(line[k]) for line in cosine)) - cosine[k][k]
        losses.append((row + column) / 2)
    return losses


def signals(images: torch.Tensor, texts: torch.Tensor, of_image: list[int], of_text: list[int], size: int) -> Signals:
    first, second = InfoNCE().needs.features
    return Signals(
        {},
        {},
        features={
            first.name: Ragged(images, torch.tensor(of_image)),
            second.name: Ragged(texts, torch.tensor(of_text)),
        },
        sources=("default",) * size,
    )


def test_loss_is_that_of_a_loop() -> None:
    images, texts = torch.randn(4, 6), torch.randn(4, 6)
    outcome = InfoNCE(temperature=0.2)(signals(images, texts, [0, 1, 2, 3], [0, 1, 2, 3], 4), None)
    expected = slow(images.double().tolist(), texts.double().tolist(), 5.0)
    assert outcome.loss.item() == pytest.approx(sum(expected) / 4, rel=1e-5)
    assert outcome.metrics["temperature"].item() == pytest.approx(0.2, rel=1e-5)


def test_order_does_not_count_and_rows_without_a_partner_take_no_part() -> None:
    images, texts = torch.randn(3, 6), torch.randn(3, 6)
    outcome = InfoNCE(temperature=0.5)(signals(images, texts, [4, 0, 2], [2, 4, 1], 5), None)
    pairs = [images[0], images[2]], [texts[1], texts[0]]
    expected = slow(*[[vector.double().tolist() for vector in side] for side in pairs], 2.0)
    assert outcome.terms[0].count.item() == 2
    assert outcome.loss.item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    nothing = InfoNCE()(Signals({}, {}, sources=("default",)), None)
    assert nothing.terms[0].count.item() == 0
    assert nothing.loss.item() == 0


def test_gradients() -> None:
    images, texts = (torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    for present in ([True, True, True], [True, False, True]):
        mask = torch.tensor(present)
        assert torch.autograd.gradcheck(
            lambda a, b, c, mask=mask: info_nce(a, b, mask, c)[0],
            (images.clone().requires_grad_(), texts.clone().requires_grad_(), scale),
        )


def test_perfect_pairs_are_all_found() -> None:
    own = torch.eye(3)
    outcome = InfoNCE()(signals(own, own, [0, 1, 2], [0, 1, 2], 3), None)
    assert outcome.metrics["accuracy/image_to_text"].tolist() == [1, 1, 1]
    turned = InfoNCE()(signals(own, own.roll(1, 0), [0, 1, 2], [0, 1, 2], 3), None)
    assert turned.metrics["accuracy/text_to_image"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "InfoNCE: temperature must be a number above 0, got 0"),
        ({"temperature": math.nan}, "InfoNCE: temperature must be a number above 0, got nan"),
        ({"temperature": math.inf}, "InfoNCE: temperature must be a number above 0, got inf"),
        ({"temperature": "0.07"}, "InfoNCE: temperature must be a number above 0, got '0.07'"),
        # What is learnt is kept at 1/100, and would have started there.
        ({"temperature": 0.001}, "InfoNCE: temperature must be at least 0.01, got 0.001"),
        ({"learn_temperature": "no"}, "InfoNCE: learn_temperature must be true or false, got 'no'"),
        ({"image": "chosen"}, "InfoNCE: image must be 'image' or 'contrast_image' or 'prompt', got 'chosen'"),
        ({"text": "image"}, "InfoNCE: text must be a column of texts, got 'image'"),
    ],
)
def test_refuses_options_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfoNCE(**options)


def test_the_temperature_starts_as_clips_and_is_learnt_if_asked_for() -> None:
    own = torch.eye(2)
    for objective, learnt in ((InfoNCE(), True), (InfoNCE(learn_temperature=False), False)):
        outcome = objective(signals(own, own, [0, 1], [0, 1], 2), None)
        assert outcome.metrics["temperature"].item() == pytest.approx(0.07)
        assert objective.log_scale.requires_grad == learnt


def test_at_its_bound_the_temperature_can_rise_again() -> None:
    """Wrong pairs want it higher; it is never below 1/100, wherever a step left it."""
    objective = InfoNCE(temperature=0.01)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01)
    with torch.no_grad():
        objective.log_scale += 0.5
    turned = signals(torch.eye(2), torch.eye(2).flip(0), [0, 1], [0, 1], 2)
    outcome = objective(turned, None)
    assert outcome.metrics["temperature"].item() == pytest.approx(0.01)
    outcome.loss.backward()
    optimizer.step()
    assert objective(turned, None).metrics["temperature"].item() > 0.011


def test_metrics_have_an_entry_per_pair() -> None:
    """So a mean over batches is one over pairs, however many other rows a batch has."""
    images = torch.tensor([[0.0, 0.1, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    given = signals(images, torch.eye(3).flip(0), [4, 0, 2], [2, 4, 1], 5)
    for known in ({}, {name: tuple(ragged.row.tolist()) for name, ragged in given.features.items()}):
        outcome = InfoNCE()(dataclasses.replace(given, host_feature_rows=known), None)
        assert outcome.metrics["accuracy/image_to_text"].tolist() == [1.0, 0.0]
        assert outcome.metrics["accuracy/text_to_image"].tolist() == [1.0, 1.0]
    nothing = InfoNCE()(signals(torch.eye(2), torch.eye(2), [0, 1], [2, 3], 4), None)
    assert nothing.metrics["accuracy/image_to_text"].numel() == 0


def test_features_without_a_number_of_rows() -> None:
    with pytest.raises(ValueError, match="give sources, one per row"):
        InfoNCE()(signals(torch.eye(2), torch.eye(2), [0, 1], [0, 1], 0), None)


def test_earlier_images_and_texts_are_negatives() -> None:
    """Against loops over lists; a row that comes again does not meet itself."""
    objective = InfoNCE(temperature=0.5, memory=4)
    objective.set_widths({feature.name: 5 for feature in objective.needs.features})
    objective.double()
    before: list[tuple[torch.Tensor, torch.Tensor, str]] = []
    for ids in (("a", "b", "c"), ("d", "a", "e"), ("b", "f", "a")):
        values = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        given = dataclasses.replace(signals(*values, [0, 1, 2], [0, 1, 2], 3), row_ids=ids)
        images, texts = ([v / math.sqrt(float(v @ v)) for v in side.detach()] for side in values)
        expected = 0.0
        for k, name in enumerate(ids):
            for own, others, side in ((images, texts, 1), (texts, images, 0)):
                terms = [math.exp(float(own[k] @ other) / 0.5) for other in others]
                below = sum(terms)
                below += sum(math.exp(float(own[k] @ old[side]) / 0.5) for old in before[-4:] if old[2] != name)
                expected += 0.5 * math.log(below / terms[k])
        outcome = objective(given, None)
        assert outcome.terms[0].sum.item() == pytest.approx(expected, rel=1e-9)
        outcome.loss.backward()
        before += zip(images, texts, ids, strict=True)


def test_memory_without_room_or_meaning() -> None:
    with pytest.raises(ValueError, match="InfoNCE: memory must be a number of keys from 0 up, got True"):
        InfoNCE(memory=True)
    with pytest.raises(ValueError, match="set_widths"):
        InfoNCE(memory=4)(signals(torch.eye(2), torch.eye(2), [0, 1], [0, 1], 2), None)
