"""Models that say what a test tells them to, as `Speaker`s."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mllm_align.data.mine.speaking import Ask


class Scripted:
    """Answers by a rule, and remembers what it was asked."""

    def __init__(self, rule: Callable[[Ask], str], identity: str = "scripted") -> None:
        self.rule, self.identity = rule, identity
        self.asked: list[Ask] = []
        self.calls = 0

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        self.asked += asks
        self.calls += 1
        return [self.rule(ask) for ask in asks]
