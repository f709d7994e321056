"""What really is in memory: storages that autograd keeps, and the peak of all that a step allocates."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def storages_of(*modules: torch.nn.Module) -> set[int]:
    """Keys of the storages of all parameters and buffers."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return {tensor.untyped_storage()._cdata for tensor in tensors}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations allocate, as long as anything refers to them.

    Args:
        known: Keys of storages that do not count.
    """

    def __init__(self, known: Iterable[int] = ()) -> None:
        super().__init__()
        self.known = set(known)
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _watch(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in self._alive:
            return

        def gone(_: Any) -> None:
            if self._alive.pop(key, None) is not None:
                self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size


def kept_for_backward(compute: Callable[[], Any], known: Iterable[int]) -> int:
    """Bytes of distinct storages that the graph of `compute()` holds on to once it is done.

    Args:
        compute: Returns whatever holds the graph.
        known: Keys of storages that do not count.
    """
    skip, saved = set(known), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in skip:
            saved[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = compute()
    found = sum(size for storage, size in saved.values() if storage() is not None)
    del out
    return found


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self.numbers = max(self.numbers, *(each.numel() for each in made if isinstance(each, torch.Tensor)), 0)
        return out
