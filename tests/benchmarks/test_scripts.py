"""Every benchmark runs as the one command that its text names, and writes the keys it promises."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark_command import ROOT, TINY, run

COMPARED = {"speedup", "memory_ratio", "limit", "of_limit"}
CACHED = {"speedup_cached_reference", "limit_cached_reference", "of_limit_cached_reference"}


@pytest.mark.slow
@pytest.mark.parametrize(("script", "keys"), [("svco_step", COMPARED | CACHED), ("dpo_vs_trl", COMPARED)])
def test_a_comparison_writes_its_ratios_by_response_length(
    script: str, keys: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, printed = run(script, tmp_path, capsys)
    for key in keys:
        assert set(result[key]) == {"4", "9"}
        assert all(isinstance(value, float) and value > 0 for value in result[key].values())
    for length in ("4", "9"):
        losses = result["loss"][length].values()
        assert max(losses) - min(losses) < 1e-3
        assert result["of_limit"][length] == pytest.approx(result["speedup"][length] / result["limit"][length])
        peaks = result["peak_mb"][length]
        assert result["memory_ratio"][length] == pytest.approx(peaks["ours"] / peaks["peer"])
    assert f"{result['speedup']['9']:.2f}" in printed
    assert result["command"].startswith(f"python benchmarks/{script}.py --preset tiny")


@pytest.mark.slow
def test_scaling_writes_a_point_per_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, printed = run("scaling", tmp_path, capsys)
    axes = result["axes"]
    assert {axis: [point["size"][axis] for point in points] for axis, points in axes.items()} == {
        "prompt": [8, 16],
        "response": [6, 12],
        "images": [0, 1, 2],
        "views": [1, 2, 4],
    }
    for points in axes.values():
        for point in points:
            assert point["memory_ratio"] == point["peak_mb"]["shared"] / point["peak_mb"]["row_by_row"]
            assert set(point["seconds"]) == {"shared", "row_by_row"}
    assert len(printed.splitlines()) == 1 + 10


@pytest.mark.slow
def test_contrastive_memory_writes_a_point_per_number_of_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, printed = run("contrastive_memory", tmp_path, capsys)
    assert [point["rows"] for point in result["points"]] == [2, 4]
    for point in result["points"]:
        assert point["memory_ratio"] == point["peak_mb"]["cached"] / point["peak_mb"]["one_graph"]
    assert set(result["mb_per_row"]) == {"one_graph", "cached"}
    assert "One more row" in printed


@pytest.mark.slow
def test_tiled_contrast_writes_how_memory_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, printed = run("tiled_contrast", tmp_path, capsys)
    assert [point["rows"] for point in result["points"]] == [256, 1024]
    for point in result["points"]:
        assert point["memory_ratio"] == point["peak_mb"]["tiled"] / point["peak_mb"]["dense"]
    assert f"{result['exponent']['tiled']:.2f} (tiled)" in printed


@pytest.mark.slow
def test_the_comparison_with_sentence_transformers_writes_its_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, printed = run("contrast_vs_sentence_transformers", tmp_path, capsys, "--pairs", "40", "80")
    assert result["gradient_distance"] < 1e-5
    assert set(result["loss"]) == {"40", "80"}
    for count in ("40", "80"):
        losses = result["loss"][count]
        assert losses["ours"] == pytest.approx(losses["peer"], abs=1e-4)
        peaks = result["peak_mb"][count]
        assert result["memory_ratio"][count] == pytest.approx(peaks["ours"] / peaks["peer"])
    assert f"{result['speedup']['80']:.2f}" in printed


@pytest.mark.slow
def test_the_large_contrast_writes_both_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, printed = run("large_contrast", tmp_path, capsys, "--pairs", "128")
    for step in ("one_graph", "cached"):
        sizes = [point["pairs"] for point in result[step]["points"]]
        assert sizes == [64, 128]
        assert result[step]["most_pairs"] == 128
        assert f"{result[step]['mb_per_pair']:.2f} MB" in printed


@pytest.mark.slow
def test_the_runner_and_the_loop_say_the_same(tmp_path: Path) -> None:
    """As users start it, in an interpreter of its own."""
    file = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/eval_throughput.py", *TINY, "--json", str(file)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["same_texts"] >= 0.98
    assert result["questions"] > 30
    (loop,), (ours,) = result["seconds"]["loop"], result["seconds"]["ours"]
    assert result["speedup"] == pytest.approx(loop / ours)
    assert "times as fast" in done.stdout


def test_scripts_import_nothing_of_the_tests() -> None:
    """Nor could they, where users start them."""
    scripts = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    found = {
        name
        for path in scripts.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert "harness" in found
    own = {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert not found & (own - set(scripts))
