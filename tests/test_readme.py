"""The README says what is true: its table comes from the docstrings, its example runs, its recipe parses."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mllm_align.objectives
from mllm_align.cli import main
from mllm_align.families import FAMILIES, family_of, inner
from mllm_align.objectives import SVCO, NextToken, Weighted
from mllm_align.recipe import packaged_recipes
from mllm_align.recipe.build import build_objective
from mllm_align.recipe.schema import parse_recipe
from mllm_align.signals.limits import can_share_prefixes
from mllm_align.vision.attach import mixer_from
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixers import MIXERS, Widths, make_mixer
from mllm_align_eval.benchmarks import BENCHMARKS
from runs import gradients, make_trainer, pair_rows, picture
from tiny import FAMILIES as TINY
from tiny import save_tiny, tiny
from tiny_encoders import save_encoder

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def table_of_objectives() -> str:
    """One row per objective: first line of the docstring, views, reference, paper."""
    lines = ["| objective | what | measured per row | reference |", "|---|---|---|---|"]
    for name in sorted(mllm_align.objectives.__all__, key=str.lower):
        kind = getattr(mllm_align.objectives, name)
        if kind is Weighted:
            continue
        first = (inspect.getdoc(kind) or "").splitlines()[0].rstrip(".")
        what, _, link = first.rpartition(", https://")
        needs = kind().needs
        views = f"{len(needs.views)}" + (f" or {len(needs.views) + len(needs.optional)}" if needs.optional else "")
        counts = {"view": views, "feature": str(len(needs.features))}
        told = [f"{n} {what}{'s' if n not in ('1', '0 or 1') else ''}" for what, n in counts.items() if n != "0"]
        views = ", ".join(told)
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


def table_of_families() -> str:
    """One row per family, from the rows of `mllm_align.families`."""
    head = ("family", "`model_type`", "responses share their prompt", "an image becomes", "not tested offline")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for family in FAMILIES:
        types = ", ".join(f"`{model_type}`" for model_type in family.model_types)
        types += f", {family.vision_type} tower" if family.vision_type else ""
        packed = "yes" if family.packs else f"no: {family.unpacked_reason}"
        lines.append(f"| {family.name} | {types} | {packed} | {family.image_tokens} | {family.untested} |")
    return "\n".join(lines)


def test_table_of_families_is_that_of_their_rows() -> None:
    written = README.partition("<!-- families -->\n")[2].partition("\n<!-- families end -->")[0]
    wanted = table_of_families()
    assert written == wanted, f"put this between the marks in README.md:\n\n{wanted}\n"
    assert [family.name for family in FAMILIES if not family.image_tokens] == []


def table_of_benchmarks() -> str:
    """One row per benchmark, from the table of the evaluation."""
    head = ("`--benchmark`", "what", "on the Hub", "parsers beside `strict`")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for benchmark in BENCHMARKS.values():
        if benchmark.name == "own":  # nobody published it: it is described by its columns
            continue
        parsers = ", ".join(parser for parser in benchmark.parsers if parser != "strict")
        lines.append(f"| `{benchmark.name}` | {benchmark.title} | {'yes' if benchmark.hub else ''} | {parsers} |")
    return "\n".join(lines)


def test_table_of_benchmarks_is_that_of_the_evaluation() -> None:
    written = README.partition("<!-- benchmarks -->\n")[2].partition("\n<!-- benchmarks end -->")[0]
    wanted = table_of_benchmarks()
    assert written == wanted, f"put this between the marks in README.md:\n\n{wanted}\n"


def table_of_mixers() -> str:
    """One row per mixer: its docstring's first paragraph, and what it makes of LLaVA-1.5-7B with DINOv2-Large."""
    head = ("`kind`", "what", "image tokens", "new parameters", "starts as it was")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind, mixer in MIXERS.items():
        with torch.device("meta"):
            made = make_mixer(kind, Widths(1024, {"input": 1024}.get(mixer.place, 4096), 4096, (1024,)))
        what = " ".join((inspect.getdoc(mixer) or "").split("\n\n")[0].split()).rstrip(".")
        what = re.sub(r"arXiv:(\d+\.\d+)", r"https://arxiv.org/abs/\1", what)
        what = re.sub(r"https://[^\s,)]+", r"[paper](\g<0>)", what)
        file = Path(inspect.getfile(mixer)).name
        size = sum(parameter.numel() for parameter in made.parameters())
        millions = f"{size / 1e6:.1f} M" if size else "none"
        start = "yes" if made.starts_as_identity else "with `residual`" if kind == "sva" else "no"
        row = f"[`{kind}`](mllm_align/vision/mixers/{file})", what, str(made.num_tokens((24, 24))), millions, start
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def test_table_of_mixers_is_that_of_their_docstrings_and_sizes() -> None:
    written = README.partition("<!-- mixers -->\n")[2].partition("\n<!-- mixers end -->")[0]
    wanted = table_of_mixers()
    assert written == wanted, f"put this between the marks in README.md:\n\n{wanted}\n"
    widths = Widths(64, 64, 64, (64,))
    assert make_mixer("sva", widths, {"residual": True}).starts_as_identity


