"""A vision expert that stays after training: what it sees of an object, as one token that the language model reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm_align.contract import ObjectAdapter, Teacher, teacher_from
from mllm_align.vision.regions import Located
from mllm_align.vision.teachers import load_teacher
from mllm_align.vision.vision_teacher import VisionTeacher, coverage, covered_mean

WEIGHTS_FILE, SETTINGS_FILE = "object_expert.safetensors", "object_expert.json"
# Of the expert's features of one drawn image: they tell whether it is the one that the adapter was trained with.
PROBES, TOLERANCE = 16, 2e-2


class ObjectTokens(NamedTuple):
    """Of the objects on one image: `values` (n, width), and `valid` (n,) bool, whether each covers anything at all."""

    values: Tensor
    valid: Tensor


class ObjectExpert(nn.Module):
    """A frozen vision model and an adapter: an object is the mean of adapted patches by how much it covers of each.

    The adapter alone trains (with `ExpertContrast`) and is kept, beside the LoRA adapter and never in it; the vision
    model is loaded anew.
    What covers nothing has no token: it is zero and told so, where CoLVA's code puts a zero vector into the prompt.

    Args:
        expert: The vision model; `vision.teachers.load_teacher` makes it.
        adapter: Of its width.
        pool_first: Whether the mean is taken before the adapter. CoLVA takes it after; before, features that were
            pooled once (`Feature` of source "teacher") can be trained on, and nothing of the vision model is needed
            while training.

    Raises:
        ValueError: If the widths do not fit, or the expert reads words.
    """

    def __init__(self, expert: Any, adapter: ObjectAdapter, *, pool_first: bool = False) -> None:
        super().__init__()
        if not isinstance(expert, VisionTeacher):
            raise ValueError(f"an object expert is a vision model, not a {type(expert).__name__}")
        if adapter.widths[0] != expert.width:
            raise ValueError(
                f"the adapter is for features of width {adapter.widths[0]}, the expert's are {expert.width}"
            )
        # In a tuple: it is neither trained, nor moved, nor saved with what is.
        self._expert = (expert,)
        self.adapter, self.pool_first = adapter, pool_first

    @property
    def expert(self) -> VisionTeacher:
        """The frozen vision model."""
        return self._expert[0]

    def forward(self, images: Sequence[Image.Image], objects: Sequence[Sequence[Located]]) -> list[ObjectTokens]:
        """The tokens of the objects on each of some images, where the adapter is.

        Args:
            images: Upright RGB.
            objects: On each of them.
        """
        patches, cells = self.expert.patches(images)
        weight = self.adapter.get_submodule("1").get_parameter("weight")
        found = []
        for own, there in zip(patches.to(weight), objects, strict=True):
            weights = coverage(there, cells).to(weight)
            values = (
                self.adapter(covered_mean(own, weights))
                if self.pool_first
                else covered_mean(self.adapter(own), weights)
            )
            valid = weights.sum(dim=1) > 0
            found.append(ObjectTokens(torch.where(valid[:, None], values, 0.0), valid))
        return found


class ExpertFacts(NamedTuple):
    """What is kept of a vision model beside an adapter: which one, how it is shown images, what it makes of one."""

    expert: Teacher
    seen: Mapping[str, Any]
    probe: Sequence[float]

    @classmethod
    def of(cls, expert: Any, owner: str) -> ExpertFacts:
        """Of one that is in memory; afterwards it need not be.

        Raises:
            ValueError: If it reads words.
        """
        if not isinstance(expert, VisionTeacher):
            raise ValueError(f"{owner}: an object expert is a vision model, not a {type(expert).__name__}")
        return cls(expert.teacher, expert.facts, _probe(expert))


def save_expert(expert: ObjectExpert, folder: str | Path) -> None:
    """Writes the adapter, and which vision model it belongs to."""
    write_expert(folder, expert.adapter, ExpertFacts.of(expert.expert, "save_expert"), pool_first=expert.pool_first)


def write_expert(folder: str | Path, adapter: ObjectAdapter, facts: ExpertFacts, *, pool_first: bool) -> None:
    """As `save_expert`, where the vision model is no longer in memory."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
    save_file(tensors, place / WEIGHTS_FILE)
    settings = {
        "expert": facts.expert._asdict(),
        "widths": adapter.widths,
        "pool_first": pool_first,
        "seen": facts.seen,
        "probe": facts.probe,
    }
    (place / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_expert(folder: str | Path, device: Any = None, *, expert: str | None = None) -> ObjectExpert:
    """The object expert that lies beside a trained model, with its vision model.

    `load_model` loads the model alone; who refers to objects in prompts (`vision.ObjectPrompts`) loads this, too.

    Args:
        folder: Of the run, the checkpoint, or the exported model.
        device: Of the vision model and the adapter.
        expert: Where the vision model is now, if it was moved.

    Returns:
        On the device, in evaluation mode, and frozen.

    Raises:
        ValueError: If there is none, the vision model cannot be loaded, or it is another than the adapter was trained
            with.
    """
    place = Path(folder)
    try:
        settings: Mapping[str, Any] = json.loads((place / SETTINGS_FILE).read_text(encoding="utf-8"))
        adapter = ObjectAdapter(*settings["widths"])
        adapter.load_state_dict(load_file(place / WEIGHTS_FILE))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"no object expert in {str(place)!r}: {error}") from None
    wanted: Teacher = teacher_from(settings["expert"], str(place))
    loaded = load_teacher(wanted if expert is None else wanted._replace(model=expert), device)
    made = ObjectExpert(loaded, adapter.to(device or "cpu"), pool_first=settings["pool_first"])
    known, now = torch.tensor(settings["probe"]), torch.tensor(_probe(made.expert))
    if (known - now).abs().max() > TOLERANCE * known.abs().max().clamp(min=1e-6):
        raise ValueError(
            f"the vision model {wanted.model!r} is not the one that the adapter in {str(place)!r} was trained with: "
            "one and the same image has other features; load that one"
        )
    return made.eval().requires_grad_(False)


def _probe(expert: VisionTeacher) -> list[float]:
    """Some of the features of one image that is the same everywhere."""
    down, across = np.mgrid[0:48, 0:64]
    drawn = np.stack([down * 5 % 256, across * 4 % 256, (down * across) % 256], axis=-1).astype(np.uint8)
    (features,) = expert([Image.fromarray(drawn)], [()], "mean")
    index = torch.linspace(0, features.shape[1] - 1, PROBES).long()
    return [round(value, 6) for value in features[0, index].tolist()]
