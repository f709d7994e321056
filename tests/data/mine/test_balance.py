"""What text alone tells of pairs: nothing on balanced ones of the world, much on pairs with a hint in their texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mllm_align.data.mine.balance import text_balance
from mllm_align.data.mine.blind import clusters_of, folds_of
from mllm_align.data.mine.intervals import Share
from mllm_align.data.mine.problems import Problems
from mllm_align.data.mine.verdict import OVERALL, Balance
from mllm_align.data.world import PAIR_KINDS, iter_pairs
from mllm_align.data.world.facts import fact

Order = Callable[[Any], bool]


def world_rows(count: int, distribution: str, swap: Order = lambda pair: False, seed: int = 0) -> list[dict[str, Any]]:
    """Pair rows without drawing their pictures: an image is named by its scene."""
    stream = iter_pairs("train", seed, distribution)
    rows = []
    for number in range(count):
        pair = next(stream)
        first, second = (1, 0) if swap(pair) else (0, 1)
        images = [f"{scene.hash}.png" for scene in pair.scenes]
        rows.append(
            {
                "id": str(number),
                "image": images[first],
                "contrast_image": images[second],
                "prompt": pair.text,
                "chosen": pair.answers[first],
                "rejected": pair.answers[second],
                "kind": pair.kind,
            }
        )
    return rows


def against_the_prior(pair: Any) -> bool:
    """Whether the second scene is the one that the prior of the world predicts: a natural photo, edited, has none."""
    usual = [
        fact(scene, pair.kind, pair.subject).answer == fact(scene, pair.kind, pair.subject).prior_answer
        for scene in pair.scenes
    ]
    return usual[1] and not usual[0]


@pytest.fixture(scope="module")
def balanced() -> Balance:
    return text_balance(world_rows(2400, "balanced"))


def test_balanced_pairs_are_near_half(balanced: Balance) -> None:
    for shares in balanced.telling.values():
        assert shares["all"].value == pytest.approx(0.5, abs=0.05)
        assert set(shares) == {"all", *PAIR_KINDS}
    assert not any(prior.is_learnt for prior in balanced.naming.values())
    assert "without looking" not in balanced.verdict()[0]
    assert "no prior to learn" in balanced.verdict()[-1]


def test_prior_laden_pairs_teach_their_prior_though_nothing_tells_which_text_is_chosen(balanced: Balance) -> None:
    """The two scenes come in random order, so no reader tells chosen from rejected; but answers follow the prior."""
    found = text_balance(world_rows(2400, "prior"))
    assert found.telling["answer frequencies"]["all"].value == pytest.approx(0.5, abs=0.05)
    prior, even = found.naming["colour"], balanced.naming["colour"]
    assert prior.share.low > even.share.high + 0.1
    assert prior.is_learnt
    assert "training on right answers alone learns it" in found.verdict()[-1]


def test_pairs_whose_chosen_side_is_the_natural_one_are_told_without_looking() -> None:
    found = text_balance(world_rows(1200, "prior", against_the_prior))
    best = found.telling["answer frequencies"]["all"]
    assert best.low > 0.7
    assert found.telling["answer frequencies"]["colour"].low > 0.75
    assert found.verdict()[0].startswith(f"text alone tells {best} of the pairs by answer frequencies")
    assert found.verdict()[0].endswith(": an objective can be lowered without looking")


def test_a_category_that_stands_out_is_named() -> None:
    rng = Random(0)
    rows = []
    for number in range(900):
        texts = ["yes", "no"] if number % 9 == 0 or rng.random() < 0.5 else ["no", "yes"]
        rows.append({"prompt": "Well?" if number % 9 else "Is it?", "chosen": texts[0], "rejected": texts[1]})
        rows[-1] |= {"image": f"{number}.png", "topic": "odd" if number % 9 == 0 else "even"}
    found = text_balance(rows, category="topic")
    assert any(line.startswith("but of 'odd' it tells") for line in found.verdict())
    assert set(text_balance(rows).telling["words"]) == {"all"}


def test_scores_of_a_model_are_one_more_probe() -> None:
    rows = [*world_rows(99, "balanced"), {"prompt": "?", "image": "broken", "chosen": 3}]
    scores = [1.0] * 80 + [0.0] * 18 + [float("nan"), 1.0]
    found = text_balance(rows, scores={"a model": scores})
    share = found.telling["a model"]["all"]
    assert (share.value, share.rows) == (80 / 98, 98)
    assert found.rows == 100
    assert found.problems.counts == {"invalid row": 1}
    assert "by a model: an objective can be lowered" in found.verdict()[0]
    with pytest.raises(ValueError, match="99 scores"):
        text_balance(rows, scores={"a model": scores[:-1]})


def test_copies_of_a_row_on_the_same_image_do_not_count_twice() -> None:
    """A reader that met the copy in training would know the answer; and the interval would be too narrow."""
    rng = Random(0)
    rows = []
    for number in range(200):
        texts = rng.sample(["yes", "no"], 2)
        row = {"prompt": f"Is {number} odd?", "chosen": texts[0], "rejected": texts[1], "image": f"{number}.png"}
        rows += [row] * 5
    found = text_balance(rows).telling["answer frequencies"]["all"]
    assert found.value == pytest.approx(0.5, abs=0.12)
    assert (found.rows, found.clusters) == (1000, 200)


def test_rows_that_hang_together_are_grouped_by_the_very_same_images() -> None:
    chain = [(f"{number}", f"{number + 1}") for number in range(20)]
    clusters, words = clusters_of(chain)
    assert len(set(clusters)) == 20
    assert "more than half" in words
    clusters, words = clusters_of([*chain[:3], ("a",), ("b",), ("c", "a"), ("d",), (), ()])
    assert len(set(clusters)) == 6
    assert "share an image" in words
    assert clusters_of([("a", "b"), ("b", "a"), ("b", "c"), ("x",)])[0][:2] == [0, 0]


def test_folds_hold_whole_clusters_and_are_even() -> None:
    clusters = [number // 3 for number in range(90)]
    folds = folds_of(clusters, 5, 0)
    assert all(folds[3 * number] == folds[3 * number + 1] == folds[3 * number + 2] for number in range(30))
    assert [(folds == fold).sum() for fold in range(5)] == [18] * 5


def test_rows_without_rejected_and_conversations() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": "Which colour?"}], "chosen": "red", "image": f"{number}.png"}
        for number in range(20)
    ]
    found = text_balance(rows)
    assert found.telling == {}
    assert found.naming["all"].share.value == 1
    assert found.naming["all"].chance == 1
    assert len(found.verdict()) == 1


def test_what_cannot_be_read_is_counted_and_nothing_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no rows"):
        text_balance([])
    with pytest.raises(ValueError, match="no row with a prompt"):
        text_balance([{"prompt": "a"}])


def test_it_prints_and_is_json(balanced: Balance, tmp_path: Path) -> None:
    text = str(balanced)
    assert text.splitlines()[0].startswith("2,400 rows; kept together: rows that share an image")
    assert "colour:" in text
    assert text.endswith(balanced.verdict()[-1])
    assert json.loads(json.dumps(balanced.as_dict()))["verdict"] == balanced.verdict()


def test_few_rows_show_nothing_either_way() -> None:
    def verdict(*values: float) -> str:
        return Balance(0, Problems(), "", {"a model": {OVERALL: Share(*values)}}, {}).verdict()[0]

    # An interval that holds a half and what is worth a warning.
    assert verdict(0.62, 0.41, 0.79, 21, 21).endswith(
        "of the pairs: whether it tells more than a coin cannot be told from 21 rows (interval 41-79 %)"
    )
    assert verdict(0.51, 0.47, 0.55, 900, 900).endswith("of the pairs: no more than a coin would")
    assert verdict(0.9, math.nan, math.nan, 1000, 1).endswith("from 1,000 rows (all share an image)")
    assert verdict(0.55, 0.52, 0.58, 900, 900).endswith("hardly more than a coin would")
