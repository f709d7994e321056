from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mllm_align.contract import Signals, View
from mllm_align.objectives.preference import (
    check_measured,
    check_positive,
    check_switches,
    check_weights,
    log_ratios,
    rows_with,
    upcast,
)

A, B = View("image", "chosen"), View(None, "chosen")


def signals(a: list[float], b: list[float], counts_a: list[int], counts_b: list[int]) -> Signals:
    return Signals(
        {A: torch.tensor(a, requires_grad=True), B: torch.tensor(b, requires_grad=True)},
        {A: torch.tensor(counts_a), B: torch.tensor(counts_b)},
    )


def test_rows_with_are_those_that_have_every_view() -> None:
    measured = signals([1.0] * 4, [1.0] * 4, [2, 0, 3, 0], [1, 1, 4, 0])
    assert rows_with(measured, (A, B)).tolist() == [0, 2]
    assert rows_with(measured, (B,)).tolist() == [0, 1, 2]


def test_log_ratios_are_policy_minus_reference_on_the_rows_kept() -> None:
    policy = signals([-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [1, 1, 1], [1, 1, 1])
    reference = signals([-1.5, -2.5, -2.0], [0.0, -1.0, -2.0], [1, 1, 1], [1, 1, 1])
    ratios = log_ratios(policy, reference, (A, B), torch.tensor([2, 0]))
    assert ratios[A].tolist() == [-1.0, 0.5]
    assert ratios[B].tolist() == [-4.0, -4.0]
    (ratios[A].sum() + ratios[B].sum()).backward()
    assert policy.logps[A].grad.tolist() == [1.0, 0.0, 1.0]
    assert reference.logps[A].grad is None


def test_log_ratios_want_a_reference_on_the_same_tokens() -> None:
    policy = signals([-1.0], [-4.0], [3], [2])
    with pytest.raises(ValueError, match="measure one and pass its Signals"):
        log_ratios(policy, None, (A, B), torch.tensor([0]))
    with pytest.raises(ValueError, match="different numbers of tokens"):
        log_ratios(policy, signals([-1.0], [-4.0], [3], [0]), (A, B), torch.tensor([0]))
    partial = Signals({A: torch.tensor([-1.0])}, {A: torch.tensor([3])})
    with pytest.raises(ValueError, match=r"not measured: chosen\|no_image"):
        log_ratios(policy, partial, (A, B), torch.tensor([0]))


@pytest.mark.parametrize("on_the_host", [False, True])
def test_tokens_are_compared_on_the_rows_kept_alone(on_the_host: bool) -> None:
    """Counts known on the host are compared there, and tell the same."""

    def told(counts_a: list[int], counts_b: list[int]) -> Signals:
        found = signals([-1.0, -1.0], [-4.0, -4.0], counts_a, counts_b)
        host = {view: tuple(count.tolist()) for view, count in found.num_tokens.items()}
        return replace(found, host_num_tokens=host if on_the_host else {})

    policy = told([3, 0], [2, 5])
    rows = rows_with(policy, (A, B))
    assert rows.tolist() == [0]
    log_ratios(policy, told([3, 4], [2, 4]), (A, B), rows)
    for other in (told([3, 0], [1, 5]), told([4, 0], [2, 5])):
        with pytest.raises(ValueError, match="different numbers of tokens"):
            log_ratios(policy, other, (A, B), rows)


def test_check_measured_names_what_is_missing() -> None:
    check_measured(signals([0.0], [0.0], [0], [0]), (A, B))
    with pytest.raises(ValueError, match=r"not measured: chosen\|image, chosen\|no_image \(measured: nothing\)"):
        check_measured(Signals({}, {}), (A, B))


def test_upcast_widens_and_never_narrows() -> None:
    for given, wanted in {
        torch.bfloat16: torch.float32,
        torch.float16: torch.float32,
        torch.float32: torch.float32,
        torch.float64: torch.float64,
    }.items():
        assert upcast(torch.zeros(1, dtype=given)).dtype == wanted


def test_check_positive_names_owner_and_option() -> None:
    check_positive("X", beta=1, tau=0.5)
    with pytest.raises(ValueError, match="X: tau must be a number above 0, got 0"):
        check_positive("X", beta=1, tau=0)


def test_check_weights_wants_one_above_zero() -> None:
    check_weights("X", a=0, b=0.5)
    with pytest.raises(ValueError, match="X: b must be a number of at least 0, got -1"):
        check_weights("X", a=1, b=-1)
    with pytest.raises(ValueError, match="X: nothing is left to train, one of a, b must be above 0"):
        check_weights("X", a=0, b=0.0)


def test_check_switches_wants_true_or_false() -> None:
    check_switches("X", a=True, b=False)
    with pytest.raises(ValueError, match="X: b must be true or false, got 0"):
        check_switches("X", a=True, b=0)
