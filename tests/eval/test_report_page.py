"""The page for those who use a keyboard, a screen reader, a dark screen or no network: what parsing can show."""

from __future__ import annotations

import re
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest

from mllm_align_eval.report import write_report
from report_results import LEVELS, Page, make_gallery, make_results

TEMPLATES = resources.files("mllm_align_eval.report") / "templates"
TEXT, LARGE = 4.5, 3.0  # least contrast by WCAG 2, of text, and of large text and parts of drawings


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    results = make_results(LEVELS)
    cell = {"n": 40, "open": False, "abstained": 0.0, "errors": 0.0, "truncated": 0.0, "truncated_unreadable": 0.0}
    results["reading"] = {arm: {"world/adversarial": cell | {"unreadable": 0.3}} for arm in results["arms"]}
    bins = [{"confidence": 0.6, "accuracy": 0.5, "n": 20}, {"confidence": 0.9, "accuracy": 0.7, "n": 20}]
    results["calibration"] = {arm: {"world/adversarial": {"bins": bins, "by_chance": 0.05}} for arm in results["arms"]}
    for cells in results["arms"].values():
        cells["world/adversarial/ece"] = {"value": 0.15, "low": 0.1, "high": 0.2, "n": 40}
    training = {"aligned": [{"step": s, "loss": 2 / s} for s in range(1, 4)]}
    path = tmp_path_factory.mktemp("page") / "r.html"
    return Page(write_report(results, make_gallery(), path, title="t", training=training))


def test_headings_go_down_one_level_at_a_time(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_first_stop_of_the_keyboard_skips_to_the_results(page: Page) -> None:
    stops = [(tag, a) for tag, a in page.elements if tag in ("a", "button", "input") or a.get("tabindex") == "0"]
    assert stops[0][0] == "a"
    assert stops[0][1]["href"] == "#main"
    assert [a["id"] for a in page.all("main")] == ["main"]
    assert len(page.all("nav", **{"aria-label": "Sections"})) == 1


def test_heads_of_the_sortable_table_are_buttons_that_say_how_it_is_sorted(page: Page) -> None:
    heads = [a for a in page.all("th", scope="col") if "aria-sort" in a]
    buttons = [a for a in page.all("button") if "data-value" not in a]
    assert len(heads) == len(buttons) > 4
    assert {a["aria-sort"] for a in heads} == {"none"}
    assert all(a.get("type") == "button" for a in page.all("button"))
    assert not [a for _, a in page.elements if a.get("onclick")]


def test_everything_that_is_worked_by_hand_has_a_name(page: Page) -> None:
    labels = {a["for"] for a in page.all("label")}
    assert all(a["id"] in labels for a in page.all("input"))
    kinds = [tag for tag, _ in page.elements]
    assert kinds.count("fieldset") == kinds.count("legend") == 2
    pressed = [a for a in page.all("button") if "data-value" in a]
    assert {a["aria-pressed"] for a in pressed} == {"true", "false"}
    regions = page.all("div", role="region")
    assert len(regions) >= 4
    assert all(a.get("tabindex") == "0" and (a.get("aria-label") or a.get("aria-labelledby")) for a in regions)


def test_pictures_and_drawings_have_words(page: Page) -> None:
    assert page.all("img")
    assert all(a.get("alt") for a in page.all("img"))
    for attributes in page.all("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"], bool(attributes["aria-label"])) == (
            "img",
            True,
        )
    assert all(a.get("aria-labelledby") for a in page.all("figure"))
    words = " ".join(a.get("aria-label") or "" for a in page.all("svg"))
    assert "Reliability, World, adversarial. Base: 60% sure 50% right (n 20), 90% sure 70% right (n 20)" in words
    assert "Aligned \N{MINUS SIGN} base +33.0 (+30.0 to +36.0)" in words


def test_tables_say_what_their_heads_are_of(page: Page) -> None:
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    assert page.all("html", lang="en")
    assert page.all("meta", name="viewport")


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    (policy,) = [a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy["content"] or "").startswith("default-src 'none'")
    for name in ("style.css", "script.js"):
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp", text)


def schemes() -> dict[str, dict[str, str]]:
    """The colours of both schemes by variable."""
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    first = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    return {"light": first, "dark": first | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))}


def contrast(one: str, other: str) -> float:
    """(L1 + 0.05) / (L2 + 0.05) of relative luminances, WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_of_contrast() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme: str) -> None:
    colours = schemes()[scheme]
    inks = ["ink", "muted", "accent", "good", "bad", *(f"arm-{i}" for i in range(6))]
    for ground in ("ground", "surface"):
        low = {ink: round(contrast(colours[ink], colours[ground]), 2) for ink in inks}
        assert {ink: value for ink, value in low.items() if value < TEXT} == {}, (scheme, ground)
    # A pressed filter is written in the ground's colour on ink.
    assert contrast(colours["ground"], colours["ink"]) >= TEXT
    assert schemes()["light"].keys() == colours.keys()


def test_the_page_of_a_light_and_a_dark_screen_is_one_page(tmp_path: Path) -> None:
    text = write_report(make_results(LEVELS), [], tmp_path / "r.html", title="t").read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in text
    assert '<meta name="color-scheme" content="light dark">' in text
    # Colours stand in the two lists alone.
    body = text[text.index("</style>") :]
    assert not re.search(r"(?:fill|stroke|color)[=:]\s*[\"']?#[0-9a-f]{3}", body)
