"""What the commands of the studies have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent


def study_parser(doc: str | None, runs: str, cache: str, page: str | None = None) -> argparse.ArgumentParser:
    """A study's options, to which it adds its own; processes that it starts have one thread each.

    Args:
        doc: What the command says of itself.
        runs: Name of the records' file.
        cache: Name of the folder, under `runs/`, of what is computed once.
        page: Name of the page that the command writes, if it writes one.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE / runs, help="records of finished runs")
    if page is not None:
        parser.add_argument("--page", type=Path, default=HERE / page)
    parser.add_argument("--cache", type=Path, default=Path("runs") / cache)
    parser.add_argument("--workers", type=int, default=max(1, os.cpu_count() or 2), help="runs at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after that")
    return parser
