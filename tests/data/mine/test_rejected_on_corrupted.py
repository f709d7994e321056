"""What the demo base says of corrupted pictures of the world is wrong of the pictures themselves, where it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm_align.cli import main
from mllm_align.data.output import RowFile
from mllm_align.data.world import instruction_rows
from world_truth import row_scenes, share_false

NUM_ROWS, WORLD = 40, {"seed": 5, "distribution": "balanced"}


@pytest.mark.parametrize("kind", ["diffusion_noise", "crop"])
def test_kept_responses_are_wrong(kind: str, tmp_path: Path) -> None:
    rows, output = tmp_path / "zeilen é.jsonl", tmp_path / "out.jsonl"
    RowFile(rows).write(instruction_rows(NUM_ROWS, noise=0, **WORLD))
    given = ("--model", "demo-base", "--image", f"corrupt:{kind}", "--batch-size", "64", "--max-new-tokens", "48")
    assert main(["data", "reject", str(rows), "--output", str(output), *given]) == 0
    names = [json.loads(line)["id"] for line in rows.read_text(encoding="utf-8").splitlines()]
    kept = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert share_false(kept, dict(zip(names, row_scenes(NUM_ROWS, **WORLD), strict=True))) >= 0.95
    assert len(kept) >= 0.2 * NUM_ROWS
