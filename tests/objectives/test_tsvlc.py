"""Whole images, texts that are nearly right and texts that say the same: against loops in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import TSVLC, InfoNCE

WIDTH, SIZE = 4, 4
# Row 3 has no image. Row 1 has no negatives, row 2 no paraphrases; row 0 has two of each.
ROWS = ([0, 1, 2], [0, 1, 2, 3], [0, 0, 2, 3], [0, 0, 1, 3])


def drawn() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(len(own), WIDTH, generator=generator, dtype=torch.float64) for own in ROWS]


def signals(objective: TSVLC, values: list[torch.Tensor], rows: Any = ROWS) -> Signals:
    features = {
        feature.name: Ragged(value, torch.tensor(of, dtype=torch.long))
        for feature, value, of in zip(objective.needs.features, values, rows, strict=False)
    }
    return Signals({}, {}, features=features, sources=("a",) * SIZE)


def near(one: torch.Tensor, other: torch.Tensor) -> float:
    """exp of twice the cosine."""
    return math.exp(2 * float(one @ other) / math.sqrt(float(one @ one)) / math.sqrt(float(other @ other)))


def test_the_terms_are_those_of_loops() -> None:
    values = drawn()
    images, texts, false, same = values
    objective = TSVLC(0.5, 2.0, 3.0, temperature=0.5)
    outcome = objective(signals(objective, values), None)
    paired = (0, 1, 2)
    contrast = own = said = 0.0
    of_paired = [k for k, row in enumerate(ROWS[2]) if row in paired]
    for i in paired:
        right = near(images[i], texts[i])
        among = sum(near(images[i], texts[j]) for j in paired) + sum(near(images[i], false[k]) for k in of_paired)
        back = sum(near(images[j], texts[i]) for j in paired)
        contrast -= (math.log(right / among) + math.log(right / back)) / 2
        mine = [near(images[i], false[k]) for k, row in enumerate(ROWS[2]) if row == i]
        own -= math.log(right / (right + sum(mine))) if mine else 0
        for anchor in (images[i], texts[i]):
            true = [near(anchor, same[k]) for k, row in enumerate(ROWS[3]) if row == i]
            others = sum(near(anchor, same[k]) for k, row in enumerate(ROWS[3]) if row in paired and row != i)
            said -= sum(math.log(each / (each + others)) for each in true) / max(1, len(true)) / 2
    assert [(term.name, term.weight, int(term.count)) for term in outcome.terms] == [
        ("contrast", 0.5, 3),
        ("own_negatives", 2.0, 2),
        ("paraphrases", 3.0, 2),
    ]
    for term, expected in zip(outcome.terms, (contrast, own, said), strict=True):
        assert term.sum.item() == pytest.approx(expected, rel=1e-6), term.name


def test_with_one_paraphrase_each_it_is_a_cross_entropy_of_both_sides() -> None:
    images, texts, same = (torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(n)) for n in range(3))
    objective = TSVLC(temperature=0.5)
    every = range(SIZE)
    outcome = objective(signals(objective, [images, texts, texts[:0], same], (every, every, [], every)), None)
    unit = [torch.nn.functional.normalize(each, dim=1) for each in (images, texts, same)]
    own = torch.arange(4)
    expected = sum(torch.nn.functional.cross_entropy(2 * side @ unit[2].T, own) for side in unit[:2]) / 2
    term = outcome.terms[2]
    torch.testing.assert_close(term.sum / term.count, expected)
    assert (outcome.terms[1].sum.item(), int(outcome.terms[1].count)) == (0.0, 0)


def test_its_contrast_is_info_nces() -> None:
    objective, values = TSVLC(paraphrase_weight=0, text="chosen", image_prompt="See:", text_prompt="Read:"), drawn()
    plain = InfoNCE(negatives=True, image_prompt="See:", text_prompt="Read:")
    assert objective.needs == plain.needs
    outcome = objective(signals(objective, values), None)
    torch.testing.assert_close(outcome.terms[0].sum, plain(signals(objective, values), None).terms[0].sum)
    assert [term.name for term in outcome.terms] == ["contrast", "own_negatives"]


def test_paraphrases_are_read_as_the_text_is() -> None:
    text, false, same = TSVLC().needs.features[1:]
    assert same == text._replace(name="text:positives", column="positives", several=True)
    assert false == text._replace(name="text:negatives", column="negatives", several=True)


def test_gradients() -> None:
    torch.manual_seed(0)
    objective = TSVLC(temperature=0.5, dim=3)
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    objective.double()
    values = [value.requires_grad_() for value in drawn()]
    assert torch.autograd.gradcheck(lambda *given: objective(signals(objective, list(given)), None).loss, values)
    objective(signals(objective, values), None).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in objective.parameters())


def test_batches_without_a_pair() -> None:
    objective = TSVLC()
    values = [value[:1].requires_grad_() for value in drawn()]
    for given in (Signals({}, {}, sources=("a",)), signals(objective, values, ([0], [1], [1], [1]))):
        outcome = objective(given, None)
        assert [(int(term.count), term.sum.item()) for term in outcome.terms] == [(0, 0.0)] * 3
        outcome.loss.backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paraphrase_weight": -1}, "TSVLC: paraphrase_weight must be a number of at least 0, got -1"),
        (
            {"contrast_weight": 0, "negative_weight": 0, "paraphrase_weight": 0},
            "TSVLC: nothing is left to train, one of contrast_weight, negative_weight, paraphrase_weight must be",
        ),
        ({"negatives": True}, "TSVLC has no option 'negatives'"),
        (
            {"text": "chosen", "text_prompt": None},
            "InfoNCE: negatives are read before an instruction: give text_prompt",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TSVLC(**options)
