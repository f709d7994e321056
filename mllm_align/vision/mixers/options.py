"""Checks of mixers' options: what is wrong is said before anything is built."""

from __future__ import annotations

from collections.abc import Sequence


def whole(name: str, value: object, least: int = 1) -> int:
    """A whole number of at least `least`.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of {least} or more, not {value!r}")
    return value


def one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """One of the words.

    Raises:
        ValueError: If it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value


def switch(name: str, value: object) -> bool:
    """True or false.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value


def per_encoder(name: str, value: object, count: int, whose: str = "further encoder") -> list[object]:
    """One value for each of `count` encoders: a list of them, or one that holds for all.

    Raises:
        ValueError: If a list has another length.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one value or a list of {count}, one per {whose}; it has {len(value)}")
    return list(value)
