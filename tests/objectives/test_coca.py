"""CoCa is its two losses, computed apart; and its text is read by lower layers without the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mllm_align.contract import Signals, View
from mllm_align.objectives import CoCa, InfoNCE, NextToken

OWN = View("image", "chosen")


def test_the_text_is_read_without_the_image_by_the_lower_half() -> None:
    needs = CoCa().needs
    image, text = needs.features
    assert (image.source, image.column) == ("projector", "image")
    assert (text.source, text.column, text.layer, text.pooling) == ("text", "chosen", 0.5, "last")
    assert text.view == View(None, "chosen")
    assert needs.views == (OWN,)
    assert CoCa(layer=3).needs.features[1].layer == 3


def test_it_is_both_losses_computed_apart(make_signals: Callable[..., Signals]) -> None:
    objective = CoCa(temperature=0.3)
    policy = make_signals(objective.needs)
    outcome = objective(policy, None)
    outcome.loss.backward()
    leaves = [policy.logps[OWN], *(ragged.values for ragged in policy.features.values())]
    together = [leaf.grad.clone() for leaf in leaves]
    apart = InfoNCE(temperature=0.3, layer=0.5), NextToken(matched=False)
    contrast, caption = (each(policy, None) for each in apart)
    for leaf in leaves:
        leaf.grad = None
    total = contrast.loss + 2 * caption.loss
    torch.testing.assert_close(outcome.loss, total)
    assert [(term.name, term.weight) for term in outcome.terms] == [("contrast", 1.0), ("caption", 2.0)]
    total.backward()
    for leaf, gradient in zip(leaves, together, strict=True):
        torch.testing.assert_close(gradient, leaf.grad)
    assert outcome.metrics.keys() == contrast.metrics.keys() | caption.metrics.keys()


def test_weights_and_heads(make_signals: Callable[..., Signals]) -> None:
    objective = CoCa(0.5, 3.0, dim=2)
    objective.set_widths({feature.name: 8 for feature in objective.needs.features})
    terms = objective(make_signals(objective.needs, dtype=torch.float32), None).terms
    assert [term.weight for term in terms] == [0.5, 3.0]
    assert set(objective.embedding.heads) == {"image", "text"}
    assert objective.embedding.features["text"].layer == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_weight": 0}, "CoCa: caption_weight must be a number above 0, got 0"),
        ({"temprature": 1}, r"CoCa has no option 'temprature'; did you mean 'temperature'\? \(of its contrast: image"),
        ({"temperature": 0}, "InfoNCE: temperature must be a number above 0, got 0"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoCa(**options)
