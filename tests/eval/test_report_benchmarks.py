"""A report reads right whatever was asked: POPE, MMVP, descriptions, several at once, one model or many, many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval_items import item
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.changes import changed_answers
from mllm_align_eval.items import Answer, Picture
from mllm_align_eval.report import (
    GalleryEntry,
    headline,
    markdown_comparison,
    markdown_report,
    write_report,
)
from mllm_align_eval.report.evidence import evidence, harm
from mllm_align_eval.report.figures import figures
from mllm_align_eval.report.findings import cautions, key_figures
from mllm_align_eval.report.gallery import side_by_side
from mllm_align_eval.report.labels import is_rate, metric_label, number, ordered_metrics
from mllm_align_eval.report.markdown import comparison_cells, comparison_notes
from mllm_align_eval.report.metric_names import better, generic_label, parse_key
from mllm_align_eval.report.reading import reading_of, warning_head, warnings
from mllm_align_eval.report.reliability import calibration_texts, diagrams
from report_results import Page

READ = {"open": False, "abstained": 0.0, "errors": 0.0, "truncated": 0.0, "truncated_unreadable": 0.0}


def cell(value: float, half: float = 0.05) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 300, "clusters": 50}


def run(values: dict[str, tuple[float, ...]], arms: tuple[str, ...] = ("base", "mine"), **more: Any) -> dict[str, Any]:
    """Results of metrics with a value per arm; the first is compared with, what differs by more than 0.05 is clear."""
    found = {arm: {name: cell(v[i]) for name, v in values.items()} for i, arm in enumerate(arms)}
    differences = {
        f"{arm}-{arms[0]}": {
            name: cell(v[i] - v[0])
            | {"excludes_zero": abs(v[i] - v[0]) > 0.05, "detectable": 0.07, "equivalent_p": 0.5}
            for name, v in values.items()
        }
        for i, arm in enumerate(arms)
        if i
    }
    names = dict.fromkeys(name.split("/")[0] for name in values)
    primary = {name: BENCHMARKS[name].primary for name in names if name in BENCHMARKS}
    tested = [name if name in values else f"{name}_generated" for name in primary.values()]
    return {
        "arms": found,
        "differences": differences,
        "primary": {
            name: {
                key: {"p": 0.01, "p_holm": 0.01 if cells[key]["excludes_zero"] else 0.6}
                for key in tested
                if key in cells
            }
            for name, cells in differences.items()
        },
        "benchmarks": {
            name: {"title": BENCHMARKS[name].title, "primary": [primary[name]], "parser": "strict"} for name in primary
        },
        "data": {f"{name}/all": {"questions": 300, "clusters": 50, "sha256": "abcd1234"} for name in names},
        "intervals": {"unit": "image"},
        **more,
    }


POPE = {
    "pope/adversarial/acc": (0.6, 0.7),
    "pope/random/acc": (0.7, 0.8),
    "pope/adversarial/other_image_acc": (0.5, 0.5),
    "pope/adversarial/visual_gap": (0.1, 0.2),
    "pope/adversarial/dprime": (0.5, 0.9),
    "pope/adversarial/criterion": (-0.4, -0.2),
    "pope/adversarial/acc_generated": (0.6, 0.7),
}
CHAIR = {
    "chair/chair_i_generated": (0.2, 0.1),
    "chair/chair_s_generated": (0.5, 0.3),
    "chair/recall_generated": (0.7, 0.6),
    "chair/words_generated": (95.0, 50.0),
    "chair/mentions_generated": (4.5, 2.5),
}


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_has_a_name_and_what_it_is_judged_by_too(name: str) -> None:
    benchmark = BENCHMARKS[name]
    for metric in filter(None, (benchmark.primary, getattr(benchmark, "judged_primary", ""))):
        label = metric_label(metric)
        assert label != metric, f"{metric} has no label: add its measure to the table"
        assert ":" in label
        assert better(metric)
    assert not generic_label(f"{name}/acc").startswith(f"{name}:"), "the benchmark has no name for people"


@pytest.mark.parametrize("name", sorted(name for name in BENCHMARKS if BENCHMARKS[name].primary))
def test_the_page_of_a_benchmark_speaks_of_it_and_not_of_the_world(name: str, tmp_path: Path) -> None:
    results = run({BENCHMARKS[name].primary: (0.5, 0.7)})
    text = Page(write_report(results, [], tmp_path / "r.html", title="t")).text
    rest = text
    for own in (BENCHMARKS[name].title, name, name.replace("_", " ")):
        rest = rest.replace(own, "")
    for word in ("scene", "world", "World ", "existence polling", "pairs themselves", "Aligned"):
        assert word not in rest
    assert metric_label(BENCHMARKS[name].primary) in text
    assert BENCHMARKS[name].title in text
    assert "300 questions in 1 split." in text
    assert "image by image" in text


def test_keys_are_taken_apart() -> None:
    key = parse_key("cvbench/ade20k/count/acc_other_image_generated")
    assert (key.benchmark, key.split, key.measure, key.picture, key.generated) == (
        "cvbench",
        "ade20k/count",
        "acc",
        "other",
        True,
    )
    assert metric_label("amber/attribute/state_f1") == "AMBER attribute: F1 (state)"
    assert metric_label("winoground/group_pmi") == "Winoground: group score, by what the image adds (PMI)"
    assert metric_label("pope/adversarial/no_image_acc_generated") == "POPE adversarial: accuracy, no image, generated"
    assert metric_label("chair/recall_generated") == "CHAIR: recall"
    assert metric_label("pope/adversarial/novel") == "pope/adversarial/novel"
    # What is no rate stays none under another picture.
    assert number("chair/words_other_image_generated", 95.04) == "95.0"
    assert is_rate("chair/chair_i_other_image_generated")
    assert (better("chair/chair_i"), better("pope/random/yes_rate"), better("pope/random/other_image_acc")) == (
        -1,
        0,
        0,
    )


def test_an_accuracy_under_another_picture_stands_once() -> None:
    names = ["pope/random/acc", "pope/random/other_image_acc", "pope/random/acc_other_image"]
    assert ordered_metrics({"base": dict.fromkeys(names, cell(0.5))}) == names[:2]


def test_headline_of_other_benchmarks_says_which_way_and_how_sure() -> None:
    said = str(headline(run({**POPE, **CHAIR})))
    assert "mine against base: POPE adversarial accuracy from 60.0 % to 70.0 % (+10.0 points, +5.0 to +15.0)" in said
    assert "a clear gain; CHAIR wrong mentions (CHAIR-i) from 20.0 % to 10.0 %" in said
    assert said.count("a clear gain") == 2, "fewer wrong mentions are a gain"
    assert "Holm's correction over the 2 metrics" in said
    worse = str(headline(run({"chair/chair_i_generated": (0.1, 0.3)})))
    assert "a clear loss" in worse


def test_headline_beside_the_world() -> None:
    values = {**POPE, "world/adversarial/acc": (0.5, 0.7), "world/pair_acc": (0.4, 0.6)}
    said = headline(run(values))
    assert said.effect.startswith("Alignment raises adversarial accuracy")
    assert "POPE adversarial accuracy from 60.0 %" in said.others
    assert "POPE" in str(said)


def test_each_of_several_adapters_is_spoken_of_and_a_control_is_compared_with() -> None:
    said = headline(run({"pope/adversarial/acc": (0.5, 0.7, 0.6)}, ("base", "SVCO-v2", "dpo")))
    assert "SVCO-v2 against base" in said.effect
    assert "dpo against base" in said.effect
    beside = headline(run({"pope/adversarial/acc": (0.5, 0.62, 0.7)}, ("base", "control", "mine")))
    assert beside.control.startswith("mine against the plain next-token control on the same rows: ")
    assert "POPE adversarial accuracy (62.0 %)" in beside.control


def test_a_model_alone_is_set_against_what_needs_no_picture(tmp_path: Path) -> None:
    alone = run({"pope/adversarial/acc": (0.52,)}, ("base",), baselines={"always yes": {"pope/adversarial/acc": 0.5}})
    said = str(headline(alone))
    assert "does not compare" in said
    assert "Base alone: POPE adversarial accuracy 52.0 % (47.0 to 57.0); without the picture, " in said
    assert key_figures(alone) == []
    assert evidence(alone) == []
    (note,) = cautions(alone)
    assert "not shown to beat" in note
    text = Page(write_report(alone, [], tmp_path / "r.html", title="t")).text
    assert "Base to base" not in text
    assert "before training" not in text


def test_descriptions_have_length_and_mentions_beside_their_errors(tmp_path: Path) -> None:
    results = run(CHAIR)
    figures_of = {figure.label: figure for figure in key_figures(results)}
    assert list(figures_of) == [
        "CHAIR: wrong mentions (CHAIR-i)",
        "CHAIR: descriptions with a wrong mention (CHAIR-s)",
        "CHAIR: recall",
        "CHAIR: words per answer",
        "CHAIR: objects mentioned per answer",
    ]
    assert figures_of["CHAIR: words per answer"].before == "95.0"
    assert figures_of["CHAIR: wrong mentions (CHAIR-i)"].note == "lower is better"
    (main, *_) = figures(results)
    assert "chair/words_generated" not in [row.metric for row in main.rows], "95 words are not 9,500 per cent"
    write_report(results, [], tmp_path / "r.html", title="t")


def test_forest_of_differences_is_centred_on_no_change() -> None:
    drawn = {figure.id: figure for figure in figures(run(POPE))}
    assert set(drawn) == {"measures", "pope-categories", "pope-differences", "pope-images"}
    forest = drawn["pope-differences"]
    assert [label for _, label in forest.ticks] == [
        "\N{MINUS SIGN}20",
        "\N{MINUS SIGN}10",
        "0",
        "+10",
        "+20",
    ]
    assert forest.zero == 50
    assert [row.label for row in forest.rows] == ["Adversarial", "Random"]
    lane = forest.rows[0].lanes[0]
    assert (lane.at, lane.low, lane.high) == pytest.approx((75, 62.5, 87.5))
    assert "mine \N{MINUS SIGN} base +10.0 (+5.0 to +15.0)" in forest.rows[0].description
    assert [row.label for row in drawn["pope-images"].rows] == ["Right image", "Another image"]


def test_evidence_has_size_power_and_harm() -> None:
    (row,) = evidence(run(POPE))
    assert (row.p, row.detects, row.questions, row.clusters) == ("0.010", "7.0", "300", "50")
    assert row.harm == "shown: better"
    assert any(
        "can detect \N{GREATER-THAN OR EQUAL TO} 7.0 points (n = 300, 50 clusters" in n for n in cautions(run(POPE))
    )


@pytest.mark.parametrize(
    ("metric", "value", "low", "high", "p", "said"),
    [
        ("pope/random/acc", 0.0, -0.002, 0.002, 0.001, "shown: no change beyond 1 point"),
        ("pope/random/acc", 0.05, 0.02, 0.08, 0.9, "shown: better"),
        ("pope/random/acc", -0.05, -0.08, -0.02, 0.9, "harm is shown"),
        ("pope/random/acc", 0.01, -0.005, 0.025, 0.5, "shown: no loss beyond 1 point"),
        ("pope/random/acc", 0.0, -0.05, 0.05, 0.4, "not shown: a loss beyond 1 point is possible"),
        ("pope/random/acc", 0.0, 0.0, 0.0, 0.9, "not shown: nothing changed, in too few questions to exclude 1 point"),
        ("chair/chair_i", -0.05, -0.08, -0.02, 0.9, "shown: better"),
        ("chair/chair_i", 0.05, 0.02, 0.08, 0.9, "harm is shown"),
        ("chair/words", 5.0, 2.0, 8.0, 0.9, ""),
        ("pope/random/yes_rate", 0.05, 0.02, 0.08, 0.9, ""),
    ],
)
def test_no_harm_has_to_be_shown(metric: str, value: float, low: float, high: float, p: float, said: str) -> None:
    found = {"value": value, "low": low, "high": high, "equivalent_p": p, "excludes_zero": low > 0 or high < 0}
    assert harm(metric, found, 0.01) == said


def test_lost_and_cut_answers_are_warned_of_loudly(tmp_path: Path) -> None:
    results = run(POPE)
    results["reading"] = {
        "base": {"pope/adversarial": READ | {"n": 100, "unreadable": 0.02}},
        "mine": {"pope/adversarial": READ | {"n": 100, "unreadable": 0.04, "truncated": 0.5}},
    }
    found = warnings(results)
    assert len(found) == 2
    assert "POPE, mine: 4.0 % of the written answers could not be read and count as wrong" in found[0]
    assert "50.0 % of the written answers were cut" in found[1]
    page = Page(write_report(results, [], tmp_path / "r.html", title="t"))
    assert "Warning: more than 2 % of the answers were lost: unread and cut" in page.text
    assert "> **Warning: more than 2 % of the answers were lost: unread and cut**" in markdown_report(results, "t")
    assert "another --parser may read them" in found[0]
    assert "more room with --max-new-tokens" in found[1]
    assert "4.0 unreadable, 50.0 cut" in page.text, "beside the score too"
    assert "> - POPE, mine: 4.0 %" in markdown_report(results, "t")
    assert (reading_of(results, "mine", "pope/f1_mean3_generated") or {})["unreadable"] == 0.04
    assert reading_of(results, "mine", "pope/adversarial/acc") is None
    assert warnings(run(POPE)) == []
    assert warning_head(run(POPE)) == ""


def test_cut_descriptions_and_models_that_failed() -> None:
    results = run(CHAIR)
    results["reading"] = {
        "mine": {"chair/captions": READ | {"open": True, "n": 50, "unreadable": 0.0, "truncated": 0.1, "errors": 0.01}}
    }
    failed, cut = warnings(results)
    assert "the model failed on 1.0 % of the questions" in failed
    assert "give the same command" in failed
    assert warning_head(results) == "Warning: more than 2 % of the answers were lost: missing and cut"
    results["reading"]["mine"]["chair/captions"] |= {"truncated": 0.0}
    assert warning_head(results) == "Warning: answers are missing"
    results["reading"]["mine"]["chair/captions"] |= {"errors": 0.0, "unreadable": 0.5, "empty": 0.5}
    (empty,) = warnings(results)
    assert "50.0 % of the written answers are empty" in empty
    assert "has less to be wrong about" in cut


def test_calibration_before_and_after() -> None:
    results = run({**POPE, "pope/adversarial/ece": (0.3, 0.1), "pope/adversarial/brier": (0.3, 0.2)})
    bins = {"base": [(0.6, 0.5), (0.9, 0.6)], "mine": [(0.3, 0.5), (1.0, 1.0)]}
    results["calibration"] = {
        arm: {
            "pope/adversarial": {
                "bins": [{"confidence": c, "accuracy": a, "n": 9} for c, a in found],
                "by_chance": 0.1,
            }
        }
        for arm, found in bins.items()
    }
    (text,) = calibration_texts(results)
    assert text == (
        "POPE, adversarial: calibration error from 30.0 % to 10.0 % "
        "(\N{MINUS SIGN}20.0 points, \N{MINUS SIGN}25.0 to \N{MINUS SIGN}15.0), it is calibrated better."
    )
    (diagram,) = diagrams(results)
    # From 25 % sure: three steps of 25.
    assert [label for _, label in diagram.ticks] == ["25", "50", "75", "100"]
    assert dict(diagram.lines)["mine"] == ((pytest.approx(6.67), 50.0), (100.0, 0.0))
    assert diagram.diagonal == (75, 0)
    text = markdown_report(results, "t")
    assert "| POPE, adversarial | Base | 30.0 (25.0 to 35.0) | 10.0 | 0.300 (0.250 to 0.350) |" in text
    assert "| POPE, adversarial | mine | 0.30:0.50 1.00:1.00 |" in text


def test_runs_of_different_benchmarks_have_their_main_numbers_side_by_side() -> None:
    head, rows = comparison_cells({"a": run(POPE), "b": run(CHAIR)})
    assert head == ["metric", "a: base", "a: mine", "b: base", "b: mine"]
    names = [row[0] for row in rows]
    assert "POPE adversarial: accuracy" in names
    assert "CHAIR: wrong mentions (CHAIR-i)" in names
    assert ["CHAIR: questions (hash)", "", "", "300 (abcd)", "300 (abcd)"] in rows


def test_runs_that_cannot_be_compared_are_said_to_be_so() -> None:
    first, second = run(POPE), run(POPE)
    assert comparison_notes({"a": first, "b": second}) == []
    second["data"]["pope/all"]["sha256"] = "ffff0000"
    second["benchmarks"]["pope"]["parser"] = "official"
    second["judge"], first["judge"] = {"model": "x"}, {"model": "y"}
    same, rules, judges = comparison_notes({"a": first, "b": second})
    assert "POPE: the runs were not asked the same questions" in same
    assert "a strict, b official" in rules
    assert "different judges" in judges
    assert markdown_comparison({"a": first, "b": second}).startswith("- POPE: the runs were not")


def test_gallery_of_questions_about_two_pictures_none_and_open_ones(tmp_path: Path) -> None:
    def picture(width: int) -> Picture:
        return Picture("p", lambda: Image.new("RGB", (width, 10), "red"))

    items = [
        item("two", pictures=(picture(20), picture(30))),
        item("none", pictures=()),
        item("open", choices=(), answer="", pictures=(picture(20),)),
    ]
    answers = {
        arm: {
            ("generate", "right"): [
                Answer("two", word, word, word == "yes"),
                Answer("none", word, word, word == "yes"),
                Answer("open", f"a {word} thing", None, False),
            ]
        }
        for arm, word in (("base", "no"), ("mine", "yes"))
    }
    two, none, described = changed_answers(items, answers, after="mine")
    assert two.image is not None
    assert two.image.size == (58, 10)
    assert none.image is None
    assert described.outcome("base", "mine") == "open"
    page = Page(write_report(run(POPE), [two, none, described], tmp_path / "r.html", title="t"))
    assert len(page.all("img")) == 2
    assert [a["data-outcome"] for a in page.all("li") if "data-outcome" in a] == ["fixed", "fixed", "open"]
    assert "Answers to open questions are shown as they were written" in page.text
    assert "what language alone would say" not in page.text
    assert "wrong: a no thing" not in page.text
    assert side_by_side([]) is None


def test_what_two_adapters_both_changed_is_shown_once(tmp_path: Path) -> None:
    entry = GalleryEntry(
        Image.new("RGB", (8, 8)), "Red?", "yes", None, {"base": "no", "mine": "yes"}, "k", "pope/random"
    )
    page = Page(write_report(run(POPE), [entry, entry], tmp_path / "r.html", title="t"))
    assert len(page.all("img")) == 1
