"""Rows with a short text, a long one or both, through the trainer: shared prefixes, cached gradients, what is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_align.contract import View
from mllm_align.data.errors import DataError
from mllm_align.encoding import load_embedding
from mllm_align.objectives import Discriminative, NextToken
from mllm_align.objectives.pairs import IMAGE_PROMPT
from runs import gradients, make_trainer, picture

LONG = ("A red circle lies left of two small stars.", "Nothing but a blue square is to be seen, below a line.")
OWN = View("image", "chosen")


def rows_of(prompt: str = IMAGE_PROMPT) -> list[dict[str, Any]]:
    """Two rows have both texts, one a short one alone, one a long one."""
    told = [
        {"prompt": prompt, "caption": "a circle", "chosen": LONG[0]},
        {"caption": "two stars"},
        {"prompt": prompt, "chosen": LONG[1]},
        {"prompt": prompt, "caption": "a blue square", "chosen": LONG[1]},
    ]
    return [{"id": str(number), "image": picture(number), **row} for number, row in enumerate(told)]


SETTINGS: dict[str, Any] = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"}


@pytest.mark.parametrize("cached", [False, True])
def test_it_trains(cached: bool, tmp_path: Path) -> None:
    objective = Discriminative(dim=8, temperature=0.5)
    options = {"max_tokens_per_forward": 60} if cached else {}
    given = {"cache_gradients": cached, "learning_rate": 1e-3, **options, **SETTINGS}
    trainer = make_trainer(tmp_path, objective, rows_of(), **given)
    before = {name: value.detach().clone() for name, value in objective.named_parameters()}
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss/contrast" in line]
    assert len(lines) == 2
    for line in lines:
        assert math.isfinite(line["loss"])
        assert line["loss"] == pytest.approx(line["loss/contrast"] + line["loss/next_token"], rel=1e-4)
    for name in ("loss/contrast", "loss/next_token"):
        assert lines[1][name] < lines[0][name], name
    assert all((value - before[name]).abs().max() > 0 for name, value in objective.named_parameters())


def test_both_terms_share_the_prefix_of_image_and_instruction(tmp_path: Path) -> None:
    found = {}
    for prompt in (IMAGE_PROMPT, "What is to be seen?"):
        trainer = make_trainer(tmp_path, Discriminative(), rows_of(prompt), **SETTINGS)
        batch = next(iter(trainer.get_train_dataloader()))["batch"]
        found[prompt] = len(batch.prefixes)
        branches = [branch for branch in batch.branches if branch.view == OWN]
        assert [branch.row for branch in branches] == [0, 2, 3]
    # Four images, three short texts; another prompt is read by itself.
    assert found == {IMAGE_PROMPT: 4 + 3, "What is to be seen?": 4 + 3 + 3}


def test_cached_gradients_are_the_plain_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"max_steps": 1, **SETTINGS}
    plain = gradients(make_trainer(tmp_path / "plain", Discriminative(), rows_of(), **given))
    cached = gradients(
        make_trainer(
            tmp_path / "cached", Discriminative(), rows_of(), cache_gradients=True, max_tokens_per_forward=60, **given
        )
    )
    assert cached.keys() == plain.keys()
    assert any("log_scale" in name for name in plain)
    largest = max(value.abs().max().item() for value in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, atol=1e-5 * largest, rtol=1e-4, msg=name)


def test_an_embedding_does_not_outlive_the_weights_it_is_of(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    make_trainer(tmp_path, Discriminative(dim=8), rows_of(), **SETTINGS).save_model(str(folder))
    assert load_embedding(folder).embedding.heads.keys() == {"image", "text"}
    rows = [row for row in rows_of() if "chosen" in row]
    make_trainer(tmp_path, NextToken(matched=False), rows, **SETTINGS).save_model(str(folder))
    assert not list(folder.glob("embedding.*"))


def test_a_row_of_neither_text_is_refused(tmp_path: Path) -> None:
    rows = [{**rows_of()[1], "caption": None, "title": "stars"}, *rows_of()]
    trainer = make_trainer(tmp_path, Discriminative(), rows, **SETTINGS)
    with pytest.raises(DataError, match="'caption'"):
        trainer.train()
