"""Command line and result file of a benchmark."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from shapes import PRESETS, Shape

VERSIONS = ("torch", "transformers", "peft", "trl", "bitsandbytes")


def parser_of(description: str | None, *, rounds: int = 7) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--preset", default="small", choices=tuple(PRESETS), help="model and sizes (default: small)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"paired steps per setting (default: {rounds})")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="per side (default: 2)")
    return parser


def shape_of(preset: str) -> Shape:
    """The preset's shape.

    Raises:
        SystemExit: If it needs a GPU and there is none.
    """
    shape = PRESETS[preset]
    if shape.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--preset {preset} needs a GPU, and torch finds none; leave it out for CPU sizes")
    return shape


def finish(result: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Adds preset, command, machine and versions, and writes the JSON where one is wanted."""
    if arguments.json is None:
        return
    own = {"preset": arguments.preset, "command": _command(), "rounds": arguments.rounds}
    text = json.dumps({**own, **result, **_machine(arguments)}, indent=1)
    arguments.json.write_text(text + "\n")


def _command() -> str:
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    device = PRESETS[arguments.preset].device
    return {
        "machine": {"processor": _processor(), "threads": arguments.threads, "cores": os.cpu_count()},
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {name: metadata.version(name) for name in VERSIONS},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
