"""Sides that are read as summaries, and further texts beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import TSVLC, AmclLike, CacrLike, Discriminative, Symile
from mllm_align.objectives.pairs import IMAGE_PROMPT, TEXT_PROMPT
from mllm_align.objectives.summaries import paraphrase_vectors, paraphrases_of, summaries


def test_both_sides_are_asked_for_a_summary_where_nothing_else_is_said() -> None:
    image, text = summaries("Own", {}).features
    assert (image.source, image.column, image.prompt) == ("embedding", "image", IMAGE_PROMPT)
    assert (text.source, text.column, text.prompt) == ("embedding", "caption", TEXT_PROMPT)
    image, text = summaries("Own", {"image": "prompt", "text_prompt": "Sum up:", "layer": 3}).features
    assert (image.column, image.prompt, image.layer) == ("prompt", None, 3)
    assert text.prompt == "Sum up:"
    image, text = summaries("Own", {"image_prompt": None, "text": "chosen", "text_prompt": None}).features
    assert (image.source, text.source) == ("projector", "text")


@pytest.mark.parametrize("objective", [AmclLike, CacrLike, Discriminative, Symile, TSVLC])
def test_every_contrast_by_summaries_is_of_a_column_that_needs_no_prompt(objective: Any) -> None:
    assert objective().needs.features[1].column == "caption"
    assert objective(text="chosen").needs.features[1].column == "chosen"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": (2,)}, r"Own has no option 'dimensions' \(of its sides: image, text, "),
        ({"text_prompt": None}, "Own: column 'caption' is no response, it is read before an instruction"),
        ({"pooling": "first"}, "Own: pooling must be one of last, mean, query, got 'first'"),
        ({"image": "prompt", "image_prompt": "Sum up:"}, "Own: the row's own prompt is read as it is"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summaries("Own", options)


def test_paraphrases_go_the_way_of_the_text() -> None:
    pairs = summaries("Own", {"text": "caption", "layer": 0.5, "pooling": "mean", "dim": 2})
    feature = paraphrases_of(pairs)
    same = {"name": "text:positives mean layer 0.5", "column": "positives", "several": True}
    assert feature == pairs.sides["text"]._replace(**same)
    pairs.set_widths({feature.name: 3 for feature in pairs.features})
    tables = {side.name: Ragged(torch.randn(2, 3), torch.arange(2)) for side in pairs.features}
    own = Ragged(torch.randn(3, 3, dtype=torch.bfloat16), torch.tensor([0, 0, 1]))
    signals = Signals({}, {}, features={**tables, feature.name: own}, sources=("a", "a"))
    found = pairs(signals)
    assert found is not None
    vectors, owner = paraphrase_vectors(pairs, signals, found)
    torch.testing.assert_close(vectors, own.values.float() @ pairs.heads["text"].projection.weight.T)
    assert owner.tolist() == [0, 0, 1]
    none, owner = paraphrase_vectors(pairs, Signals({}, {}, features=tables, sources=("a", "a")), found)
    assert none.shape == (0, 2)
    assert owner.tolist() == []


def test_paraphrases_that_could_not_be_read() -> None:
    with pytest.raises(ValueError, match="Own: paraphrases are read before an instruction: give text_prompt"):
        paraphrases_of(summaries("Own", {"text": "chosen", "text_prompt": None}))
    with pytest.raises(ValueError, match="Own: pooling 'query' takes one text a row, not paraphrases"):
        paraphrases_of(summaries("Own", {"pooling": "query"}))
