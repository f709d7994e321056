"""Results of pure functions of texts, kept for the texts seen last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

MAX_ENTRIES = 4096
# Prompts with thousands of image tokens are not kept: their ids would fill the memory of every loader process.
MAX_CHARACTERS = 4096


class Remembered(Generic[Result]):
    """A function of texts that is not computed twice for the same texts, as `functools.lru_cache` with two changes.

    It can be pickled, without what it keeps (loader processes are sent it), and long texts are not kept.

    Args:
        function: Takes strings and other short hashable values.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self.function = function
        self._kept: OrderedDict[tuple[Any, ...], Result] = OrderedDict()

    def __call__(self, *key: Any) -> Result:
        """What the function gives for these arguments."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        result = self.function(*key)
        if sum(len(part) for part in key if isinstance(part, str)) <= MAX_CHARACTERS:
            self._kept[key] = result
            if len(self._kept) > MAX_ENTRIES:
                self._kept.popitem(last=False)
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "_kept": OrderedDict()}
