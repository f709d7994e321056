"""Texts are rendered and tokenised once; what is kept is bounded and never sent to loader processes."""

from __future__ import annotations

import pickle

import pytest

from mllm_align.data import remember
from mllm_align.data.remember import Remembered


class Counted:
    def __init__(self):
        self.seen = []

    def __call__(self, text, flag=False):
        self.seen.append(text)
        return f"{text}|{flag}"


def test_the_same_texts_are_computed_once_and_other_arguments_apart():
    counted = Counted()
    memo = Remembered(counted)
    assert [memo("a", True), memo("a", True), memo("a", False)] == ["a|True", "a|True", "a|False"]
    assert counted.seen == ["a", "a"]


def test_what_was_used_longest_ago_is_dropped(monkeypatch):
    monkeypatch.setattr(remember, "MAX_ENTRIES", 2)
    counted = Counted()
    memo = Remembered(counted)
    for text in ("a", "b", "a", "c", "a", "b"):
        memo(text)
    assert counted.seen == ["a", "b", "c", "b"]


def test_long_texts_are_not_kept(monkeypatch):
    monkeypatch.setattr(remember, "MAX_CHARACTERS", 3)
    counted = Counted()
    memo = Remembered(counted)
    for text in ("abcd", "abcd", "abc", "abc"):
        memo(text)
    assert counted.seen == ["abcd", "abcd", "abc"]


def test_a_failure_is_not_kept():
    def fails(text):
        raise KeyError(text)

    memo = Remembered(fails)
    for _ in range(2):
        with pytest.raises(KeyError):
            memo("a")


def test_a_copy_for_a_loader_process_starts_empty():
    memo = Remembered(str.upper)
    memo("a")
    copy = pickle.loads(pickle.dumps(memo))
    assert not copy._kept
    assert copy("a") == "A"
