"""The README says what is true: its table comes from the docstrings, its example runs, its recipe parses."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

import mllm_align.objectives
from mllm_align.cli import main
from mllm_align.families import FAMILIES
from mllm_align.objectives import Weighted
from mllm_align.recipe.build import build_objective
from mllm_align.recipe.schema import parse_recipe
from runs import picture
from tiny import save_tiny

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def table_of_objectives() -> str:
    """One row per objective: first line of the docstring, views, reference, paper."""
    lines = ["| objective | what | views per row | reference |", "|---|---|---|---|"]
    for name in sorted(mllm_align.objectives.__all__, key=str.lower):
        kind = getattr(mllm_align.objectives, name)
        if kind is Weighted:
            continue
        first = (inspect.getdoc(kind) or "").splitlines()[0].rstrip(".")
        what, _, link = first.rpartition(", https://")
        needs = kind().needs
        views = f"{len(needs.views)}" + (f" or {len(needs.views) + len(needs.optional)}" if needs.optional else "")
        file = Path(inspect.getfile(kind)).name
        paper = f"[paper](https://{link})"
        lines.append(
            f"| [`{name}`](mllm_align/objectives/{file}) | {what}, {paper} | {views} "
            f"| {'yes' if needs.reference else 'no'} |"
        )
    return "\n".join(lines)


def test_table_of_objectives_is_that_of_the_docstrings() -> None:
    written = README.partition("<!-- objectives -->\n")[2].partition("\n<!-- objectives end -->")[0]
    wanted = table_of_objectives()
    assert written == wanted, f"put this between the marks in README.md:\n\n{wanted}\n"


def test_every_family_is_named() -> None:
    section = README.partition("<!-- families -->")[2].partition("<!-- families end -->")[0]
    assert [family.name for family in FAMILIES if family.name not in section] == []


def test_python_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    save_tiny("llava", tmp_path / "model")
    rows = []
    for number in range(2):
        picture(number).save(f"{number}.png")
        row = {"image": f"{number}.png", "prompt": "Which colour?", "chosen": "red"}
        rows.append(row | {"contrast_image": f"{1 - number}.png", "rejected": "blue"})
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [{key: row[key] for key in ("image", "prompt", "chosen")} for row in rows]
    Path("instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    settings = "max_steps=1, use_cpu=True, disable_tqdm=True, "
    code = example.replace("llava-hf/llava-1.5-7b-hf", "model").replace('"runs/mine", ', f'"runs/mine", {settings}')
    assert code.count("max_steps") == code.count('"model"') == 1
    exec(compile(code, "README.md", "exec"), {})
    assert Path("runs/mine/adapter_model.safetensors").is_file()


def test_recipe_example_is_one() -> None:
    (example,) = blocks("yaml")
    recipe = parse_recipe(yaml.safe_load(example.replace("2e-5", "2.0e-5")))
    assert recipe.train["learning_rate"] == 2e-5
    assert len(build_objective(recipe).needs.views) == 6


def test_every_command_line_of_the_readme_parses(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.partition("#")[0].split() for block in blocks("bash") for line in block.splitlines()]
    commands = [line[1:] for line in lines if line and line[0] == "mllm-align"]
    assert len(commands) == 6
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
    makefile = (ROOT / "Makefile").read_text()
    targets = [line[1] for line in lines if line and line[0] == "make"]
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