@pytest.mark.parametrize("name", TINY)
def test_table_of_families_says_what_the_engine_does(name: str) -> None:
    model, _ = tiny(name)
    family = family_of(model)
    assert can_share_prefixes(family, model) == (family.packs, family.unpacked_reason)


def test_every_family_of_the_table_has_a_tiny_model() -> None:
    assert {family_of(tiny(name)[0]).name for name in TINY} == {family.name for family in FAMILIES}


def test_python_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = blocks("python")[0]
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
    example = blocks("yaml")[0]
    recipe = parse_recipe(yaml.safe_load(example.replace("2e-5", "2.0e-5")))
    assert recipe.train["learning_rate"] == 2e-5
    assert len(build_objective(recipe).needs.views) == 6


def test_the_example_of_regions_is_one() -> None:
    parts = yaml.safe_load(blocks("yaml")[1])
    recipe = parse_recipe({"train": {"output_dir": "runs/x"}, **parts})
    assert [feature.pooling for feature in build_objective(recipe).needs.features] == ["regions"]


def test_the_examples_of_mixers_are_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = yaml.safe_load(blocks("yaml")[2])
    recipe = parse_recipe({"train": {"output_dir": "runs/x"}, **parts})
    assert build_objective(recipe).needs.views[0].image == "image"
    assert mixer_from(recipe.model.mixer).encoders[0].model == "facebook/dinov2-large"
    monkeypatch.chdir(tmp_path)
    save_tiny("llava", tmp_path / "model")
    save_encoder("dinov2", tmp_path / "dino")
    code = (
        next(b for b in blocks("python") if "detach(" in b)
        .replace("llava-hf/llava-1.5-7b-hf", "model")
        .replace("facebook/dinov2-large", "dino")
    )
    *before, last = code.splitlines()
    assert last.startswith("detach(")
    names: dict[str, Any] = {}
    exec(compile("\n".join(before), "README.md", "exec"), names)
    assert mixed_of(inner(names["model"])) is not None
    exec(compile(last, "README.md", "exec"), names)
    assert mixed_of(inner(names["model"])) is None


def test_recipes_that_are_named_are_there() -> None:
    named = re.findall(r"`(\w+_(?:llava15|qwen25vl)(?:_7b|_stage[12])?)`", README)
    assert len(named) == 6
    assert set(named) <= packaged_recipes().keys()


def test_the_switches_that_save_memory_and_time_work_together(tmp_path: Path) -> None:
    switches = yaml.safe_load(blocks("yaml")[-1])["train"]
    assert switches.pop("torch_compile") is True  # needs a compiler; it has tests of its own
    rows = [row | {"source": "pairs" if number % 3 else "instructions"} for number, row in enumerate(pair_rows(6))]
    objective = Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 0.5, "instructions"))
    common = {"train_sampling_strategy": "sequential", "max_steps": 1, "check_data": True}
    plain = gradients(make_trainer(tmp_path / "plain", objective, rows, per_device_train_batch_size=6, **common))
    all_of_them = common | switches | {"cache_dir": str(tmp_path / "cache")}
    trainer = make_trainer(tmp_path / "all", objective, rows, **all_of_them)
    found = gradients(trainer)
    assert plain.keys() == found.keys()
    for name, gradient in plain.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-3, rtol=0, msg=name)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def shell_lines() -> list[str]:
    """Every command line, those that go on after a backslash joined."""
    return [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]


def test_every_command_line_of_the_readme_parses(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.partition("#")[0].split() for line in shell_lines()]
    commands = [line[1:] for line in lines if line and line[0] == "mllm-align"]
    assert len(commands) == 34
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
    makefile = (ROOT / "Makefile").read_text()
    targets = [line[1] for line in lines if line and line[0] == "make"]
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
