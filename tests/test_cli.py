"""The command line: what it prints, what it refuses and how, and that it starts at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_align.cli import main
from mllm_align.cli.asked import named
from runs import picture
from tiny import save_tiny

COMMANDS = (
    "demo",
    "train",
    "eval run",
    "eval tasks",
    "report",
    "recipes",
    "export",
    "inspect",
    "tower put",
    "tower train",
    "x-former",
    "data check",
    "data clip-blind",
    "data counterfactual",
    "data embed",
    "data mine-negatives",
    "data negatives",
    "data ocr",
    "data regions",
    "data reject",
    "data retrieve",
    "world train-base",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llava", tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> Path:
    rows = []
    for number in range(3):
        for side in ("own", "other"):
            picture(number).save(tmp_path / f"{number}_{side}.png")
        images = {"image": f"{number}_own.png", "contrast_image": f"{number}_other.png"}
        rows.append({"prompt": "Which colour?", "chosen": "red", "rejected": "blue", **images})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw: dict[str, Any] = {
        "model": {"model_name_or_path": str(model), "use_peft": True, "lora_r": 4},
        "data": {"pairs": {"path": str(tmp_path / "pairs.jsonl")}},
        "objective": [{"name": "svco"}],
        "train": {"output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 1, "disable_tqdm": True},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a refused command prints; its exit status is 2."""
    assert main(argv) == 2
    *progress, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert not any("error" in line or "Traceback" in line for line in progress)
    return error


def test_help_is_there_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from mllm_align.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    seconds = []
    for _ in range(3):  # the fastest: the machine may be busy with other tests
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0
    assert done.returncode == 0, done.stderr
    assert all(command.split()[0] in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: mllm-align {command}" in capsys.readouterr().out


def test_recipes_are_listed_with_their_first_sentence_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "svco_llava15_7b\n    S-VCO (Wu et al., 2025" in listed
    assert "beside next-token on instruction\n    data.\nsvco_qwen25vl_7b\n" in listed
    assert main(["recipes", "demo_svco"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["model_name_or_path"] == "demo-base"
    assert "known: chip_llava16_7b, clim, cloc_like, " in refused(capsys, "recipes", "demo_scvo")


def test_dry_run_prints_the_plan_and_trains_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--dry-run", "--set", "train.max_steps=7", "model.lora_r=2"]) == 0
    plan = capsys.readouterr().out
    assert "pairs: 6 (chosen|image; chosen|no_image; chosen|contrast_image; rejected|contrast_image" in plan
    assert "Steps: 7" in plan
    assert "language q_proj: 512" in plan  # two layers, rank 2, 64 to 64
    assert "Memory per device: about" in plan
    assert not (tmp_path / "run").exists()
    deep = f"train.output_dir={tmp_path / 'some' / 'where'}"
    assert main(["train", str(recipe), "--dry-run", "--set", deep]) == 0
    assert not (tmp_path / "some").exists()
    (tmp_path / "run").mkdir()
    assert main(["train", str(recipe), "--dry-run"]) == 0
    assert (tmp_path / "run").is_dir()  # it was there


def test_four_bits_without_adapters_are_refused_in_words_of_the_recipe(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "train", str(recipe), "--set", "model.load_in_4bit=true", "model.use_peft=false")
    assert "set model.use_peft: true, or model.load_in_4bit: false" in told


def test_train_saves_and_does_not_overwrite(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe)]) == 0
    assert f"saved in {tmp_path / 'run'}" in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert "has something in it" in refused(capsys, "train", str(recipe))
    assert main(["train", str(recipe), "--overwrite", "--set", "train.save_steps=1"]) == 0
    assert main(["train", str(recipe), "--resume", "--set", "train.max_steps=2"]) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


def test_adapter_is_exported_alone_and_merged(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe)]) == 0
    adapter = str(tmp_path / "run")
    assert main(["export", adapter, str(tmp_path / "adapter")]) == 0
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert main(["export", adapter, str(tmp_path / "merged"), "--merge", "--dtype", "float16"]) == 0
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert config["dtype"] == "float16"
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    capsys.readouterr()
    assert "no adapter in" in refused(capsys, "export", str(tmp_path), str(tmp_path / "other"))


