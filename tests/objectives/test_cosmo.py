"""COSMO: pooled lower layers, and no contrast of interleaved rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Signals, View, needs_for
from mllm_align.objectives import Cosmo, InfoNCE, NextToken

OWN = View("image", "chosen")


def ready(**options: Any) -> Cosmo:
    torch.manual_seed(0)
    objective = Cosmo(**options)
    objective.set_widths({feature.name: 8 for feature in objective.needs.features})
    return objective.double()


def test_tokens_of_a_lower_layer_are_pooled_by_a_query_and_both_sides_have_512_dimensions() -> None:
    objective = Cosmo()
    image, text = objective.needs.features
    assert (image.source, image.pooling) == ("projector", "mean")
    assert (text.source, text.pooling, text.layer) == ("text", "tokens", 0.5)
    objective.set_widths({feature.name: 8 for feature in objective.needs.features})
    heads = objective.embedding.heads
    assert {side: (head.options["dim"], head.options["query"]) for side, head in heads.items()} == {
        "image": (512, False),
        "text": (512, True),
    }


def test_it_is_both_losses_computed_apart(make_signals: Callable[..., Signals]) -> None:
    objective = ready(contrast_weight=0.7, temperature=0.3, dim=4)
    policy = make_signals(objective.needs)
    apart = InfoNCE(pooling="query", layer=0.5, dim=4, temperature=0.3)
    apart.set_widths({feature.name: 8 for feature in apart.needs.features})
    apart.double().load_state_dict(objective.contrast.state_dict())
    outcome = objective(policy, None)
    expected = 0.7 * apart(policy, None).loss + NextToken(matched=False)(policy, None).loss
    torch.testing.assert_close(outcome.loss, expected)
    assert [(term.name, term.weight) for term in outcome.terms] == [("contrast", 0.7), ("next_token", 1.0)]


def test_interleaved_rows_are_predicted_and_not_contrasted(make_signals: Callable[..., Signals]) -> None:
    objective = ready(interleaved=("instructions",), dim=4)
    assert objective.sources == ("instructions",)
    assert needs_for(objective, "instructions").features == ()
    assert needs_for(objective, "instructions").views == (OWN,)
    assert needs_for(objective, "pairs") == objective.needs
    full = make_signals(objective.needs)
    pairs = [row for row, source in enumerate(full.sources) if source == "pairs"]
    plain = ready(dim=4)
    expected = plain(full.select(pairs), None).terms[0]
    # Whether another objective has had the sides of interleaved rows measured or nobody has.
    unmeasured = {
        name: Ragged(
            own.values[torch.isin(own.row, torch.tensor(pairs))], own.row[torch.isin(own.row, torch.tensor(pairs))]
        )
        for name, own in full.features.items()
    }
    for given in (full, replace(full, features=unmeasured)):
        contrast, responses = objective(given, None).terms
        assert int(contrast.count) == len(pairs) == 3
        torch.testing.assert_close(contrast.sum, expected.sum)
        assert int(responses.count) == int(full.num_tokens[OWN].sum())
    only = full.select([row for row in range(6) if row not in pairs])
    outcome = objective(only, None)
    assert (int(outcome.terms[0].count), outcome.terms[0].sum.item()) == (0, 0.0)
    outcome.loss.backward()


def test_one_source_may_be_named_without_a_list() -> None:
    assert Cosmo(interleaved="documents").interleaved == ("documents",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast_weight": 0}, "Cosmo: contrast_weight must be a number above 0, got 0"),
        ({"interleaved": (1,)}, r"Cosmo: interleaved must be names of sources, got \(1,\)"),
        ({"heads": 1}, "Cosmo has no option 'heads'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cosmo(**options)
