"""What all benchmarks share: a process per side, steps in turn, memory above the loaded model.

Every side is a process of its own, so that its memory is its own; the parent lets the sides step in turn, so that a
machine whose speed drifts slows all of them.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing as mp
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import torch

from flops import count_flops
from shapes import Shape

# Imported once by the server that processes are forked from; nothing of CUDA is started there.
PRELOADED = ("transformers", "peft", "bitsandbytes", "trl", "mllm_align.trainers")
M_MMAP_THRESHOLD = -3  # of malloc.h


class Runner(Protocol):
    """A loaded model and what one step of it is."""

    model: Any

    def prepare(self, case: Any) -> Any:
        """What a step needs and nobody counts: collated rows, cached references."""
        ...

    def step(self, data: Any) -> float:
        """Forward and backward pass; returns the loss."""
        ...


Build = Callable[[Shape], Runner]


class Timed(NamedTuple):
    """Seconds of a step, and its loss."""

    seconds: float
    loss: float


# -- a process per side --------------------------------------------------------------------------------------------


class Process:
    """A runner in a process of its own, which loads while others do; use it in a `with` statement.

    Args:
        build: A function of a module, called in the process.
        shape: Handed to it.
        threads: Threads of torch's operators there.
        for_memory: Give what is freed back to the system at once, so that the peak is that of live tensors and not of
            the allocator's history. It costs time: such a process times nothing.
    """

    def __init__(self, build: Build, shape: Shape, threads: int, *, for_memory: bool = False) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_work, args=(build, shape, threads, for_memory, child), daemon=True)
        self.process.start()
        child.close()
        self.loaded = False

    def time(self, case: Any) -> Timed:
        """One step of `case`, timed."""
        return self._ask("time", case)

    def peak(self, case: Any) -> int:
        """Peak in bytes of one step of `case`, above the loaded model."""
        return self._ask("peak", case)

    def flops(self, case: Any) -> int:
        """Operations of one step of `case`."""
        return self._ask("flops", case)

    def _ask(self, kind: str, case: Any) -> Any:
        self.wait()
        self.pipe.send((kind, case))
        return self._answer()

    def wait(self) -> None:
        """Returns when the model is loaded."""
        if not self.loaded:
            self._answer()
            self.loaded = True

    def _answer(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit("a benchmark process ended; its error is above") from None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.is_alive() and error is None:
            self.pipe.send(None)
            self.process.join()
        self.process.terminate()
        self.process.join()


def _work(build: Build, shape: Shape, threads: int, for_memory: bool, pipe: Connection) -> None:
    if for_memory and shape.device == "cpu":
        _give_back_freed_memory()
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", FutureWarning)
    runner = build(shape)
    gc.collect()
    gc.freeze()  # to look for garbage among all that is loaded, before each step, takes longer than small steps
    loaded = _resident(shape.device)
    pipe.send("ready")
    while (request := pipe.recv()) is not None:
        kind, case = request
        data = runner.prepare(case)
        runner.model.zero_grad(set_to_none=True)
        gc.collect()
        if kind == "time":
            pipe.send(_timed(runner, data, shape.device))
        elif kind == "flops":
            pipe.send(count_flops(lambda data=data: runner.step(data)))
        else:
            _reset_peak(shape.device)
            runner.step(data)
            pipe.send(_peak(shape.device) - loaded)


def _timed(runner: Runner, data: Any, device: str) -> Timed:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    loss = runner.step(data)
    if device == "cuda":
        torch.cuda.synchronize()
    return Timed(time.perf_counter() - start, loss)


def in_turn(arms: Mapping[str, tuple[Process, Any]], rounds: int) -> dict[str, list[Timed]]:
    """One step of every arm to warm up, then `rounds` times one step of each, in turn."""
    for process, _ in arms.values():
        process.wait()
    for process, case in arms.values():
        process.time(case)
    timed: dict[str, list[Timed]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, (process, case) in arms.items():
            timed[name].append(process.time(case))
    return timed


# -- memory --------------------------------------------------------------------------------------------------------


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: memory is measured on Linux or on a GPU")


def _give_back_freed_memory() -> None:
    """Tells glibc to map every block of 64 KiB or more on its own; elsewhere nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 65536)


def _resident(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def peaks_of(build: Build, shape: Shape, threads: int, cases: Sequence[Any], steps: int = 2) -> dict[Any, int]:
    """Largest peak in bytes of some steps of each case, above the loaded model of a process that does only this."""
    with Process(build, shape, threads, for_memory=True) as process:
        return {case: max(process.peak(case) for _ in range(steps)) for case in cases}
