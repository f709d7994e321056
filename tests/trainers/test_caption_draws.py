"""Which of a row's captions a run shows: by its seed and epoch, or once where something must know all of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from mllm_align.data.routes import Routes
from mllm_align.data.routing import route_captions
from mllm_align.objectives.discriminative import Discriminative
from mllm_align.objectives.dpo import DPO
from mllm_align.trainers.draws import settle_draws
from runs import config, make_trainer, picture

CAPTIONS = ("A dog.", "Two dogs.", "No cat.")


def routed(count: int = 4) -> Any:
    rows = [{"id": str(n), "image": picture(n), "captions": list(CAPTIONS)} for n in range(count)]
    return route_captions(rows, lambda texts, **_: {"input_ids": [text.split() for text in texts]}, "Sum it up:")


def shown(trainer: Any, epochs: int) -> list[dict[str, int]]:
    """Per epoch the number of tokens of each row's caption."""
    loader = trainer.get_train_dataloader()
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found.append({})
        for entry in loader:
            batch = entry["batch"]
            for branch in batch.branches:
                if branch.view.image is None:
                    found[-1][batch.row_ids[branch.row]] = batch.prefixes[branch.prefix].input_ids.numel()
    return found


def test_every_epoch_shows_another_caption(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "a", Discriminative(), routed(), data_seed=5)
    assert trainer.train_dataset.routes == Routes(prompt="Sum it up:", seed=5)
    found = shown(trainer, 4)
    assert [set(epoch) for epoch in found] == [{"0", "1", "2", "3"}] * 4
    for row in ("0", "1", "2", "3"):
        # The three texts have three lengths, and each is there before any again.
        assert len({epoch[row] for epoch in found[:3]}) == 3
    again = make_trainer(tmp_path / "b", Discriminative(), routed(), data_seed=5)
    assert shown(again, 4) == found


def test_evaluation_sees_the_first_epoch(tmp_path: Path) -> None:
    _, evaluation = settle_draws(config(tmp_path, seed=3), Discriminative(), None, {"a": routed()})
    assert not evaluation["a"].by_epoch
    assert evaluation["a"].routes.seed == 3
    train, alone = settle_draws(config(tmp_path), Discriminative(), routed(), routed())
    assert train.by_epoch
    assert not alone.by_epoch
    assert [train[n, 0]["caption"] for n in range(4)] == [alone[n]["caption"] for n in range(4)]


@pytest.mark.parametrize(
    ("objective", "settings", "fixed"),
    [
        (Discriminative(), {"max_tokens_per_batch": 500}, "max_tokens_per_batch"),
        (DPO(), {"precompute_ref_log_probs": True}, "precompute_ref_log_probs"),
        (Discriminative(), {"precompute_ref_log_probs": True}, ""),
    ],
)
def test_drawn_once_where_all_must_be_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, objective: Any, settings: dict[str, Any], fixed: str
) -> None:
    given = routed()
    with caplog.at_level(logging.WARNING, logger="mllm_align.trainers.draws"):
        train, _ = settle_draws(config(tmp_path, **settings), objective, given, None)
    assert train.by_epoch == (not fixed)
    assert given.by_epoch
    told = [message for message in caplog.messages if f": {fixed} would have to know all of them" in message]
    assert len(told) == bool(fixed)
