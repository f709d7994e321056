"""Who is asked what: questions of benchmarks with their pictures, and models by the name of their arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mllm_align.cli.scoring import images_missing, known


def items_of(
    benchmarks: list[str], data: str | None, folders: dict[str, str], limit: int | None = None, suite: str = "full"
) -> list[Any]:
    """The questions of several benchmarks with their pictures.

    Args:
        benchmarks: Names.
        data: What --data says.
        folders: Of pictures, by benchmark; that of all under "".
        limit: As of `benchmark_items`.
        suite: As of `benchmark_items`.

    Raises:
        ValueError: If there is no such benchmark, or its pictures are not named.
    """
    from mllm_align_eval.benchmarks import BENCHMARKS
    from mllm_align_eval.benchmarks.locating import folder_beside
    from mllm_align_eval.run import benchmark_items

    items: list[Any] = []
    for name in dict.fromkeys(benchmarks):
        images = folders.get(name, folders.get(""))
        drawn = known(name, "world") == "world" or BENCHMARKS[name].is_rendered
        if images is None and not drawn and BENCHMARKS[name].pictures_beside:
            images = str(folder_beside(data, BENCHMARKS[name]))
        if not drawn and images is None and data != "hub":
            raise ValueError(images_missing(name))
        items += benchmark_items(name, data, images, limit, suite)
    return items


def images_by_benchmark(given: list[str]) -> dict[str, str]:
    """Folders of pictures from `bench=folder`; under "" that of every benchmark that has none of its own."""
    parts = [(text, *text.partition("=")) for text in given]
    return {known(name) if mark else "": folder if mark else text for text, name, mark, folder in parts}


def named(given: list[str], option: str) -> dict[str, str]:
    """Folders or models by name, from `name=folder`, or folders that give their names; PEFT takes no dots in one.

    Raises:
        ValueError: If two have one name.
    """
    found: dict[str, str] = {}
    for text in given:
        name, mark, folder = text.partition("=")
        if not mark or Path(text).is_dir():
            name, folder = Path(text).name, text
        name = name.replace(".", "_")
        if name in found:
            both = f"{found[name]} and {folder}"
            raise ValueError(f"{both} would both be called {name!r}: name them, as {option} x={folder}")
        found[name] = folder
    return found
