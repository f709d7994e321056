"""ClocLike: contrast as RegionText has it, and boxes of phrases against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Regions, Signals
from mllm_align.objectives import ClocLike, RegionText

# Row, text, box: a name twice in one image, a region without one, a row with one region alone, a box beyond its image.
TOLD: tuple[tuple[int, str, tuple[float, float, float, float]], ...] = (
    (0, "a cup", (0.1, 0.2, 0.4, 0.6)),
    (0, "a dog", (0.5, 0.5, 0.9, 0.9)),
    (0, "A Dog", (0.0, 0.5, 0.3, 0.9)),
    (1, "", (0.3, 0.3, 0.5, 0.5)),
    (2, "a dog", (0.7, 0.6, 1.2, 0.9)),
    (2, "the tree", (0.0, 0.0, 0.3, 1.0)),
)
TOKEN_ROWS = [0, 0, 0, 1, 2, 2]
WIDTH = 4


def signals(values: dict[str, torch.Tensor] | None = None, image: int = 0) -> Signals:
    rows, texts, boxes = zip(*TOLD, strict=True)
    none = ("",) * len(TOLD)
    given = drawn() if values is None else values
    features = {name: Ragged(value, torch.tensor(rows)) for name, value in given.items()}
    features["image_tokens:image"] = Ragged(given["image_tokens:image"], torch.tensor(TOKEN_ROWS))
    told = Regions(rows, (image,) * len(TOLD), boxes, none, texts, none)
    return Signals({}, {}, features=features, sources=("x",) * 3, regions={"image": told})


def drawn() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    names = ("regions:image", "region_texts:image", "image_tokens:image")
    return {name: torch.randn(6, WIDTH, generator=generator, dtype=torch.float64) for name in names}


def made(**options: Any) -> ClocLike:
    torch.manual_seed(0)
    objective = ClocLike(**{"dim": None, **options})
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    return objective.double()


def test_boxes_are_those_of_a_loop() -> None:
    objective = made()
    outcome = objective(signals(), None)
    assert objective.prompter is not None
    values = drawn()
    l1, giou, ious = 0.0, 0.0, []
    for place in (0, 4, 5):
        row, _, box = TOLD[place]
        tokens = values["image_tokens:image"][[n for n, own in enumerate(TOKEN_ROWS) if own == row]]
        phrase = values["region_texts:image"][place]
        with torch.no_grad():
            there = torch.ones(1, len(tokens), dtype=torch.bool)
            cosines = torch.stack([phrase @ token / phrase.norm() / token.norm() for token in tokens])[None, None]
            x, y, w, h = objective.prompter(phrase[None, None], tokens[None], cosines, there)[0, 0].tolist()
        left, top, right, bottom = (min(side, 1.0) for side in box)
        true = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        l1 += sum(abs(one - other) for one, other in zip((x, y, w, h), true, strict=True))
        own = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        across = max(0.0, min(own[2], right) - max(own[0], left))
        down = max(0.0, min(own[3], bottom) - max(own[1], top))
        union = w * h + true[2] * true[3] - across * down
        outer = (max(own[2], right) - min(own[0], left)) * (max(own[3], bottom) - min(own[1], top))
        ious.append(across * down / union)
        giou += 1 - (ious[-1] - (outer - union) / outer)
    _, first, second = outcome.terms
    assert (first.name, first.weight, int(first.count)) == ("box_l1", 5.0, 3)
    assert (second.name, second.weight, int(second.count)) == ("box_giou", 2.0, 3)
    # Targets are float32 shares.
    assert first.sum.item() == pytest.approx(l1, abs=1e-6)
    assert second.sum.item() == pytest.approx(giou, abs=1e-6)
    assert outcome.metrics["box_iou"].tolist() == pytest.approx(ious, abs=1e-6)
    assert outcome.metrics["box_found"].tolist() == [float(iou > 0.5) for iou in ious]


def test_the_contrast_is_region_text() -> None:
    (term, *_), (expected,) = (
        made(contrast_weight=0.5, overlap=1.0)(signals(), None).terms,
        RegionText(dim=None, overlap=1.0).double()(signals(), None).terms,
    )
    assert (term.name, term.weight) == ("region_text", 0.5)
    torch.testing.assert_close(term.sum, expected.sum)
    assert term.count == expected.count == 5


def test_gradients_reach_phrases_tokens_and_heads() -> None:
    objective, values = made(), drawn()
    leaves = [value.requires_grad_(True) for value in values.values()]
    assert torch.autograd.gradcheck(
        lambda *given: objective(signals(dict(zip(values, given, strict=True))), None).loss, leaves
    )
    objective(signals(values), None).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_nothing_to_find_is_zero_with_the_parameters_in_the_graph() -> None:
    objective = made(dim=3)
    for given in (Signals({}, {}, sources=("x",)), signals().select([1])):
        objective.zero_grad()
        outcome = objective(given, None)
        assert [int(term.count) for term in outcome.terms] == [0, 0, 0]
        outcome.loss.backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())


def test_prompted_regions_are_what_attention_finds_from_their_corners() -> None:
    objective, values = made(prompted=True, overlap=1.0), drawn()
    assert [feature.name for feature in objective.needs.features] == ["region_texts:image", "image_tokens:image"]
    assert objective.box_prompter is not None
    vectors = []
    for row, _, box in TOLD:
        tokens = values["image_tokens:image"][[n for n, own in enumerate(TOKEN_ROWS) if own == row]]
        there = torch.ones(1, len(tokens), dtype=torch.bool)
        corners = torch.tensor(box).clamp(0, 1).double()[None, None]
        vectors.append(objective.box_prompter(corners, tokens[None], there)[0, 0])
    given = {name: value for name, value in values.items() if name != "regions:image"}
    found = objective(signals(given), None)
    expected = RegionText(dim=None, overlap=1.0).double()(
        signals({**values, "regions:image": torch.stack(vectors)}), None
    )
    torch.testing.assert_close(found.terms[0].sum, expected.terms[0].sum)
    assert found.terms[0].count == 5
    plain = made(overlap=1.0)(signals(), None)
    assert not torch.isclose(found.terms[0].sum, plain.terms[0].sum)
    assert [int(term.count) for term in found.terms[1:]] == [3, 3]


def test_gradients_of_prompted_regions() -> None:
    objective, values = made(prompted=True, dim=3), drawn()
    del values["regions:image"]
    leaves = [value.requires_grad_(True) for value in values.values()]
    assert torch.autograd.gradcheck(
        lambda *given: objective(signals(dict(zip(values, given, strict=True))), None).loss, leaves
    )
    for given in (signals(values), signals(values).select([1]), Signals({}, {}, sources=("x",))):
        objective.zero_grad()
        objective(given, None).loss.backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="give each image a row of its own"):
        made()(signals(image=1), None)
    with pytest.raises(ValueError, match="ClocLike: prompted must be true or false, got 1"):
        ClocLike(prompted=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ClocLike: phrases are looked for on a row's own image: leave columns out"):
        ClocLike(columns=("image",))
    with pytest.raises(ValueError, match="nothing is left to train"):
        ClocLike(contrast_weight=0, l1_weight=0, giou_weight=0)
    with pytest.raises(ValueError, match="call set_widths"):
        ClocLike(dim=None)(signals(), None)
