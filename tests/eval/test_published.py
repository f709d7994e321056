"""Published metrics beside the general ones, and which differences a run may speak of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_items import item, picture, said
from mllm_align_eval.baselines import baselines
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.benchmarks.captions import caption_item
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.objects import Vocabulary
from mllm_align_eval.benchmarks.pope import POPE
from mllm_align_eval.benchmarks.sugarcrepe import SUBSETS
from mllm_align_eval.comparing import mcnemar_tests, paired
from mllm_align_eval.items import Answer, Picture
from mllm_align_eval.metrics import Measure
from mllm_align_eval.published import length_matched, published_measures
from mllm_align_eval.report import headline
from mllm_align_eval.report.labels import metric_label
from mllm_align_eval.report.leading import primary
from mllm_align_eval.statistics import ClusterBootstrap, Estimate, equivalence, holm, mean_metric
from mllm_align_eval.summary import summarise


@pytest.fixture
def items(tmp_path: Path) -> list[Any]:
    for split in ("adversarial", "random"):
        rows = [
            {"question_id": n, "image": f"{n}.jpg", "text": f"Is there a thing {n}?", "label": ("yes", "no")[n % 2]}
            for n in range(40)
        ]
        (tmp_path / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, rows)))
    return POPE.read(tmp_path, PictureFolder(None, "nowhere"))


def texts(items: list[Any], wrong: int) -> list[Any]:
    """Answers of which the first `wrong` of each split are."""
    flip = {"yes": "no", "no": "yes"}
    return [said(item, flip[item.answer] if int(item.id.rsplit("/", 1)[1]) < wrong else item.answer) for item in items]


def test_keys_say_how_and_under_which_picture(items: list[Any]) -> None:
    answers = {("generate", "right"): texts(items, 10), ("logprob", "blank"): texts(items, 30)}
    found = published_measures(items, answers, {"pope": POPE})
    assert found["pope/adversarial/f1_generated"].metric.value() == pytest.approx(0.75)
    assert found["pope/random/f1_blank_image"].metric.value() == pytest.approx(0.25)
    assert not any(key.endswith("/f1") for key in found)
    assert published_measures(items, answers, {}) == {}


def test_a_run_is_judged_by_few_metrics_and_holm(items: list[Any]) -> None:
    answers = {
        "base": {("generate", "right"): texts(items, 20)},
        "aligned": {("generate", "right"): texts(items, 2)},
    }
    results = summarise(items, answers, benchmarks={"pope": POPE}, num_resamples=400)
    assert results["arms"]["aligned"]["pope/adversarial/f1_generated"]["value"] == pytest.approx(0.95)
    (judged,) = results["primary"]["aligned-base"].items()
    assert judged[0] == "pope/adversarial/acc_generated"
    assert judged[1]["p_holm"] == judged[1]["p"] < 0.05
    cell = results["differences"]["aligned-base"]["pope/adversarial/acc_generated"]
    assert cell["p"] < 0.05
    assert cell["equivalent_p"] > 0.9


def test_no_harm_is_shown_by_a_small_interval_not_by_a_wide_one() -> None:
    def estimate(value: float, error: float) -> Estimate:
        return Estimate(value, math.nan, math.nan, 1, 1, error)

    assert equivalence(estimate(0.0, 0.002), 0.01) < 1e-5
    assert equivalence(estimate(0.0, 0.02), 0.01) > 0.3
    assert equivalence(estimate(0.03, 0.002), 0.01) > 0.99
    assert equivalence(estimate(-0.03, 0.002), 0.01) > 0.99
    assert equivalence(estimate(0.01, 0.002), 0.01) == pytest.approx(0.5, abs=1e-6)
    # That no cluster differs excludes little of one, and a change in one of a hundred of 300.
    assert equivalence(estimate(0.0, 0.0), 0.01) == pytest.approx(0.99)
    assert equivalence(replace(estimate(0.0, 0.0), clusters=300), 0.01) < 0.05
    assert equivalence(estimate(0.02, 0.0), 0.01) == 1


def test_the_p_value_holds_its_level_and_finds_a_difference() -> None:
    rng = np.random.default_rng(0)
    clusters = [str(number // 2) for number in range(200)]

    def p(mean: float) -> float:
        values = rng.normal(mean, 1, 100).repeat(2) + rng.normal(0, 0.3, 200)
        return ClusterBootstrap(clusters, 400, method="percentile").estimate(mean_metric(values)).p

    alarms = sum(p(0.0) < 0.05 for _ in range(100))
    assert 0 <= alarms <= 12
    assert sum(p(0.5) < 0.05 for _ in range(20)) == 20
    assert p(5.0) == 2 / 400
    assert holm([0.01, 0.04]) == [0.02, 0.04]


def test_captions_are_scored_in_three_ways() -> None:
    # Image a: the short wrong caption is likely in itself, the image speaks for the long true one.
    true, wrong = "a red cup on a table", "a cat"
    shown = Picture("a.jpg", lambda: picture(1))
    captions = [
        caption_item(f"sugarcrepe_captions/add_att/{n}", "add_att", "x", f"{n}.jpg", shown, (true, wrong), 0)
        for n in range(2)
    ]
    with_image = [said(one, wrong, scores=scores) for one, scores in zip(captions, ((-6, -4), (-9, -2)), strict=True)]
    without = [said(one, wrong, scores=(-8, -3)) for one in captions]
    answers: Any = {("logprob", "right"): with_image, ("logprob", "none"): without}
    found = published_measures(captions, answers, {"sugarcrepe_captions": BENCHMARKS["sugarcrepe_captions"]})
    value = {key: measure.metric.value() for key, measure in found.items()}
    # -6 / 20 > -4 / 5 and -9 / 20 < -2 / 5; -6 + 8 > -4 + 3 and -9 + 8 < -2 + 3.
    assert value["sugarcrepe_captions/add_att/acc"] == 0
    assert value["sugarcrepe_captions/add_att/acc_per_byte"] == 0.5
    assert value["sugarcrepe_captions/add_att/acc_pmi"] == 0.5
    assert value["sugarcrepe_captions/add_att/acc_no_image"] == 0


def test_captions_are_judged_by_what_the_image_adds() -> None:
    true, wrong = "a red cup on a table", "a cat"
    captions = [
        caption_item(
            f"sugarcrepe_captions/{subset}/{n}",
            subset,
            subset,
            f"{n}.jpg",
            Picture(f"{n}.jpg", lambda: picture(1)),
            (true, wrong),
            0,
        )
        for subset in SUBSETS
        for n in range(8)
    ]
    blind = [said(one, wrong, scores=(-20.0, -3.0)) for one in captions]
    # The image adds more to the wrong one for the base, to the true one for the adapter; in sums the short one leads.
    before = [said(one, wrong, scores=(-18.6, -1.5)) for one in captions]
    after = [said(one, wrong, scores=(-15.0, -1.5)) for one in captions]
    answers: Any = {
        "base": {("logprob", "right"): before, ("logprob", "none"): blind},
        "aligned": {("logprob", "right"): after, ("logprob", "none"): blind},
    }
    named = {"sugarcrepe_captions": BENCHMARKS["sugarcrepe_captions"]}
    results = summarise(captions, answers, benchmarks=named, num_resamples=200)
    judged = "sugarcrepe_captions/acc_mean7_pmi"
    assert results["benchmarks"]["sugarcrepe_captions"]["primary"] == [judged]
    assert list(results["primary"]["aligned-base"]) == [judged]
    assert [results["arms"][arm][judged]["value"] for arm in answers] == [0, 1]
    assert [results["arms"][arm]["sugarcrepe_captions/acc_mean7"]["value"] for arm in answers] == [0, 0]
    assert metric_label(judged).endswith("by what the image adds (PMI)")
    assert "what the image adds" in str(headline(results))
    # Of one subset alone there is no mean: its own accuracy leads, by the same scoring.
    part = summarise(
        captions[:8],
        {arm: {k: v[:8] for k, v in given.items()} for arm, given in answers.items()},
        benchmarks=named,
        num_resamples=200,
    )
    assert primary(part, "sugarcrepe_captions") == ["sugarcrepe_captions/add_att/acc_pmi"]


def test_descriptions_are_compared_at_equal_lengths() -> None:
    truth = {"objects": frozenset({"dog"}), "vocabulary": Vocabulary({"dog": "dog", "cat": "cat"}, ())}
    asked = [
        item(f"chair/{n}", "", benchmark="chair", split="captions", choices=(), prompt="Describe.", truth=truth)
        for n in range(2)
    ]
    short = [Answer(one.id, "A dog on grass.", None, False) for one in asked]
    long = [Answer(asked[0].id, "A dog on grass and a cat.", None, False), Answer(asked[1].id, "A cat.", None, False)]
    wanted = {"chair": BENCHMARKS["chair"]}
    plain = published_measures(asked, {("generate", "right"): long}, wanted)
    assert plain["chair/chair_i_generated"].metric.value() == pytest.approx(2 / 3)
    first, second = length_matched(asked, {("generate", "right"): short}, {("generate", "right"): long}, wanted)
    # Cut to four words and to two: "A dog on grass" twice, "A dog" and "A cat.".
    assert first["chair/chair_i_matched_generated"].metric.value() == 0
    assert second["chair/chair_i_matched_generated"].metric.value() == 0.5
    assert first["chair/words_matched_generated"].metric.value() == 3
    assert second["chair/words_matched_generated"].metric.value() == 3
    assert length_matched(asked, {}, {("generate", "right"): long}, wanted) == ({}, {})


def test_arms_of_other_questions_are_not_subtracted(items: list[Any]) -> None:
    def answers(first: str) -> Any:
        said_so = [said(one, one.answer) for one in items]
        return {("generate", "right"): [replace(said_so[0], text=first, choice=None, right=False), *said_so[1:]]}

    by_rule = published_measures(items, answers("Yes."), {"pope": POPE}, "lmms-eval")
    other = published_measures(items, answers("yes"), {"pope": POPE}, "lmms-eval")
    assert set(paired(by_rule, other)) <= set(by_rule)
    for name in paired(by_rule, other):
        assert by_rule[name].clusters == other[name].clusters


def test_a_few_changed_questions_show_little(items: list[Any]) -> None:
    asked = [one for one in items if one.split == "adversarial"][:5]
    good = [said(one, one.answer) for one in asked]
    bad = [replace(answer, right=False, choice=None) for answer in good]
    results = summarise(
        asked, {"aligned": {("generate", "right"): good}, "base": {("generate", "right"): bad}}, num_resamples=400
    )
    cell = results["differences"]["aligned-base"]["pope/adversarial/acc_generated"]
    assert cell["value"] == 1
    # As McNemar's exact test: five of five.
    assert cell["p"] == results["mcnemar"]["aligned-base"]["pope/adversarial/acc_generated"]["p"] == 0.0625
    assert not cell["excludes_zero"]


def test_mcnemar_is_of_right_and_wrong_alone(items: list[Any]) -> None:
    one, two = (
        {
            "x/acc": Measure(mean_metric(values), ("a", "b", "c")),
            "x/strict_acc": Measure(mean_metric([1, 0, 1]), ("a", "b", "c")),
        }
        for values in ([0.3, 0.6, 1.0], [1.0, 1.0, 1.0])
    )
    assert set(mcnemar_tests(one, two)) == {"x/strict_acc"}


def test_constant_answers_stand_beside_the_published_metrics(items: list[Any]) -> None:
    found = baselines(items, {"pope": POPE})
    assert found["always yes"]["pope/adversarial/f1"] == pytest.approx(2 / 3)
    assert found["always yes"]["pope/adversarial/acc"] == 0.5
    assert found["always no"]["pope/adversarial/f1"] == 0
    assert "pope/adversarial/precision" not in found["always no"], "undefined is left out"
    assert set(found["text only"]) >= {"pope/adversarial/acc", "pope/adversarial/f1"}


def test_the_first_of_several_options(data_dir: Path) -> None:
    mmvp = BENCHMARKS["mmvp"]
    items = mmvp.read(data_dir / "mmvp", PictureFolder(None, "nowhere"))
    found = baselines(items, {"mmvp": mmvp})
    first = sum(item.answer == item.choices[0] for item in items) / len(items)
    assert found["always the first"]["mmvp/pair_item_acc"] == pytest.approx(first)
    assert found["always the first"]["mmvp/pair_acc"] == 0


def test_text_alone_is_not_told_the_order_of_captions(data_dir: Path) -> None:
    sugarcrepe = BENCHMARKS["sugarcrepe"]
    items = sugarcrepe.read(data_dir / "sugarcrepe", PictureFolder(None, "nowhere"))
    found = baselines([one for one in items if one.split == "swap_obj"], {"sugarcrepe": sugarcrepe})
    assert found["text only"]["sugarcrepe/swap_obj/acc"] == pytest.approx(0.5, abs=0.05)


def test_arms_whose_scores_have_another_number_of_levels(items: list[Any]) -> None:
    asked = [one for one in items if one.split == "adversarial"]
    several = [said(one, one.answer, scores=(-0.1 * n, -0.2)) for n, one in enumerate(asked)]
    tied = [said(one, one.answer, scores=(-0.1, -0.2)) for one in asked]
    answers: Any = {"aligned": {("logprob", "right"): several}, "base": {("logprob", "right"): tied}}
    results = summarise(asked, answers, num_resamples=200)
    cell = results["differences"]["aligned-base"]["pope/adversarial/auc"]
    assert 0 < cell["p"] <= 1
