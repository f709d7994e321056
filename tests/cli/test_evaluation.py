"""`eval run` and `report` on the command line: how they end where a picture, a reader or an adapter fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mllm_align.cli import main
from runs import picture


@pytest.fixture
def pope(tmp_path: Path) -> tuple[str, ...]:
    """Arguments of a run on six questions about three pictures, the second of which is cut in the middle."""
    (tmp_path / "data" / "pope").mkdir(parents=True)
    rows = [
        {"question_id": n, "image": f"{n // 2}.png", "text": f"Is there a disc {n}?", "label": ("yes", "no")[n % 2]}
        for n in range(6)
    ]
    (tmp_path / "data" / "pope" / "coco_pope_random.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "images").mkdir()
    for number in range(3):
        picture(number).save(tmp_path / "images" / f"{number}.png")
    whole = (tmp_path / "images" / "1.png").read_bytes()
    (tmp_path / "images" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole.png").write_bytes(whole)
    where = ("--data", str(tmp_path / "data"), "--images", str(tmp_path / "images"))
    return ("eval", "run", "demo-base", "--benchmark", "pope", *where, "--output", str(tmp_path / "out"))


def ends(*argv: str) -> int:
    """The exit status of a command."""
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_broken_picture_is_named_and_costs_its_own_questions_alone(
    pope: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "out" / "answers.jsonl"
    assert ends(*pope) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"1 picture cannot be read (cannot read the image {tmp_path / 'images' / '1.png'}: " in error
    assert "val2014" in error
    assert f"the same command: the other answers are kept in {kept}" in error
    assert not (tmp_path / "out" / "results.json").exists()
    before = kept.read_text().splitlines()
    # By log-probability and by generation: six without a picture, four with their own, with another, with a blank one.
    assert len(before) == 2 * (6 + 4 + 4 + 4)
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "whole.png").read_bytes())
    assert ends(*pope) == 0
    after = kept.read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == 2 * 4 * 6
    assert (tmp_path / "out" / "results.json").is_file()


def test_a_reader_that_has_enough_costs_no_results(pope: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "whole.png").read_bytes())
    command = [sys.executable, "-m", "mllm_align.cli", *pope]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == 141
    assert (tmp_path / "out" / "report.md").is_file()


def test_answers_that_are_cut_can_fail_the_run(
    pope: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "whole.png").read_bytes())
    assert ends(*pope, "--max-new-tokens", "1", "--fail-on-lost") == 3
    assert "were cut at the limit of their length" in " ".join(capsys.readouterr().out.split())
    card = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]["pope"]
    assert card["max_new_tokens"] == 1
    assert ends(*pope, "--overwrite") == 0, "without the option they are warned of alone"
    assert ends(*pope, "--max-new-tokens", "0", "--overwrite") == 2
    assert "--max-new-tokens must be at least 1, not 0" in capsys.readouterr().err
