"""The README's table of costs is made of the results beside the benchmarks, and of nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import table

COMPARED: dict[str, Any] = {
    "preset": "small",
    "device": "cpu",
    "machine": {"processor": "Some Processor", "threads": 2},
    "versions": {"trl": "1.16.0"},
    "speedup": {"40": 2.114, "150": 1.751},
    "limit": {"40": 2.3, "150": 1.9},
    "of_limit": {"40": 0.9191, "150": 0.9215},
    "memory_ratio": {"40": 0.444, "150": 0.5},
}


GROWN: dict[str, Any] = {key: COMPARED[key] for key in ("preset", "device", "machine", "versions")}


def test_the_readme_has_the_numbers_of_the_benchmarks() -> None:
    written, wanted = table.written(table.README.read_text()), table.table()
    assert written == wanted, f"run `python benchmarks/table.py --write`; wanted:\n\n{wanted}\n"


@pytest.mark.parametrize(
    ("name", "measure", "least", "most"),
    [
        ("svco_step", "speedup", {"40": 2.1, "80": 1.9, "150": 1.75}, None),
        ("svco_step", "speedup_cached_reference", {"40": 2.7, "80": 2.4, "150": 2.2}, None),
        ("svco_step", "of_limit", 0.85, None),
        ("svco_step", "of_limit_cached_reference", 0.85, None),
        ("svco_step", "memory_ratio", None, 0.5),
        ("dpo_vs_trl", "speedup", {"40": 2.5, "80": 2.5, "150": 2.0}, None),
        ("dpo_vs_trl", "of_limit", 0.85, None),
        ("dpo_vs_trl", "memory_ratio", None, 0.65),
    ],
)
def test_the_results_beside_the_benchmarks_clear_the_bars(name: str, measure: str, least: Any, most: Any) -> None:
    result = json.loads((table.FOLDER / f"{name}.json").read_text())
    assert result["preset"] == "small"
    found = result[measure]
    assert list(found) == ["40", "80", "150"]
    for length, value in found.items():
        if most is not None:
            assert value <= most, f"{measure} at {length} tokens"
        else:
            bar = least[length] if isinstance(least, dict) else least
            assert value >= bar, f"{measure} at {length} tokens"


def test_a_table_of_all_results(tmp_path: Path) -> None:
    cached = {f"{key}_cached_reference": {"40": COMPARED[key]["40"] + 1} for key in ("speedup", "limit", "of_limit")}
    gpu = copy.deepcopy(COMPARED) | {"preset": "llava-1.5-7b", "device": "NVIDIA H200"}
    for name, result in {
        "svco_step": COMPARED | cached,
        "svco_step_gpu": gpu,
        "dpo_vs_trl": COMPARED,
        "contrastive_memory": GROWN
        | {
            "points": [
                {"rows": 4, "slowdown": 1.5, "memory_ratio": 0.5, "peak_mb": {"one_graph": 1200.4, "cached": 600.2}}
            ],
            "mb_per_row": {"one_graph": 55.55, "cached": 1.25},
        },
        "scaling": GROWN
        | {"axes": {"views": [{"size": {"views": n}, "speedup": n * 1.5, "memory_ratio": 1 / n} for n in (1, 2)]}},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    lines = table.table(tmp_path).splitlines()
    assert lines[:2] == list(table.HEADER)
    assert lines[2:] == [
        "| S-VCO step, against the published plan, 24 M parameters | 40 | 2.11 | 2.30 | 92% | 0.44 |",
        "| S-VCO step, against the published plan, 24 M parameters | 150 | 1.75 | 1.90 | 92% | 0.50 |",
        "| S-VCO step, against the published plan; our reference cached, 24 M parameters "
        "| 40 | 3.11 | 3.30 | 192% |  |",
        "| S-VCO step, against the published plan, LLaVA-1.5-7B | 40 | 2.11 | 2.30 | 92% | 0.44 |",
        "| S-VCO step, against the published plan, LLaVA-1.5-7B | 150 | 1.75 | 1.90 | 92% | 0.50 |",
        "| DPO step on images, against TRL 1.16.0, 24 M parameters | 40 | 2.11 | 2.30 | 92% | 0.44 |",
        "| DPO step on images, against TRL 1.16.0, 24 M parameters | 150 | 1.75 | 1.90 | 92% | 0.50 |",
        "",
        "| InfoNCE, 24 M parameters: rows | one graph, MB | `cache_gradients`, MB | memory | times as long |",
        "|---|---|---|---|---|",
        "| 4 | 1,200 | 600 | 0.50 | 1.50 |",
        "| each further row | 55.5 | 1.2 | | |",
        "",
        "| shared prompts against row by row, 24 M parameters | size | times as fast | memory |",
        "|---|---|---|---|",
        "| responses (views) of one prompt | 1, 2 | 1.50, 3.00 | 1.00, 0.50 |",
        "",
        "- 24 M parameters, float32: 2 threads, Some Processor.",
        "- LLaVA-1.5-7B, NF4, bfloat16: NVIDIA H200.",
    ]


def test_the_table_is_written_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- costs -->\n| old |\n<!-- costs end -->\nafter\n")
    monkeypatch.setattr(table, "README", readme)
    monkeypatch.setattr(table, "table", lambda: "| new |")
    table.main(["--write"])
    assert readme.read_text() == "before\n<!-- costs -->\n| new |\n<!-- costs end -->\nafter\n"
    with pytest.raises(ValueError, match="no <!-- costs -->"):
        table.written("a text without marks")
