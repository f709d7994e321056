"""How fast training goes: tokens per second between two lines of the log."""

from __future__ import annotations

import time


class TokenRate:
    """Tokens per second since the last reading."""

    def __init__(self) -> None:
        """Not started."""
        self._last: tuple[float, int] | None = None

    def start(self, tokens: int) -> None:
        """The first reading counts from here; nothing if it runs already.

        Args:
            tokens: Seen so far in the whole run.
        """
        if self._last is None:
            self._last = (time.monotonic(), tokens)

    def read(self, tokens: int) -> float:
        """Tokens per second since the last reading, or since the start; 0 where it was not started.

        Args:
            tokens: Seen so far in the whole run.
        """
        now = time.monotonic()
        then, before = self._last or (now, tokens)
        self._last = (now, tokens)
        return round((tokens - before) / max(now - then, 1e-9), 1)

    def reset(self) -> None:
        """Stops: time until the next start does not count."""
        self._last = None
