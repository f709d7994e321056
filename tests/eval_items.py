"""Small items and answers for the tests of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from mllm_align_eval.engine import Generated, Request
from mllm_align_eval.items import Answer, Item, Picture


def picture(shade: int) -> Image.Image:
    """A small plain picture, another one for each shade."""
    return Image.new("RGB", (16, 16), (shade % 256, shade // 256, 0))


def item(name: str, answer: str = "yes", **fields: Any) -> Item:
    """A yes/no item of the world's adversarial split, unless told otherwise; `load` gives its only picture."""
    number = abs(hash(name)) % 65536
    settings: dict[str, Any] = {
        "benchmark": "world",
        "split": "adversarial",
        "kind": "existence",
        "cluster": f"scene of {name}",
        "prompt": "Is there a star?",
        "choices": ("yes", "no"),
        "load": lambda: picture(number),
    }
    settings |= fields
    shown = (Picture(name, settings.pop("load")),)
    return Item(id=name, answer=answer, **{"pictures": shown, **settings})


def said(asked: Item, choice: str | None, **fields: Any) -> Answer:
    """An answer to an item."""
    return Answer(asked.id, choice or "?", choice, choice == asked.answer, **fields)


class StubEngine:
    """Answers by a rule of the request, and counts what it is asked."""

    def __init__(self, rule: Callable[[Request], str]) -> None:
        self.rule = rule
        self.asked: list[Request] = []

    def choice_logps(self, requests: Sequence[Request]) -> list[list[float]]:
        """0 for the rule's choice, -1 for the others."""
        self.asked += requests
        return [[0.0 if choice == self.rule(r) else -1.0 for choice in r.choices] for r in requests]

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generated]:
        """The rule's text."""
        self.asked += requests
        return [Generated(self.rule(request), False) for request in requests]
