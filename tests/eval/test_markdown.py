"""Runs as Markdown, one alone and several side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_align.cli import main
from mllm_align_eval.report import headline, markdown_comparison, markdown_report
from mllm_align_eval.report.markdown import table


def cell(value: float, clear: bool = False) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 40, "excludes_zero": clear}


def run(after: float, name: str = "mine", p: float = 0.01) -> dict[str, Any]:
    return {
        "arms": {
            "base": {"pope/adversarial/acc": cell(0.5), "pope/adversarial/yes_rate": cell(0.8)},
            name: {"pope/adversarial/acc": cell(after), "pope/adversarial/yes_rate": cell(0.5)},
        },
        "differences": {f"{name}-base": {"pope/adversarial/acc": cell(after - 0.5, clear=p < 0.05)}},
        "primary": {f"{name}-base": {"pope/adversarial/acc": {"p": p, "p_holm": p}}},
        "baselines": {"always yes": {"pope/adversarial/acc": 0.5}},
    }


def test_one_run() -> None:
    text = markdown_report(run(0.7), "POPE | mine")
    assert text.startswith("# POPE | mine\n")
    assert "POPE adversarial accuracy from 50.0 % to 70.0 % (+20.0 points, +15.0 to +25.0), a clear gain." in text
    assert "| metric | Base | mine | mine \N{MINUS SIGN} base | always yes | n (clusters) |" in text
    assert (
        "| POPE adversarial: accuracy `pope/adversarial/acc` | 50.0 (45.0 to 55.0) | 70.0 (65.0 to 75.0) | "
        "**+20.0** (+15.0 to +25.0) | 50.0 | 40 |" in text
    )
    share = "POPE adversarial: share of yes `pope/adversarial/yes_rate`"
    assert f"| {share} | 80.0 (75.0 to 85.0) | 50.0 (45.0 to 55.0) |  |  | 40 |" in text
    assert "| 50.0 to 70.0 | +20.0 (+15.0 to +25.0) | 0.010 |" in text


def test_what_is_not_clear_is_said_to_be_so() -> None:
    assert headline(run(0.52, p=0.4)).effect.endswith(", no clear change.")
    alone = run(0.7)
    del alone["arms"]["mine"]
    assert "does not compare" in str(headline(alone))
    nothing = run(0.7) | {"primary": {}}
    assert "no metric by which" in str(headline(nothing))


def test_runs_side_by_side_show_one_base_and_what_two_have() -> None:
    first, second = run(0.7), run(0.6)
    second["arms"]["mine"]["pope/random/acc"] = cell(0.9)
    lines = markdown_comparison({"a": first, "b": second}).splitlines()
    assert lines[0] == "| metric | a: base | a: mine | b: mine |"
    assert len(lines) == 4
    assert table(["a|b"], [["c"]]).splitlines()[0] == "| a\\|b |"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, after in (("one", 0.7), ("two", 0.6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(run(after)))
    runs, out = [str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "compared.md"
    assert main(["report", *runs, "--markdown", str(out)]) == 0
    assert "two: mine" in out.read_text()
    assert "POPE adversarial: accuracy" in capsys.readouterr().out
    assert main(["report", *runs, "--markdown", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["report", runs[0], runs[0]]) == 2
    assert "named twice" in capsys.readouterr().err
