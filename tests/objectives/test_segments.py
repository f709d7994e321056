from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mllm_align.contract import Needs, Signals
from mllm_align.objectives.segments import changed_log_ratios, changed_sums, changed_tokens
from ratios import CHOSEN, CONTRAST_CHOSEN, REJECTED, tokens_of

NEEDS = Needs(views=(CHOSEN, REJECTED, CONTRAST_CHOSEN), reference=True, tokens=True)


def places(flags: tuple[bool, ...]) -> list[int]:
    return [place for place, flag in enumerate(flags) if flag]


def by_spans(a: list[int], b: list[int]) -> tuple[list[int], list[int]]:
    """The rule as RLHF-V's and CHiP's code have it: the gaps between long blocks, not empty on either side."""
    blocks = SequenceMatcher(None, a, b).get_matching_blocks()
    kept = [block for block in blocks[:-1] if block.size >= 3] + [blocks[-1]]
    ends = [(0, 0)] + [(block.a + block.size, block.b + block.size) for block in kept]
    changed_a, changed_b = [], []
    for (end_a, end_b), block in zip(ends, kept, strict=False):
        gap_a, gap_b = range(end_a, block.a), range(end_b, block.b)
        if len(gap_a) and len(gap_b):
            changed_a += gap_a
            changed_b += gap_b
    return changed_a, changed_b


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 9], ([3], [3])),
        ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 9, 9, 5, 6, 7], ([3], [3, 4])),
        # A pure insertion, a pure deletion, at an end too.
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 4, 5, 6], ([], [])),
        ([1, 2, 3, 9, 4, 5, 6], [1, 2, 3, 4, 5, 6], ([], [])),
        ([1, 2, 3], [1, 2, 3, 4, 5], ([], [])),
        # A run of two is chance, and belongs to the change around it.
        ([1, 2, 3, 7, 4, 5, 8, 1, 2, 3], [1, 2, 3, 9, 4, 5, 6, 1, 2, 3], ([3, 4, 5, 6], [3, 4, 5, 6])),
        ([1, 2], [1, 2], ([0, 1], [0, 1])),
        ([1, 2, 3], [1, 2, 3], ([], [])),
        ([1, 2], [3], ([0, 1], [0])),
        ([1], [], ([], [])),
        ([], [], ([], [])),
    ],
)
def test_replaced_spans_alone_count(first: list[int], second: list[int], wanted: tuple) -> None:
    flags = changed_tokens(first, second)
    assert [len(own) for own in flags] == [len(first), len(second)]
    assert tuple(map(places, flags)) == wanted


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_equals_the_rule_on_any_responses(first: list[int], second: list[int]) -> None:
    assert tuple(map(places, changed_tokens(first, second))) == by_spans(first, second)


@given(st.lists(st.integers(0, 400), min_size=210, max_size=260), st.data())
def test_equals_the_rule_on_long_responses(first: list[int], data: st.DataObject) -> None:
    """Above 200 tokens difflib leaves out what is frequent; the published code does so too."""
    place = data.draw(st.integers(0, len(first) - 1))
    second = [*first[:place], 401, *first[place + 1 :]]
    assert tuple(map(places, changed_tokens(first, second))) == by_spans(first, second)


def test_sums_and_counts_equal_a_loop_over_tokens(make_signals: Callable[..., Signals]) -> None:
    signals = make_signals(NEEDS, rows=30)
    found = changed_sums(signals, NEEDS.views)
    some = 0
    for view in NEEDS.views:
        values, row = signals.token_logps[view]
        for number in range(30):
            ids = signals.host_token_ids[CHOSEN][number], signals.host_token_ids[REJECTED][number]
            which = by_spans(list(ids[0]), list(ids[1]))[view.response == "rejected"]
            own = values[row == number].tolist()
            assert found.sums[view][number].item() == pytest.approx(sum(own[place] for place in which), abs=1e-9)
            assert found.counts[view][number].item() == len(which)
            some += 0 < len(which) < len(own)
    assert some > 10, "the made-up responses must share and differ"


def test_ratios_are_of_the_rows_kept_and_the_reference_is_frozen(make_signals: Callable[..., Signals]) -> None:
    policy, reference = make_signals(NEEDS), make_signals(NEEDS, value_seed=1)
    rows = torch.tensor([4, 1])
    found = changed_log_ratios(policy, reference, (CHOSEN, REJECTED), rows)
    own, frozen = changed_sums(policy, NEEDS.views), changed_sums(reference, NEEDS.views)
    for view in (CHOSEN, REJECTED):
        torch.testing.assert_close(found.sums[view], own.sums[view][[4, 1]] - frozen.sums[view][[4, 1]])
        assert torch.equal(found.counts[view], own.counts[view][[4, 1]])
    sum(found.sums.values()).sum().backward()
    assert policy.token_logps[CHOSEN].values.grad is not None
    assert reference.token_logps[CHOSEN].values.grad is None


def test_a_reference_may_lack_rows_that_are_not_compared() -> None:
    ids = {"chosen": [[1, 2, 3, 4], [1, 2]], "rejected": [[1, 2, 3, 9], [3]]}
    policy = tokens_of({CHOSEN: [[-1.0, -1, -1, -2], [-1, -1]], REJECTED: [[-1.0, -1, -1, -3], [-1]]}, ids)
    reference = tokens_of({CHOSEN: [[-1.0, -1, -1, -5], []], REJECTED: [[-1.0, -1, -1, -7], []]}, ids)
    found = changed_log_ratios(policy, reference, (CHOSEN, REJECTED), torch.tensor([0]))
    assert [found.sums[view].item() for view in (CHOSEN, REJECTED)] == [3.0, 4.0]


def test_a_row_without_a_second_response_has_no_changed_tokens() -> None:
    signals = tokens_of(
        {CHOSEN: [[-1.0, -2.0]], REJECTED: [[]], CONTRAST_CHOSEN: [[]]}, {"chosen": [[1, 2]], "rejected": [[3]]}
    )
    found = changed_sums(signals, (CHOSEN, REJECTED, CONTRAST_CHOSEN))
    assert all(value.item() == 0 for value in (*found.sums.values(), *found.counts.values()))


def test_bfloat16_is_summed_in_float32(make_signals: Callable[..., Signals]) -> None:
    found = changed_sums(make_signals(NEEDS, dtype=torch.bfloat16), NEEDS.views)
    assert found.sums[CHOSEN].dtype == torch.float32


def test_what_was_not_measured_and_what_does_not_fit_is_said(make_signals: Callable[..., Signals]) -> None:
    signals = make_signals(NEEDS, rows=2)
    with pytest.raises(ValueError, match=r"token log-probabilities and ids of chosen\|image.* set Needs.tokens"):
        changed_sums(replace(signals, host_token_ids={}), (CHOSEN,))
    with pytest.raises(ValueError, match=r"not measured: chosen\|image"):
        changed_sums(Signals({}, {}), (CHOSEN,))
    other = {**signals.host_token_ids, CONTRAST_CHOSEN: ((7,) * 20, (7,) * 20)}
    with pytest.raises(ValueError, match=r"chosen\|contrast_image: the response has other tokens"):
        changed_sums(replace(signals, host_token_ids=other), (CONTRAST_CHOSEN,))
