"""Output folders and what a checkpoint holds beside the model: the objective's own parameters."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mllm_align.families.base import MIXED
from mllm_align.models.export import refuse_file
from mllm_align.trainers.heads import as_module
from mllm_align.trainers.mined_batches import load_mined
from mllm_align.vision.mixer_files import has_mixer, load_mixer_weights

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer

OBJECTIVE_FILE = "objective.safetensors"


def claim_output_dir(folder: str, *, overwrite: bool, main_process: bool) -> None:
    """Makes sure that a new run writes into an empty folder.

    Args:
        folder: The output folder; may be missing.
        overwrite: Allow one with something in it. Checkpoints of the earlier run are removed, so that resuming and
            their rotation see those of this run alone.
        main_process: Whether this process does the removing.

    Raises:
        ValueError: If it is a file, or has something in it and may not be overwritten.
    """
    path = Path(folder)
    refuse_file(path)
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"output folder {folder!r} has something in it: name another, resume its run (--resume, or "
            "resume_from_checkpoint=True), or replace it (--overwrite, or overwrite_output_dir)"
        )
    if main_process:
        for checkpoint in _checkpoints(path):
            shutil.rmtree(checkpoint)


def last_complete_checkpoint(folder: str) -> str:
    """The newest checkpoint that was written to its end; one cut off by a kill is passed over.

    Raises:
        ValueError: If there is none.
    """
    for checkpoint in reversed(_checkpoints(Path(folder))):
        # The trainer's state is the last file of a checkpoint to be written.
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(checkpoint)
    raise ValueError(f"no complete checkpoint to resume from in {folder!r}: start the run without resuming")


def save_objective(objective: Any, folder: str) -> None:
    """Writes the state of an objective that is a module; one without state writes nothing."""
    state = _state(objective)
    if state:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, Path(folder) / OBJECTIVE_FILE)


def load_objective(objective: Any, folder: str) -> None:
    """Restores what `save_objective` wrote.

    Raises:
        ValueError: If the checkpoint belongs to another objective.
    """
    state = _state(objective)
    file = Path(folder) / OBJECTIVE_FILE
    if not state and not file.is_file():
        return
    saved = load_file(file) if file.is_file() else {}
    other = next((name for name in state if name in saved and saved[name].shape != state[name].shape), None)
    if saved.keys() == state.keys() and other is not None:
        raise ValueError(
            f"the checkpoint in {folder!r} was made with other sizes: its {other!r} is {tuple(saved[other].shape)}, "
            f"this objective's {tuple(state[other].shape)}; give it the options that it had"
        )
    if saved.keys() != state.keys():
        raise ValueError(
            f"the checkpoint in {folder!r} was made with another objective: it holds "
            f"{', '.join(sorted(saved)) or 'no parameters'}, this one has {', '.join(sorted(state)) or 'none'}"
        )
    objective.load_state_dict(saved)


def load_beside_model(trainer: AlignTrainer, folder: str) -> None:
    """Restores what a checkpoint holds beside the model's weights for a run that goes on.

    Raises:
        ValueError: If the checkpoint belongs to another objective, or to batches of other rows.
    """
    if trainer.averaged is not None:
        trainer.averaged.load(folder)
    load_objective(trainer.objective, folder)
    load_mined(trainer.sampler, folder)


def load_whole_model(model: Any, folder: str) -> bool:
    """Loads the weights of a checkpoint into a model that trains without adapters.

    A checkpoint names weights as the Hub does and a model in memory otherwise; the trainer of `transformers` compares
    the names as they are, loads none of those that differ, and only warns.

    Returns:
        Whether this was such a model; another is left as it is.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    saved = type(model).from_pretrained(folder, config=model.config, dtype="auto")
    weights = saved.state_dict()
    if has_mixer(folder):
        load_mixer_weights(model, folder)
    # What is saved under the stock names is the stock model; a mixer lies beside it.
    mixed = {name: value for name, value in model.state_dict().items() if name.startswith(f"{MIXED}.")}
    model.load_state_dict(weights | mixed)
    return True


def _state(objective: Any) -> dict[str, Any]:
    module = as_module(objective)
    return {} if module is None else module.state_dict()


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(pattern.fullmatch(path.name), path) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match and path.is_dir())]