def test_data_check_shows_a_row_as_the_model_will_see_it(
    recipe: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(recipe.parent / "pairs.jsonl")
    assert main(["data", "check", file, "--model", str(model), "--row", "2"]) == 0
    shown = capsys.readouterr().out
    assert "3 rows" in shown
    assert shown.count("\nview ") == 6
    assert "<image>[x16]" in shown
    rows = recipe.parent / "captions.jsonl"
    row = {"image": "0.png", "caption": "red", "negatives": ["blue", "green"]}
    rows.write_text(json.dumps(row | {"image": json.loads(Path(file).read_text().splitlines()[0])["image"]}))
    objective = "{name: info_nce, text: caption, text_prompt: 'In a word:', negatives: true}"
    assert main(["data", "check", str(rows), "--model", str(model), "--objective", objective]) == 0
    assert capsys.readouterr().out.count("\nview <negatives>") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrast_image": None}, "contrast_image"),
        ({"rejected": ""}, "rejected"),
        ({"prompt": "<image> and <image>?"}, "image"),
        ({"image": "missing.png"}, "missing.png"),
    ],
)
def test_data_check_refuses_a_row_that_cannot_be_trained_on(
    change: dict[str, Any], message: str, recipe: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe.parent / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1] |= change
    bad = recipe.parent / "bad.jsonl"
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = refused(capsys, "data", "check", str(bad), "--model", str(model))
    assert "row 1" in error
    assert message in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "no_such_recipe"], "no recipe of that name"),
        (["train", "demo_svco", "--set", "train.learnin_rate=1"], "did you mean 'train.learning_rate'"),
        (["train", "svco_llava15_7b", "--set", "train.use_cpu=true"], "there is no file or folder data/mvc.json"),
        (["data", "check", "world:pears"], "world:pairs"),
        (["data", "check", "world:pairs", "--objective", "scvo"], "did you mean 'svco'"),
        (["data", "check", "world:pairs", "--objective", "{name: svco"], "is neither a name nor YAML"),
        (["data", "check", "world:pairs", "--objective", "{name: svco, symetric: true}"], "did you mean 'symmetric'"),
        (["report", "no_such_folder"], "no results in no_such_folder"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *argv)


@pytest.mark.parametrize("argv", [["--debug", "train", "no_such_recipe"], ["train", "no_such_recipe", "--debug"]])
def test_debug_shows_the_traceback(argv: list[str]) -> None:
    with pytest.raises(ValueError, match="no recipe of that name"):
        main(argv)


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("mllm_align.recipe.load.packaged_recipes", broken)
    with pytest.raises(KeyError, match="ours"):
        main(["recipes"])


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    row = {"image": "0.png", "text": "Is there a disc? " * 20, "label": "yes"}
    lines = (json.dumps(row | {"question_id": number}) for number in range(2000))
    (tmp_path / "pope" / "coco_pope_random.json").write_text("\n".join(lines))
    command = [sys.executable, "-m", "mllm_align.cli", "eval", "questions", "pope", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["split"] == "random"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_adapters_are_told_apart_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/final", "b/final", "beta=0.1"):
        (tmp_path / name).mkdir(parents=True)
    twice = ("--adapter", str(tmp_path / "a/final"), "--adapter", str(tmp_path / "b/final"))
    said = refused(capsys, "eval", "run", "demo-base", "--limit", "4", "--output", str(tmp_path / "out"), *twice)
    assert "would both be called 'final': name them, as --adapter x=" in said
    # A folder that is there is one, whatever its name; PEFT takes no dots.
    folder = str(tmp_path / "beta=0.1")
    assert named([folder, "mine=runs/x"], "--adapter") == {"beta=0_1": folder, "mine": "runs/x"}
