"""The report: self-contained, complete, honest at its head, and never written over another."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mllm_align_eval.report import headline, print_table, write_report, write_results
from mllm_align_eval.report.curves import panels
from mllm_align_eval.report.detection import detection_texts
from mllm_align_eval.report.figures import figures
from mllm_align_eval.report.labels import difference_label, metric_label, number
from report_results import LEVELS, Page, bounds, make_gallery, make_results


@pytest.fixture
def page(tmp_path: Path) -> Page:
    training = {
        arm: [{"step": s, "loss": 2 / s, "epoch": s, "svco/margin": s - 2.0} for s in range(1, 6)]
        for arm in ("control", "aligned")
    }
    return Page(
        write_report(
            make_results(LEVELS), make_gallery(), tmp_path / "new" / "r.html", title="A & B", training=training
        )
    )


def test_page_asks_nothing_of_any_other(tmp_path: Path) -> None:
    path = write_report(make_results(LEVELS), make_gallery(), tmp_path / "r.html", title="t")
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.|@import|<link[^>]+stylesheet|<script[^>]+src", text)
    assert set(re.findall(r"url\(\s*['\"]?(.)", text)) <= {"#"}
    for tag, attributes in Page(path).elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)


def test_page_has_every_arm_metric_difference_and_figure(page: Page) -> None:
    results = make_results(LEVELS)
    for word in (
        "Base",
        "Control",
        "Aligned",
        "Aligned \N{MINUS SIGN} control",
        "text only",
        "A & B",
        "7 min 12 s",
        "2.13.0",
    ):
        assert word in page.text
    for metric in results["arms"]["base"]:
        assert metric_label(metric) in page.text
    drawn = " ".join(a.get("aria-label") or "" for a in page.all("svg", role="img"))
    for part in ("Adversarial accuracy: Base 49.0 (46.0 to 52.0), Control 93.0", "Colour", "Another scene's image"):
        assert part in drawn
    assert "loss over steps: control from 2 to 0.4" in drawn
    assert "svco/margin over steps" in drawn
    assert "epoch over steps" not in drawn
    assert all(a.get("aria-label") for a in page.all("svg", role="img"))


def test_page_is_well_formed_and_its_links_lead_somewhere(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        if tag in ("a", "use"):
            assert (attributes["href"] or "")[1:] in ids
        for reference in (attributes.get("aria-labelledby") or "").split():
            assert reference in ids
    assert len(page.all("h1")) == 1


def test_gallery_shows_pictures_answers_and_outcomes_escaped(page: Page) -> None:
    assert "Is <b>this</b> & that red?" in page.text
    assert not page.all("svco")
    assert "objective: <svco> & more" in page.text
    cards = [a for a in page.all("li") if a.get("data-outcome")]
    assert [(c["data-outcome"], c["data-kind"]) for c in cards] == [("fixed", "colour"), ("broken", "side")]
    images = [a for a in page.all("img")]
    assert all("Is <b>" in (a["alt"] or "") or "Which side?" in (a["alt"] or "") for a in images)
    decoded = [Image.open(io.BytesIO(base64.b64decode((a["src"] or "").split(",")[1]))) for a in images]
    assert [d.size for d in decoded] == [(64, 64), (320, 160)]
    assert decoded[0].convert("RGB").getpixel((5, 5)) == (200, 30, 30)
    assert "right: Yes." in page.text
    assert "wrong: No. prior" in page.text
    assert {b["data-value"] for b in page.all("button") if "data-value" in b} >= {
        "",
        "fixed",
        "broken",
        "colour",
        "side",
    }


def test_page_needs_neither_gallery_nor_training_nor_the_usual_arms(tmp_path: Path) -> None:
    results = {"arms": {"first<1>": {"m/x": {"value": 0.5, "low": None, "high": None, "n": 3}}, "second": {}}}
    text = Page(write_report(results, [], tmp_path / "r.html", title="t")).text
    assert "first<1>" in text
    assert "m/x" in text
    assert "Gallery" not in text
    with pytest.raises(ValueError, match="arms"):
        write_report({"arms": {}}, [], tmp_path / "s.html", title="t")


def test_headline_when_aligned_beats_base_and_control() -> None:
    said = headline(
        make_results({"base": 0.49, "control": 0.7, "aligned": 0.82}, {"base": 0.94, "control": 0.94, "aligned": 0.88})
    )
    assert said.effect == (
        "Alignment raises adversarial accuracy from 49.0 % to 82.0 % and pair accuracy from 39.0 % to 72.0 %; "
        "the 95 % intervals do not overlap."
    )
    assert "costs 6.0 points" in said.cost
    assert "does less well" in said.control
    assert "adds something" in said.control


def test_headline_when_the_control_is_as_good_or_better() -> None:
    level = headline(make_results({"base": 0.49, "control": 0.81, "aligned": 0.82}))
    assert "as good within the intervals" in level.control
    assert "no advantage of the preference objective over the pairs themselves is shown by these" in level.control
    assert "no change is measurable" in level.cost
    better = headline(make_results(LEVELS))
    assert "is better (adversarial accuracy 93.0 % and pair accuracy 83.0 %)" in better.control
    assert "not the preference objective" in better.control
    assert "adds something" not in str(level) + str(better)


def test_headline_when_nothing_happened_or_it_got_worse() -> None:
    none = headline(make_results({"base": 0.49, "control": 0.49, "aligned": 0.5}))
    assert none.effect.startswith("Alignment shows no clear effect")
    assert "raises" not in str(none)
    assert "advantage" not in none.control
    assert "Alignment lowers" in headline(make_results({"base": 0.8, "control": 0.8, "aligned": 0.6})).effect


def test_headline_says_when_intervals_overlap_though_the_difference_is_clear() -> None:
    said = headline(make_results({"base": 0.49, "control": 0.49, "aligned": 0.53}))
    assert "paired difference excludes zero" in said.effect
    assert "overlap" in said.effect
    assert "do not overlap" not in said.effect


def test_headline_with_mixed_signs_or_without_control_or_aligned() -> None:
    mixed = make_results(LEVELS)
    for name, arm in (("aligned-base", "aligned"), ("aligned-control", "aligned")):
        mixed["differences"][name]["world/pair_acc"] |= {"value": -0.2, "low": -0.23, "high": -0.17}
        mixed["arms"][arm]["world/pair_acc"] = bounds(0.19)
    assert "mixed effect" in headline(mixed).effect
    assert "No next-token control" in headline(make_results({"base": 0.4, "aligned": 0.8})).control
    assert "does not compare" in headline(make_results({"base": 0.4})).effect


def test_accuracy_without_sensitivity_is_called_a_shift_of_the_threshold() -> None:
    results = make_results(LEVELS)
    assert "tells yes cases from no cases better" in " ".join(detection_texts(results))
    results["differences"]["aligned-base"]["world/pope_adversarial/dprime"] |= {"low": -1.0, "excludes_zero": False}
    (text,) = detection_texts(results)
    for words in ("World, polling adversarial", "shift of the threshold", "not sight", "yes less readily"):
        assert words in text
    results["criterion_shift"] = {"aligned-base": {"world/pope_adversarial": bounds(0.25)}}
    assert "criterion's shift: +25.0 of +33.0 points (95 % interval +22.0 to +28.0)" in detection_texts(results)[0]
    for cells in results["arms"].values():
        del cells["world/pope_adversarial/dprime"]
    assert detection_texts(results) == []


def test_figure_places_values_on_its_axis_and_lengthens_it_for_negative_gaps() -> None:
    first = figures(make_results(LEVELS))[0]
    row = next(r for r in first.rows if r.metric == "world/adversarial/acc")
    assert [lane.at for lane in row.lanes] == pytest.approx([49, 93, 82])
    assert (row.lanes[0].low, row.lanes[0].high) == pytest.approx((46, 52))
    assert row.marks == (("a", pytest.approx(21)),)
    near = make_results(LEVELS)
    near["baselines"] = {name: {"world/adversarial/acc": v} for name, v in (("x", 0.5), ("y", 0.2), ("z", 0.51))}
    assert figures(near)[0].rows[1].marks == (("b", pytest.approx(20)), ("ac", pytest.approx(50)))
    negative = figures(make_results({"base": 0.2, "aligned": 0.8}))[0]
    assert [label for _, label in negative.ticks] == ["\N{MINUS SIGN}25", "0", "25", "50", "75", "100"]
    gap = next(r for r in negative.rows if r.metric == "world/visual_gap")
    assert gap.lanes[0].at == pytest.approx((-0.1 + 0.25) / 1.25 * 100)


def test_curves_leave_out_what_is_not_finite_and_name_what_is_not_drawn() -> None:
    log = [{"step": s, "loss": float("nan") if s == 2 else s, **{f"k{i}": s for i in range(9)}} for s in (1, 2, 4)]
    drawn, rest = panels({"x": log})
    assert drawn[0].lines == (("x", "25.00,100.00 100.00,0.00"),)
    assert (len(drawn), rest) == (8, ["k7", "k8"])


def test_numbers_as_written() -> None:
    assert number("world/pair_acc", -0.0004, signed=True) == "0.0"
    assert number("world/pair_acc", 0.123, signed=True) == "+12.3"
    assert number("world/pope_adversarial/criterion", -0.5) == "\N{MINUS SIGN}0.50"
    assert number("world/pair_acc", None) == "\N{EN DASH}"
    assert difference_label("a-b-c", {"a-b": 0, "c": 0}) == "a-b \N{MINUS SIGN} c"
    assert metric_label("mmvp/unheard_of") == "mmvp/unheard_of"


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    for path in (page, data):
        path.write_text("mine")
    results = make_results(LEVELS)
    with pytest.raises(FileExistsError, match=r"r\.html exists.*overwrite"):
        write_report(results, [], page, title="t")
    with pytest.raises(FileExistsError, match=r"r\.json exists.*overwrite"):
        write_results(results, data)
    assert page.read_text() == data.read_text() == "mine"
    write_report(results, [], page, title="t", overwrite=True)
    write_results(results, data, overwrite=True)
    assert json.loads(data.read_text()) == results
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_json_is_strict_and_says_what_it_cannot_write(tmp_path: Path) -> None:
    path = write_results({"a": np.float32(0.5), "b": float("nan"), "c": (np.int64(2), True)}, tmp_path / "r.json")
    assert json.loads(path.read_text()) == {"a": 0.5, "b": None, "c": [2, True]}
    with pytest.raises(TypeError, match=r"results\.x\[0\] is a object"):
        write_results({"x": [object()]}, tmp_path / "s.json")


@pytest.mark.parametrize("width", [80, 120, 220])
def test_table_on_the_terminal(width: int) -> None:
    out = io.StringIO()
    results = make_results(LEVELS)
    print_table(results, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for word in (
        "Base",
        "Control",
        "Aligned",
        "another/metric",
        "By the most probable answer",
        "By what the model wrote",
        "Unreadable",
        "49.0",
        "excludes zero",
    ):
        assert word in text
    line = next(row for row in text.splitlines() if row.strip().startswith("Adversarial accuracy"))
    assert line.count("\N{BLACK UP-POINTING TRIANGLE}") == 2
    assert str(headline(results)) in " ".join(text.split())
    if width == 220:
        assert "Aligned \N{MINUS SIGN} control" in text
        assert "+33.0 (30.0, 36.0) *" in line
