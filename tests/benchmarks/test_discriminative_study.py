"""The discriminative study: what it runs next, its arms, its dual encoder, how it asks, its tables and its page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import discriminative_arms
import discriminative_dual
import discriminative_evaluation
import discriminative_likelihood
import discriminative_rows
import discriminative_run
from answer_losses import Losses
from discriminative import chosen_rate, next_runs
from discriminative_arms import (
    ARMS,
    BASE,
    CONTROL,
    DUAL,
    DUAL_TWICE,
    LEARNING_RATES,
    LONGER,
    PREDICTED,
    PREDICTED_CONTROL,
    SEEDS,
    SHORT_INSTRUCTION,
    TOWER_CONTROL,
    TUNED,
    TWICE,
    UNTRAINED,
    Run,
    objective_of,
    order,
    steps_of,
    tuned_by,
    untrained,
)
from discriminative_evaluation import (
    IMAGE_TO_TEXT,
    LOSSES,
    NEGATIVES,
    QUESTIONS,
    TEXT_TO_IMAGE,
    negatives_parts,
    ranks,
)
from discriminative_likelihood import LIKELIHOOD, TOGETHER, likelihood_parts
from discriminative_metrics import columns_of, difference, finished
from discriminative_page import costs, differences, in_short, page, pairs_of, table
from discriminative_readings import gained, told_by
from discriminative_trials import trials, tried
from intervals import interval
from mllm_align.contract import Ragged, Signals, View
from mllm_align.data.world.captions import IMAGE_INSTRUCTION
from mllm_align.data.world.statements import NEGATIVE_KINDS
from mllm_align.models import load_model
from records import Records

STUDY = Path(__file__).resolve().parents[2] / "benchmarks" / "study"
STEPS = 4
SOME = [TUNED, DUAL, CONTROL]
SMALL = {
    discriminative_arms: {
        "NUM_CAPTIONS": 48,
        "NUM_LONG": 12,
        "NUM_REPLAY": 12,
        "CAPTIONS_PER_STEP": 6,
        "LONG_PER_STEP": 2,
        "REPLAY_PER_STEP": 2,
    },
    discriminative_evaluation: {
        "POOL": 12,
        "POOLS": (0,),
        "PER_KIND": 1,
        "NUM_SCENES": 2,
        "NUM_ADVERSARIAL": 2,
        "NUM_PAIRS": 1,
        "NUM_ANSWERS": 3,
        "VALIDATION_POOL": 6,
        "VALIDATION_PER_KIND": 1,
        "VALIDATION_SCENES": 2,
    },
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    kept = [getattr(discriminative_rows, name) for name in ("captions", "table")]
    kept += [getattr(discriminative_evaluation, name) for name in ("pools", "negatives", "asked", "answers")]
    for module, values in SMALL.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    for each in kept:
        each.cache_clear()
    yield
    for each in kept:
        each.cache_clear()


def record(arm: str, rate: float, seed: int, right: float = 1.0, score: float = 0.5) -> dict[str, Any]:
    """A run whose every answer is `right`, on as many units as leave no doubt."""
    test: dict[str, Any] = {name: {"values": [1 if right else 3] * 20} for name in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)} | {
        NEGATIVES + kind: {"values": [right] * 20} for kind in NEGATIVE_KINDS
    }
    if arm not in ARMS or not ARMS[arm].dual:
        test |= {name: {"values": [right] * 20, "clusters": [n // 2 for n in range(20)]} for name in QUESTIONS}
        test |= {name: {"values": [2.0 - right] * 20, "base": [4] * 20} for name in LOSSES}
    cost = {"seconds": 3.0, "flops_per_step": 5e11, "parameters": 2100, "trained_parameters": 1200}
    return {
        "run": Run(arm, rate, seed, 0 if arm in UNTRAINED else STEPS)._asdict(),
        **({} if arm in UNTRAINED else cost),
        "validation": {"recall": 0.25, "negatives": 0.5, "score": score},
        "test": test,
    }


def full(path: Path, right_of_base: float = 0.0) -> Records:
    """The base, and all seeds of `SOME`."""
    records = Records(path, Run)
    records.add(record(BASE, 0.0, 0, right_of_base))
    for seed in SEEDS:
        for arm in SOME:
            records.add(record(arm, LEARNING_RATES[tuned_by(arm)][0], seed, float(arm == TUNED)))
    return records


def test_base_then_rates_then_seeds_and_nothing_twice(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl", Run)
    tuning = [Run(tuned, rate, SEEDS[0], STEPS) for tuned in (TUNED, DUAL) for rate in LEARNING_RATES[tuned]]
    assert list(next_runs(records, SOME, STEPS)) == [*untrained(), *tuning]
    assert list(next_runs(records, [LONGER], STEPS)) == [*untrained(), *tuning[len(LEARNING_RATES[TUNED]) :]]
    for run in untrained():
        records.add(record(run.arm, 0.0, 0))
    for place, rate in enumerate(LEARNING_RATES[TUNED]):
        records.add(record(TUNED, rate, SEEDS[0], score=0.3 + 0.1 * place))
    again = Records(tmp_path / "runs.jsonl", Run)
    best = LEARNING_RATES[TUNED][-1]
    assert chosen_rate(again, TUNED, STEPS) == best
    assert chosen_rate(again, DUAL, STEPS) is chosen_rate(again, TUNED, STEPS + 1) is None
    assert list(next_runs(again, [TUNED, CONTROL], STEPS, SEEDS[:2])) == [
        Run(TUNED, best, SEEDS[1], STEPS),
        *(Run(CONTROL, best, seed, STEPS) for seed in SEEDS[:2]),
    ]


def test_a_seed_has_one_order_for_all_arms(small: Any) -> None:
    drawn = order(0, 5, 7, 3, "rows")
    assert [len(step) for step in drawn] == [3] * 5
    flat = [row for step in drawn for row in step]
    assert sorted(flat[:7]) == sorted(flat[7:14]) == list(range(7))
    assert order(0, 5, 7, 3, "rows") == drawn != order(1, 5, 7, 3, "rows")
    runs = [Run(arm, 1e-3, 0, 4) for arm in (TUNED, DUAL)]
    rows, per_step = discriminative_rows.training_rows(runs[0], ARMS[TUNED])
    assert per_step == 6 + 2
    assert len(rows) == 4 * per_step
    for number, step in enumerate(discriminative_rows.caption_order(runs[1])):
        own = [rows[number * per_step + place] for place in range(per_step)]
        assert [row["id"] for row in own[:6]] == [discriminative_rows.captions()[row]["id"] for row in step]
        assert [row["source"] for row in own] == ["captions"] * 6 + ["replay"] * 2
    alone, per_step = discriminative_rows.training_rows(runs[0], ARMS["contrast_alone"])
    assert (per_step, set(alone["source"])) == (6, {"captions"})
    assert [row["chosen"] is None for row in alone.select(range(6))] == [False] * 2 + [True] * 4
    control = discriminative_rows.training_rows(runs[0], ARMS[PREDICTED_CONTROL])[0]
    assert control["id"] == discriminative_rows.training_rows(runs[0], ARMS[PREDICTED])[0]["id"]
    short = control.select(range(2, 6))
    assert [(row["prompt"], row["chosen"]) for row in short] == [(SHORT_INSTRUCTION, row["caption"]) for row in short]
    assert set(control.select(range(2))["prompt"]) == {IMAGE_INSTRUCTION}
    assert (steps_of(runs[0]), steps_of(Run(LONGER, 1e-3, 0, 4))) == (4, 7)


def test_an_arm_of_twice_the_steps_goes_on_with_the_same_rows(small: Any, tmp_path: Path) -> None:
    own, twice = (discriminative_rows.training_rows(Run(arm, 1e-3, 0, 2), ARMS[arm]) for arm in (PREDICTED, TWICE))
    assert len(twice[0]) == 2 * len(own[0]) == 4 * twice[1]
    assert twice[0].select(range(len(own[0])))["id"] == own[0]["id"]
    assert discriminative_rows.caption_order(Run(DUAL_TWICE, 1e-3, 0, 2)) == discriminative_rows.caption_order(
        Run(TWICE, 1e-3, 0, 2)
    )
    trainer = discriminative_run.trainer_of(Run(TWICE, 1e-3, 0, 2), tmp_path / "run", tmp_path)[0]
    assert trainer.args.max_steps == 4
    # Their rival has as many steps; a control of as many there is none of.
    found = {arm: [] for arm in (BASE, TUNED, PREDICTED, PREDICTED_CONTROL, TWICE, DUAL, LONGER, DUAL_TWICE)}
    compared = list(pairs_of(found))
    assert [other for arm, other in compared if arm == TWICE] == [BASE, DUAL_TWICE, TUNED]
    assert [other for arm, other in compared if arm == PREDICTED] == [BASE, PREDICTED_CONTROL, DUAL, LONGER, TUNED]


def test_arms_differ_in_the_terms_that_they_name() -> None:
    found = {}
    for name, arm in ARMS.items():
        if arm.dual:
            continue
        objective, contrast = objective_of(arm)
        assert (contrast is None) == (name in (CONTROL, TOWER_CONTROL, PREDICTED_CONTROL))
        if contrast is not None:
            contrast.set_widths({each.name: 4 for each in objective.needs.features})
        features = {each.name: Ragged(torch.eye(4)[:2], torch.arange(2)) for each in objective.needs.features}
        own = View("image", "chosen")
        signals = Signals(
            {own: torch.full((3,), -2.0)},
            {own: torch.ones(3, dtype=torch.int64)},
            features=features,
            sources=("captions", "captions", "replay"),
        )
        terms = objective(signals, None).terms
        found[name] = {term.name: (term.weight * term.sum / term.count).item() for term in terms}
        assert any(each.column == "negatives" for each in objective.needs.features) == (arm.contrast and arm.negatives)
    assert [len(found[name]) for name in (TUNED, "contrast", "contrast_alone", CONTROL)] == [3, 2, 1, 2]
    # The contrast of all is the same number, whether the sum of both directions or twice their mean.
    assert found[TUNED]["discriminative/contrast"] == pytest.approx(found["contrast"]["info_nce"])
    assert found["contrast"]["info_nce"] > found["both_no_negatives"]["discriminative/contrast"] > 0


def test_ties_are_the_last_rank() -> None:
    same = np.ones((3, 3), np.float32)
    assert ranks(same) == [3, 3, 3]
    assert ranks(np.array([[3, 1, 2], [5, 4, 4], [1, 2, 0]], np.float32)) == [1, 3, 3]

    class Constant:
        def images(self, pictures: Any) -> Any:
            return np.ones((len(pictures), 1), np.float32)

        texts = images

    rows = [{"id": str(n), "image": None, "caption": "a", "negatives": ["b"], "kind": "swap_object"} for n in range(2)]
    assert negatives_parts(Constant(), rows)[f"{NEGATIVES}swap_object"].values == [0, 0]


def test_what_is_said_and_the_vectors_are_added_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = NEGATIVE_KINDS[0]
    rows = [{"id": str(n), "image": n, "caption": f"{n}", "negatives": ["no"], "kind": kind} for n in range(4)]
    vectors, nats = [0.5, -0.5, 0.1, 0.2], [0.9, -2.0, 1.1, 0.0]

    class Vectors:
        def images(self, pictures: Any) -> Any:
            return np.array([[vectors[n]] for n in pictures], np.float32)

        def texts(self, texts: Any) -> Any:
            return np.array([[float(text != "no")] for text in texts], np.float32)

    def losses(model: Any, processor: Any, given: Any) -> Any:
        assert {row["prompt"] for row in given} == {SHORT_INSTRUCTION}
        return Losses([5.0 if row["chosen"] == "no" else 5.0 + nats[row["image"]] for row in given], [], [])

    monkeypatch.setattr(discriminative_likelihood, "negatives", lambda: rows)
    monkeypatch.setattr(discriminative_likelihood, "losses", losses)
    found = likelihood_parts(Vectors(), 2.0, None, None)
    assert found[LIKELIHOOD + kind].values == [0, 1, 0, 0]  # as probable is a tie, and wrong
    assert found[TOGETHER + kind].values == [1, 1, 0, 1]
    assert set(likelihood_parts(Vectors(), None, None, None)) == {LIKELIHOOD + kind}


def test_the_dual_encoder_begins_with_the_eyes_and_words_of_the_base() -> None:
    base: Any
    base, processor = load_model("demo-base", device=torch.device("cpu"))
    dual = discriminative_dual.Dual(base, processor).eval()
    size = sum(each.numel() for each in base.parameters())
    assert sum(each.numel() for each in dual.clip.parameters()) == pytest.approx(size, rel=0.05)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    given = discriminative_dual.normalised(pixels, processor)
    seen = [
        tower(given, output_hidden_states=True).hidden_states[-1]
        for tower in (base.model.vision_tower, dual.clip.vision_model)
    ]
    torch.testing.assert_close(seen[1], seen[0])
    words = dual.clip.text_model.embeddings.token_embedding.weight
    torch.testing.assert_close(words[:-1], base.get_input_embeddings().weight)
    # What a text is read off stands behind it, so padding and the other texts of a batch change nothing.
    short, long = "a red circle", "a red circle on the left and a blue square on the right"
    alone, beside = dual.embed_texts([short]), dual.embed_texts([short, long])
    torch.testing.assert_close(beside[:1], alone)
    assert (beside[0] - beside[1]).abs().max() > 0.01


def test_the_contrast_of_the_dual_encoder_is_that_of_a_loop() -> None:
    base, processor = load_model("demo-base", device=torch.device("cpu"))
    dual = discriminative_dual.Dual(base, processor).eval().double()
    rows = [{"caption": f"a {word} circle", "negatives": [f"a {word} ring"]} for word in ("red", "blue", "green")]
    images = torch.nn.functional.normalize(torch.randn(3, 8, dtype=torch.float64), dim=1)
    texts, false = (torch.nn.functional.normalize(torch.randn(3, 8, dtype=torch.float64), dim=1) for _ in range(2))
    dual.embed_images = lambda pixels: images  # type: ignore[method-assign]
    given = iter((texts, false))
    dual.embed_texts = lambda text: next(given)  # type: ignore[method-assign]
    loss = discriminative_dual.contrast(dual, rows, torch.zeros(3), negatives=True)
    scale, wanted = 1 / discriminative_arms.TEMPERATURE, 0.0
    for i in range(3):
        among = [math.exp(scale * float(images[i] @ other)) for other in (*texts, *false)]
        back = [math.exp(scale * float(texts[i] @ other)) for other in images]
        wanted -= (math.log(among[i] / sum(among)) + math.log(back[i] / sum(back))) / 6
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_columns_of_both_directions_share_their_pictures() -> None:
    both = columns_of([record(TUNED, 1e-3, 0)], "R@1")
    assert both is not None
    assert both.values.shape == (1, 40)
    assert len(set(both.clusters)) == 20
    kinds = columns_of([record(TUNED, 1e-3, 0)], "hard negatives")
    assert kinds is not None
    assert len(set(kinds.clusters)) == 20 * len(NEGATIVE_KINDS)
    loss = columns_of([record(TUNED, 1e-3, 0)], "loss/captions")
    assert loss is not None
    assert interval(loss).value == pytest.approx(0.25)
    assert columns_of([record(DUAL, 1e-3, 0)], "questions") is None


def test_the_tables_and_what_the_page_says(tmp_path: Path) -> None:
    records = full(tmp_path / "runs.jsonl")
    found = finished(records, STEPS)
    assert list(found) == [BASE, *SOME]
    assert set(pairs_of(found)) == {(TUNED, BASE), (TUNED, CONTROL), (TUNED, DUAL), (DUAL, TUNED), (CONTROL, TUNED)}
    lines = table(records, STEPS, ("R@1", "swap", "questions")).splitlines()
    assert lines[3] == f"| {TUNED} | 100.0 (100.0, 100.0) | 100.0 (100.0, 100.0) | 100.0 (100.0, 100.0) |"
    assert lines[4].endswith("|  |")
    rows = {line.split("|")[1].strip(): line for line in differences(records, STEPS).splitlines()[2:]}
    assert "+100.0 (+100.0, +100.0)" in rows[f"{TUNED} - {DUAL}"]
    assert "-0.250 (-0.250, -0.250)" in rows[f"{TUNED} - {BASE}"]
    assert f"| {TUNED} | 0.005 | 2,100 | 1,200 | {STEPS} | 2.0 | 3 |" in costs(records, STEPS)
    text = page(records, STEPS)
    assert f"from 0.0 (0.0, 0.0) of the base to 100.0 (100.0, 100.0) of `{TUNED}`" in text
    assert "so no more than 2 are lost" in text
    assert f"- `{TUNED}` minus `{DUAL}`, in points: R@1 +100.0" in text
    assert "Not all seeds have run of: dual_longer, contrast, " in text
    # A base that is right of all, and an arm that is wrong of all, is a loss.
    records = Records(tmp_path / "lost.jsonl", Run)
    records.add(record(BASE, 0.0, 0))
    for seed in SEEDS:
        records.add(record(TUNED, LEARNING_RATES[TUNED][0], seed, 0.0))
    lost = difference(finished(records, STEPS), TUNED, BASE, "questions")
    assert lost is not None
    assert lost.value == -1
    assert "more than the 2 that may be" in in_short(records, STEPS)


def test_hard_negatives_by_each_reading_beside_the_dual_encoder(tmp_path: Path) -> None:
    found = {}
    for arm, values in {PREDICTED: (0.0, 1.0, 1.0), PREDICTED_CONTROL: (0.0, 0.0), DUAL: (0.0,)}.items():
        own = record(arm, 1e-3, 0, values[0])
        for reading, right in zip((LIKELIHOOD, TOGETHER), values[1:], strict=False):
            own["test"] |= {reading + kind: {"values": [right] * 20} for kind in NEGATIVE_KINDS}
        found[arm] = [own]
    lines = told_by(found).splitlines()
    whole, none = "100.0 (100.0, 100.0)", "0.0 (0.0, 0.0)"
    assert lines[2:8] == [
        f"| {arm} | {by} | {' | '.join([value] * 4)} |"
        for arm, by, value in (
            (PREDICTED_CONTROL, "vectors", none),
            (PREDICTED_CONTROL, "likelihood", none),
            (PREDICTED, "vectors", none),
            (PREDICTED, "likelihood", whole),
            (PREDICTED, "both", whole),
            (DUAL, "vectors", none),
        )
    ]
    compared = dict(line.strip("| ").split(" | ", 1) for line in lines[11:])
    assert compared[f"{PREDICTED} by both - {DUAL} by vectors"] == " | ".join(
        [f"+{whole}".replace("(", "(+").replace(", ", ", +")] * 4
    )
    assert f"{PREDICTED} by likelihood - {PREDICTED_CONTROL} by likelihood" in compared
    assert not any(LONGER in name for name in compared)
    first, second = gained(found)
    assert "by vectors +0.0 (+0.0, +0.0), by likelihood +100.0 (+100.0, +100.0), by both +100.0" in first
    assert "without a contrast tells 0.0 (0.0, 0.0) of the hard negatives" in second
    assert gained({arm: found[arm] for arm in (DUAL, PREDICTED_CONTROL)}) == []


def test_from_an_arm_to_a_record(small: Any, tmp_path: Path) -> None:
    runs = [untrained()[0], *(Run(arm, 1e-3, 0, 2) for arm in (TUNED, DUAL, PREDICTED_CONTROL))]
    found = {run.arm: discriminative_run.carry_out(run, tmp_path) for run in runs}
    kinds = {NEGATIVES + kind for kind in NEGATIVE_KINDS}
    ranked = {IMAGE_TO_TEXT, TEXT_TO_IMAGE} | kinds
    assert set(found[DUAL]["test"]) == ranked
    said, together = ({reading + kind for kind in NEGATIVE_KINDS} for reading in (LIKELIHOOD, TOGETHER))
    assert set(found[BASE]["test"]) == ranked | said | set(QUESTIONS) | set(LOSSES)
    assert set(found[PREDICTED_CONTROL]["test"]) == set(found[BASE]["test"])
    assert set(found[TUNED]["test"]) == set(found[BASE]["test"]) | together
    for name in (*QUESTIONS, *LOSSES):
        own, base = (found[arm]["test"][name] for arm in (TUNED, BASE))
        assert (own.get("clusters"), own.get("base")) == (base.get("clusters"), base.get("base"))
    assert len(found[BASE]["test"][IMAGE_TO_TEXT]["values"]) == 12
    assert "questions" not in found[DUAL]["validation"]
    assert found[TUNED]["trained_parameters"] < found[DUAL]["trained_parameters"]
    # Instructions, long captions and replay are what a step of the dual encoder goes without.
    assert found[TUNED]["flops_per_step"] > 1.2 * found[DUAL]["flops_per_step"] > 0
    assert found[TUNED]["test"]["loss/captions"]["values"] != found[BASE]["test"]["loss/captions"]["values"]


def test_the_page_has_the_tables_of_the_records() -> None:
    records = Records(STUDY / "discriminative_runs.jsonl", Run)
    written = (STUDY / "discriminative.md").read_text(encoding="utf-8")
    for part in (costs, differences, in_short):
        assert part(records, discriminative_arms.STEPS) in written
    assert tried() in written
    assert all(each["tried"] in written for each in trials())
    assert {BASE, TUNED, DUAL, CONTROL} <= set(finished(records, discriminative_arms.STEPS))
