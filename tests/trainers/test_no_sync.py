"""Nothing between a batch and its gradients waits for the device; what would is looked for on the CPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mllm_align
from mllm_align.contract import Batch, Needs, Outcome, Signals, Term
from mllm_align.families import base, unwrap
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.info_nce import InfoNCE
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from mllm_align.trainers.heads import trained_parameters
from mllm_align.trainers.window import plan_window
from runs import OWN, Headed, make_trainer, pair_rows
from tiny import tiny

PACKAGE = str(Path(mllm_align.__file__).parent)
# What is laid out on the host, from tensors that stay there.
ON_THE_HOST = ("signals/packing.py", "signals/plan.py", "signals/cached_reference.py")
# Counts and token ids that never left the host, and parameters' devices, which are one or copy from each to the next.
HOST_LINES = (
    "return tokens.numpy().tobytes() [numpy]",
    "host_num_tokens = {view: tuple(count.tolist()) for view, count in host.items()} [tolist]",
    "return torch.stack([part.to(parts[0].device) for part in parts]).sum() [to]",
)
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten._unique2.default,
    aten.bincount.default,
}


def innermost() -> str:
    """The line of the package that is running, unless another library called what waits."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(PACKAGE):
            return f"{frame.filename[len(PACKAGE) + 1 :]}:{frame.lineno} {frame.line}"
        if "/transformers/" in frame.filename or "/peft/" in frame.filename or "/accelerate/" in frame.filename:
            return ""
    return ""


class Waiting(TorchDispatchMode):
    """Writes down every operation that would make the host wait for the device, and where it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        open_ended = func is aten.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None
        if func in WAITS or by_mask or open_ended:
            self.note(str(func))
        return func(*args, **(kwargs or {}))

    def note(self, what: str) -> None:
        where = innermost()
        line = f"{where} [{what}]"
        if where and not where.startswith(ON_THE_HOST) and not line.endswith(HOST_LINES):
            self.found.append(line)


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What waits inside; reading a tensor as a list or an array, and making one on a device from numbers, too."""
    with Waiting() as mode, monkeypatch.context() as patch:

        def noted(function: Callable[..., Any], name: str, counts: Callable[..., bool]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if counts(*args, **kwargs):
                    mode.note(name)
                return function(*args, **kwargs)

            return call

        for name in ("tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "item"):
            patch.setattr(torch.Tensor, name, noted(getattr(torch.Tensor, name), name, lambda *_, **__: True))
        patch.setattr(torch.Tensor, "to", noted(torch.Tensor.to, "to", blocks))
        for name in ("tensor", "as_tensor"):
            given = lambda *_, **kwargs: kwargs.get("device") is not None  # noqa: E731
            patch.setattr(torch, name, noted(getattr(torch, name), name, given))
        yield mode.found


def blocks(tensor: torch.Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> bool:
    """Whether `Tensor.to` is a copy between devices that is waited for."""
    device = kwargs.get("device", args[0] if args else None)
    return isinstance(device, str | int | torch.device) and not non_blocking


def step(trainer: Any, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> list[str]:
    """One batch forward and backward, after a first one that settles what is checked once."""
    seen: list[list[str]] = []
    width = unwrap(trainer.model).config.get_text_config().hidden_size
    for _ in range(2):
        batch: Batch = trainer.data_collator(rows)["batch"]
        trainer.model.train()
        with watching(monkeypatch) as found:
            # An objective without parameters is asked on the host, where nothing waits.
            with nullcontext() if trained_parameters(trainer.objective) else unwatched(found):
                trainer._window = plan_window(trainer.objective, [batch], width)
            trainer.compute_loss(trainer.model, {"batch": batch}).backward()
        seen.append(found)
    return seen[-1]


@contextmanager
def unwatched(found: list[str]) -> Iterator[None]:
    before = len(found)
    yield
    del found[before:]


def mixture() -> Weighted:
    return Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 0.5, "instructions"), (NextToken(matched=False), 0.1))


def contrastive() -> Weighted:
    return Weighted((InfoNCE(), 1.0, "pairs"), (NextToken(matched=False), 0.5, "instructions"))


OBJECTIVES = [SVCO(), DPO(), DPO(loss_type="ipo"), NextToken(), InfoNCE(), Headed(), mixture(), contrastive()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("changes", [{}, {"packing": "off"}, {"gradient_checkpointing": True}], ids=str)
def test_a_step_never_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: Any, changes: dict[str, Any]
) -> None:
    pairs = [{**row, "source": "pairs"} for row in pair_rows(2)]
    rows = [pairs[0], {**pair_rows(3, images=False)[2], "source": "instructions"}, pairs[1]]
    rows = rows if isinstance(objective, Weighted) else pairs
    trainer = make_trainer(tmp_path, objective, rows, **changes)
    assert step(trainer, monkeypatch, rows) == []


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "idefics3", "gemma3"])
def test_no_family_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Their own code; what transformers does inside a tower is left to it."""
    model, processor = tiny(family)
    rows = pair_rows(2)
    trainer = make_trainer(tmp_path, SVCO(), rows, model=model, processing_class=processor)
    assert step(trainer, monkeypatch, rows) == []


def test_a_copy_to_a_gpu_is_made_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of a tensor that only writes down what is done with it."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args, **kwargs: calls.append((args, kwargs)) or tensor)
    base.to_device(torch.ones(2), "cuda:0")
    base.to_device(torch.ones(2), torch.device("cpu"))
    sent = {"non_blocking": True}
    assert calls == ["pinned", (("cuda:0",), sent), ((torch.device("cpu"),), sent)]


class Impatient:
    """An objective that does all that it should not."""

    needs = Needs(views=(OWN,))

    def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
        logps = policy.logps[OWN]
        has = policy.has(OWN)
        count = torch.tensor(len(logps), device=logps.device).to("cpu")
        return Outcome((Term("impatient", float(logps.detach().mean() < 1), -logps[has].sum(), count),))


def test_what_waits_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher itself, on code that waits: here it lies in the package's place."""
    monkeypatch.setitem(globals(), "PACKAGE", str(Path(__file__).parent))
    found = step(make_trainer(tmp_path, Impatient(), pair_rows(2)), monkeypatch, pair_rows(2))
    for call in ("tensor", "to", "__float__", "aten._local_scalar_dense.default", "aten.index.Tensor"):
        assert any(f"[{call}]" in line for line in found), (call, found)
