"""Results of an imagined run, a gallery, and a page taken apart: what the tests of the report share."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from mllm_align_eval.report import GalleryEntry

HALF = 0.03
LEVELS = {"base": 0.49, "control": 0.93, "aligned": 0.82}


def make_results(adversarial: dict[str, float], in_distribution: dict[str, float] | None = None) -> dict[str, Any]:
    """Results whose intervals all reach 3 points to either side, differences included."""
    values = {
        "world/adversarial/acc": adversarial,
        "world/pair_acc": {arm: value - 0.1 for arm, value in adversarial.items()},
        "world/in_distribution/acc": in_distribution or dict.fromkeys(adversarial, 0.94),
        "world/visual_gap": {arm: value - 0.3 for arm, value in adversarial.items()},
        "world/pope_adversarial/acc": adversarial,
        "world/adversarial/colour_acc": adversarial,
        "world/adversarial/other_image_acc": {arm: value / 3 for arm, value in adversarial.items()},
        "world/adversarial/acc_generated": adversarial,
        "world/pope_adversarial/dprime": {arm: value * 4 for arm, value in adversarial.items()},
        "world/pope_adversarial/criterion": {arm: value - 1 for arm, value in adversarial.items()},
        "another/metric": adversarial,
    }
    arms = {arm: {m: bounds(v[arm]) for m, v in values.items()} for arm in adversarial}
    differences = {}
    for first, second in (("aligned", "base"), ("control", "base"), ("aligned", "control")):
        if first in arms and second in arms:
            cells = {m: bounds(v[first] - v[second]) for m, v in values.items()}
            differences[f"{first}-{second}"] = {
                m: {**cell, "excludes_zero": cell["low"] > 0 or cell["high"] < 0, "detectable": 0.042}
                for m, cell in cells.items()
            }
    return {
        "arms": arms,
        "differences": differences,
        "baselines": {"text_only": {"world/adversarial/acc": 0.21}},
        "unreadable": dict.fromkeys(arms, 0.01),
        "seconds": 432.2,
        "stages": {"train aligned": 118.0},
        "machine": {"processor": "a processor"},
        "versions": {"torch": "2.13.0"},
        "seed": 7,
        "recipe": "objective: <svco> & more\n",
        "data": {"pairs": 1000},
    }


def bounds(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - HALF, "high": value + HALF, "n": 300}


def make_gallery() -> list[GalleryEntry]:
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    large = Image.new("RGB", (1200, 600), (30, 30, 200))
    return [
        GalleryEntry(
            picture,
            "Is <b>this</b> & that red?",
            "yes",
            "no",
            {"base": "No.", "control": "yes", "aligned": "Yes."},
            "colour",
            "adversarial",
        ),
        GalleryEntry(
            large,
            "Which side?",
            "left",
            None,
            {"base": "left", "control": "left", "aligned": "right"},
            "side",
            "pairs",
        ),
    ]


class Page(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in attributes.items())]
