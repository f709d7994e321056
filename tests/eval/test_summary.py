"""A whole summary of 60 small questions, against values worked out by hand and plain loops."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image
from scipy import stats

from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.report import write_results
from mllm_align_eval.summary import describe, summarise

COLOURS = ("red", "green", "blue")


def ask(split, number, kind, answer, *, prior=None, pair=None, scene=None):
    return Item(
        id=f"world/{split}/{number}",
        benchmark="world",
        split=split,
        kind=kind,
        cluster=f"{split}-{number // 2 if scene is None else scene}",
        prompt={"existence": "Is there a star?", "colour": "What colour is the star?"}[kind],
        choices=COLOURS if kind == "colour" else ("yes", "no"),
        answer=answer,
        pictures=(Picture("scene", lambda: Image.new("RGB", (8, 8))),),
        pair=pair,
        prior_answer=prior,
    )


def questions():
    """24 adversarial (12 existence, 12 colour), 8 in distribution, 16 polls, 6 pairs of colours."""
    found = []
    for number in range(24):
        if number % 2:
            found.append(ask("adversarial", number, "colour", "blue", prior="red"))
        else:
            truth, prior = ("yes", "no") if number % 4 else ("no", "yes")
            found.append(ask("adversarial", number, "existence", truth, prior=prior))
    found += [ask("in_distribution", n, "colour", "red", prior="red") for n in range(8)]
    found += [ask("pope_adversarial", n, "existence", "no" if n % 2 else "yes") for n in range(16)]
    found += [ask("pairs", n, "colour", COLOURS[n % 2], pair=f"p{n // 2}") for n in range(12)]
    return found


def say(item, choice):
    scores = tuple(-0.1 if option == choice else -3.0 for option in item.choices)
    return Answer(item.id, choice or "hm", choice, choice == item.answer, scores, "answered" if choice else "invalid")


def other_than(item):
    return next(choice for choice in item.choices if choice != item.answer)


def told(items, wrong, method="logprob"):
    """Answers that are right but for the numbered items of `wrong[split]`."""
    answers = []
    for item in items:
        number = int(item.id.rsplit("/", 1)[1])
        spoken = say(item, other_than(item) if number in wrong.get(item.split, ()) else item.answer)
        answers.append(spoken if method == "logprob" else Answer(item.id, spoken.text, spoken.choice, spoken.right))
    return answers


BASE_WRONG = {
    "adversarial": range(18),
    "in_distribution": [0],
    "pope_adversarial": [0, 1, 3, 5, 7, 9],
    "pairs": [0, 1, 2, 4, 6],
}
ALIGNED_WRONG = {"adversarial": range(3), "in_distribution": [0, 4], "pope_adversarial": [1], "pairs": [10]}


@pytest.fixture(scope="module")
def items():
    return questions()


@pytest.fixture(scope="module")
def answers(items):
    return {
        arm: {
            ("logprob", "right"): told(items, wrong),
            ("logprob", "other"): told(items, {"adversarial": range(20)}),
            ("generate", "right"): told(items, wrong, "generate"),
        }
        for arm, wrong in (("base", BASE_WRONG), ("aligned", ALIGNED_WRONG))
    }


@pytest.fixture(scope="module")
def results(items, answers):
    return summarise(items, answers, seed=1)


@pytest.mark.parametrize(
    ("metric", "base", "aligned", "n"),
    [
        ("world/adversarial/acc", 6 / 24, 21 / 24, 24),
        ("world/adversarial/existence_acc", 3 / 12, 10 / 12, 12),
        ("world/adversarial/colour_acc", 3 / 12, 11 / 12, 12),
        ("world/in_distribution/acc", 7 / 8, 6 / 8, 8),
        ("world/pope_adversarial/acc", 10 / 16, 15 / 16, 16),
        # Base: pairs 0, 1, 2, 3 have a wrong question (0 has two), 4 and 5 none. Aligned: pair 5 has one.
        ("world/pair_acc", 2 / 6, 5 / 6, 6),
        ("world/adversarial/other_image_acc", 4 / 24, 4 / 24, 24),
        ("world/visual_gap", 2 / 24, 17 / 24, 24),
        # The prior is wrong on all 24; a wrong answer to existence is its "yes" or "no", to colour the first choice.
        ("world/adversarial/follows_prior", 18 / 24, 3 / 24, 24),
        # Yes is said to 7 of 8 present and 5 of 8 absent things, then to 8 and 1.
        ("world/pope_adversarial/yes_rate", 12 / 16, 9 / 16, 16),
    ],
)
def test_values_by_hand(results, metric, base, aligned, n):
    for arm, value in (("base", base), ("aligned", aligned)):
        cell = results["arms"][arm][metric]
        assert cell["value"] == pytest.approx(value)
        assert cell["low"] <= cell["value"] <= cell["high"]
        assert cell["n"] == n
    difference = results["differences"]["aligned-base"][metric]
    assert difference["value"] == pytest.approx(aligned - base)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert difference["n"] == n
    beside_zero = difference["low"] > 0 or difference["high"] < 0
    # Few clusters differ: an interval of resamples alone shows nothing then.
    assert difference["excludes_zero"] == (beside_zero and difference["p"] < 0.05)
    assert difference["detectable"] >= 0


def test_detection_by_hand(results):
    cells = results["arms"]["base"]
    hit, alarm = stats.norm.ppf(7.5 / 9), stats.norm.ppf(5.5 / 9)
    assert cells["world/pope_adversarial/dprime"]["value"] == pytest.approx(hit - alarm)
    assert cells["world/pope_adversarial/criterion"]["value"] == pytest.approx(-(hit + alarm) / 2)
    # Two levels of log-odds: 7 * 3 pairs are in order, 7 * 5 + 1 * 3 are tied, 1 * 5 in reverse.
    assert cells["world/pope_adversarial/auc"]["value"] == pytest.approx((21 + 38 / 2) / 64)
    # Where the kinds are mixed there is no threshold to speak of.
    assert "world/adversarial/dprime" not in cells


def test_large_effect_is_found_and_none_is_not(results):
    differences = results["differences"]["aligned-base"]
    assert differences["world/adversarial/acc"]["excludes_zero"]
    assert not differences["world/adversarial/other_image_acc"]["excludes_zero"]
    assert differences["world/adversarial/other_image_acc"]["value"] == 0


def test_generated_answers_have_their_own_metrics(results):
    cells = results["arms"]["aligned"]
    for name in ("adversarial/acc", "adversarial/colour_acc", "pair_acc", "in_distribution/acc"):
        assert cells[f"world/{name}_generated"]["value"] == cells[f"world/{name}"]["value"]
    assert "world/pope_adversarial/auc_generated" not in cells
    assert "world/visual_gap_generated" not in cells
    assert not any("no_image" in name for name in cells)


def test_baselines_by_hand(results):
    baselines = results["baselines"]
    assert baselines["always yes"]["world/pope_adversarial/acc"] == 0.5
    assert baselines["always no"]["world/pope_adversarial/acc"] == 0.5
    assert "world/adversarial/acc" not in baselines["always yes"], "colours cannot be answered with yes"
    assert baselines["chance"]["world/adversarial/acc"] == pytest.approx((12 / 2 + 12 / 3) / 24)
    assert baselines["chance"]["world/pair_acc"] == pytest.approx(1 / 9)
    assert baselines["prior"]["world/adversarial/acc"] == 0
    assert baselines["prior"]["world/in_distribution/acc"] == 1
    assert baselines["text only"]["world/in_distribution/acc"] == 1
    assert baselines["text only"]["world/pair_acc"] == 0, "one text has one answer, and the two scenes differ"
    assert baselines["text only"]["world/adversarial/colour_acc"] == 1


def test_text_only_answer_is_not_learned_from_the_question_itself(items):
    # Every text occurs once, so whoever looked at the truth of the question itself would have all right.
    lone = [
        Item(**{**vars(item), "prompt": f"{item.prompt} {number}", "kind": f"{item.kind}{number}"})
        for number, item in enumerate(items)
        if item.split == "pope_adversarial"
    ]
    found = summarise(lone, {"base": {("logprob", "right"): told(lone, {})}})
    assert found["baselines"]["text only"]["world/pope_adversarial/acc"] == 0.5


def test_unreadable_answers_are_counted_and_wrong(items):
    given = told(items, {})
    given[:6] = [say(item, None) for item in items[:6]]
    found = summarise(items, {"base": {("generate", "right"): given}})
    assert found["unreadable"]["base"] == pytest.approx(6 / 60)
    assert found["arms"]["base"]["world/adversarial/acc_generated"]["value"] == pytest.approx(18 / 24)
    assert "world/adversarial/acc" not in found["arms"]["base"]


def test_seed_reproduces_and_order_does_not_matter(items, answers, results):
    again = summarise(items, dict(reversed(answers.items())), seed=1)
    assert again["arms"] == results["arms"]
    assert again["differences"] == results["differences"]
    shuffled = {arm: {key: given[::-1] for key, given in parts.items()} for arm, parts in answers.items()}
    assert summarise(items, shuffled, seed=1)["arms"] == results["arms"]
    moved = summarise(items, answers, seed=2)["arms"]["base"]["world/adversarial/acc"]
    cell = results["arms"]["base"]["world/adversarial/acc"]
    assert moved["value"] == cell["value"]
    assert (moved["low"], moved["high"]) != (cell["low"], cell["high"]) or moved == cell


def test_differences_are_of_the_arms_that_there_are(items, answers):
    arms = {"base": answers["base"], "control": answers["aligned"], "base_16bit": answers["base"]}
    found = summarise(items, arms)["differences"]
    assert set(found) == {"control-base", "base-base_16bit"}
    assert all(cell["value"] == 0 for cell in found["base-base_16bit"].values())
    chosen = summarise(items, arms, comparisons=[("base", "control")])["differences"]
    assert chosen["base-control"]["world/pair_acc"]["value"] == pytest.approx(
        -found["control-base"]["world/pair_acc"]["value"]
    )


def test_mcnemar_is_given_where_questions_are_scenes_of_their_own(results):
    found = results["mcnemar"]["aligned-base"]
    assert "world/pair_acc" in found
    assert "world/adversarial/acc" not in found, "two questions a scene"
    # Of six pairs the aligned model alone has 0, 1, 2, 3 and the base alone 5.
    assert found["world/pair_acc"] == {"only_first": 4, "only_second": 1, "p": pytest.approx(2 * 6 / 32)}


def test_arms_with_different_questions_are_refused(items, answers):
    fewer = {("logprob", "right"): answers["base"]["logprob", "right"][:-1]}
    with pytest.raises(ValueError, match="different questions"):
        summarise(items, {"base": answers["base"], "aligned": fewer})
    with pytest.raises(ValueError, match="no arms"):
        summarise(items, {})
    with pytest.raises(ValueError, match="none of the items"):
        summarise(items[1:], {"base": answers["base"]})
    odd = [item for item in items if item.id != "world/pairs/3"]
    with pytest.raises(ValueError, match="p1"):
        summarise(odd, {"base": {("logprob", "right"): told(odd, {})}})


def test_results_are_written_as_json(results, tmp_path):
    stored = json.loads(write_results(results, tmp_path / "results.json").read_text())
    assert stored["arms"]["base"]["world/pair_acc"] == results["arms"]["base"]["world/pair_acc"]


def test_description_changes_with_the_questions(items):
    whole = describe(items)
    assert whole["world/adversarial"]["questions"] == 24
    assert whole["world/adversarial"]["clusters"] == 12
    changed = describe([items[0], *items[2:]])
    assert changed["world/adversarial"]["sha256"] != whole["world/adversarial"]["sha256"]
    assert changed["world/pairs"] == whole["world/pairs"]


def test_answers_that_were_lost_by_split(items):
    given = told(items, {}, "generate")
    for place in range(6):
        text = ("hm" if place < 5 else " ") if place else "I cannot tell"
        state = "invalid" if place else "abstained"
        given[place] = Answer(items[place].id, text, None, False, state=state, truncated=place < 3)
    found = summarise(items, {"base": {("generate", "right"): given}})["reading"]["base"]
    cell = found["world/adversarial"]
    assert (cell["n"], cell["open"]) == (24, False)
    assert cell["unreadable"] == pytest.approx(5 / 24)
    assert cell["empty"] == pytest.approx(1 / 24)
    assert cell["abstained"] == pytest.approx(1 / 24)
    assert cell["truncated"] == pytest.approx(3 / 24)
    assert cell["truncated_unreadable"] == pytest.approx(2 / 24)
    assert found["world/pairs"]["unreadable"] == 0


def test_calibration_by_split_and_its_difference(results):
    bins = results["calibration"]["base"]["world/pope_adversarial"]["bins"]
    # All answers are as sure: 0.948 of two choices, of which 10 of 16 are right.
    assert [part["n"] for part in bins] == [16]
    sure = 1 / (1 + math.exp(-2.9))
    assert bins[0]["confidence"] == pytest.approx(sure)
    assert bins[0]["accuracy"] == pytest.approx(10 / 16)
    error = results["arms"]["base"]["world/pope_adversarial/ece"]
    assert error["value"] == pytest.approx(sure - 10 / 16)
    assert error["clusters"] == 8
    brier = (10 * (1 - sure) ** 2 + 6 * sure**2) / 16
    assert results["arms"]["base"]["world/pope_adversarial/brier"]["value"] == pytest.approx(brier)
    change = results["differences"]["aligned-base"]["world/pope_adversarial/ece"]
    assert change["value"] == pytest.approx(abs(15 / 16 - sure) - (sure - 10 / 16))
    assert not any("ece_generated" in name for name in results["arms"]["base"])


def test_the_part_of_a_gain_that_is_the_criterion(results):
    found = results["criterion_shift"]["aligned-base"]
    assert set(found) == {"world/pope_adversarial", "world/pope_adversarial_generated"}
    cell = found["world/pope_adversarial"]
    hit, alarm = stats.norm.ppf(7.5 / 9), stats.norm.ppf(5.5 / 9)
    after = -(stats.norm.ppf(8.5 / 9) + stats.norm.ppf(1.5 / 9)) / 2
    half, before = (hit - alarm) / 2, -(hit + alarm) / 2
    accuracy = [(stats.norm.cdf(half - c) + stats.norm.cdf(half + c)) / 2 for c in (before, after)]
    assert cell["value"] == pytest.approx(accuracy[1] - accuracy[0])
    assert cell["low"] <= cell["value"] <= cell["high"]


def test_a_split_of_one_answer_alone_has_no_sensitivity():
    same = [ask("pope_random", number, "existence", "no") for number in range(6)]
    found = summarise(same, {"base": {("logprob", "right"): told(same, {"pope_random": [0]})}})["arms"]["base"]
    assert "world/pope_random/yes_rate" in found
    assert not {"world/pope_random/dprime", "world/pope_random/criterion", "world/pope_random/auc"} & set(found)


def test_what_was_asked_is_noted(results):
    card = results["benchmarks"]["world"]
    assert card["primary"] == ["world/adversarial/acc", "world/pair_acc"]
    assert card["parser"] == "strict"
    assert results["intervals"]["unit"] == "scene"
