"""Benchmarks as the commands that their texts name, run in this process and those that they start."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import serve

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--preset", "tiny", "--rounds", "1", "--threads", "1")


def run(script: str, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    """What `python benchmarks/SCRIPT.py --preset tiny ...` writes to its JSON, and prints."""
    file = folder / "result.json"
    argv = [f"benchmarks/{script}.py", *TINY, *options, "--json", str(file)]
    serve()
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        patched.setattr(sys, "argv", argv)
        runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
    return json.loads(file.read_text()), capsys.readouterr().out
