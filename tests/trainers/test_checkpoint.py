from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mllm_align.objectives.next_token import NextToken
from mllm_align.trainers.checkpoint import (
    claim_output_dir,
    last_complete_checkpoint,
    load_objective,
    save_objective,
)
from runs import Headed


def write(folder: Path, step: int, state: str | None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    if state is not None:
        (checkpoint / "trainer_state.json").write_text(state)
    return checkpoint


def test_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 9, "{}")
    wanted = write(tmp_path, 10, "{}")
    write(tmp_path, 11, '{"global_step": 1')
    write(tmp_path, 12, None)
    assert last_complete_checkpoint(str(tmp_path)) == str(wanted)


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="no complete checkpoint"):
            last_complete_checkpoint(str(folder))


def test_claiming(tmp_path: Path) -> None:
    claim_output_dir(str(tmp_path / "missing"), overwrite=False, main_process=True)
    claim_output_dir(str(tmp_path), overwrite=False, main_process=True)
    checkpoint = write(tmp_path, 1, "{}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="has something in it"):
        claim_output_dir(str(tmp_path), overwrite=False, main_process=True)
    claim_output_dir(str(tmp_path), overwrite=True, main_process=False)
    assert checkpoint.exists()
    claim_output_dir(str(tmp_path), overwrite=True, main_process=True)
    assert not checkpoint.exists()
    with pytest.raises(ValueError, match="is a file and is kept: name a folder"):
        claim_output_dir(str(tmp_path / "notes.txt"), overwrite=True, main_process=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_objective_comes_back(tmp_path: Path) -> None:
    saved, loaded = Headed(), Headed()
    with torch.no_grad():
        saved.mix.normal_()
    save_objective(saved, str(tmp_path))
    load_objective(loaded, str(tmp_path))
    assert torch.equal(loaded.mix, saved.mix)


def test_another_objective_is_refused(tmp_path: Path) -> None:
    save_objective(NextToken(), str(tmp_path))
    assert not list(tmp_path.iterdir())
    load_objective(NextToken(), str(tmp_path))
    with pytest.raises(ValueError, match=r"another objective: it holds no parameters, this one has mix, scale"):
        load_objective(Headed(), str(tmp_path))
    save_objective(Headed(), str(tmp_path))
    with pytest.raises(ValueError, match=r"another objective: it holds mix, scale, this one has none"):
        load_objective(NextToken(), str(tmp_path))
