"""The models of the mixing study, trained once into a folder: two towers, and a LLaVA on the blind one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import AutoModel, CLIPModel, LlavaForConditionalGeneration, LlavaProcessor

from mixing_arms import BLIND, MASKED, QUERIES, SEEING
from mixing_probes import probe
from mixing_queries import MASKED_PATCHES, MASKED_STEPS, train_masked, train_queries
from mixing_towers import (
    CLIP_STEPS,
    COLOURINGS,
    NUM_SCENES,
    SSL_STEPS,
    Pictures,
    normalised,
    pictures,
    train_blind,
    train_seeing,
)
from mllm_align.data.world import SMALL
from mllm_align.demo.base_model import build_model, build_processor
from mllm_align.demo.stage_language import train_language
from mllm_align.models.loading import DEMO_BASE, model_path
from mllm_align.vision.mixer_files import SETTINGS_FILE

LANGUAGE_STEPS = 700
NUM_PROBED = (800, 300)  # scenes that probes are trained on, and asked about


class Folders(NamedTuple):
    """Where the models are."""

    blind: Path
    seeing: Path
    llava: Path
    probes: Path
    masked: Path
    queries: Path

    @property
    def towers(self) -> dict[str, str]:
        """By the names that `mixing_arms.mixer_of` has for them."""
        return {name: str(getattr(self, name)) for name in (SEEING, BLIND, MASKED, QUERIES)}


def folders(root: Path) -> Folders:
    """Where they are below `root`, trained or not."""
    return Folders(*(root / name for name in ("blind", "seeing", "llava", "probes.json", "masked", "queries")))


def prepared(root: Path, seed: int = 0, language_steps: int = LANGUAGE_STEPS) -> Folders:
    """All models and the probes of both towers; what is there is not trained again.

    Each is a folder as it is published, with its image processor: `blind` a CLIP, `seeing` a DINOv2, `llava` a LLaVA
    whose tower is the image side of `blind`, frozen while the rest was trained on balanced scenes. See
    `prepare_queries` for the others.
    """
    found = folders(root)
    processor = build_processor(SMALL)
    if not done(found.blind) or not done(found.seeing):
        shown = pictures(NUM_SCENES, COLOURINGS, seed)
        for folder, train, steps in (
            (found.blind, train_blind, CLIP_STEPS),
            (found.seeing, train_seeing, SSL_STEPS),
        ):
            if not done(folder):
                _saved(folder, train(processor, shown, steps, seed), processor.image_processor)
    if not done(found.llava):
        _saved(found.llava, train_llava(processor, found.blind, language_steps, seed), processor)
    if not found.probes.exists():
        found.probes.write_text(json.dumps(probed(found, processor, seed), indent=1) + "\n", encoding="utf-8")
    return found


def prepare_queries(found: Folders, seed: int = 0) -> None:
    """The masked autoencoder, and the first stage of X-Former with it, which arms that are staged begin with."""
    processor = build_processor(SMALL)
    if not done(found.masked):
        shown = pictures(NUM_SCENES, COLOURINGS, seed)
        _saved(found.masked, train_masked(processor, shown, MASKED_STEPS, seed), processor.image_processor)
    probes = json.loads(found.probes.read_text(encoding="utf-8"))
    if not any(name.startswith(MASKED) for name in probes):
        probes |= probed(found, processor, seed, (MASKED,))
        found.probes.write_text(json.dumps(probes, indent=1) + "\n", encoding="utf-8")
    if not (found.queries / SETTINGS_FILE).exists():
        train_queries(found.llava, found.masked, found.queries, seed)


def done(folder: Path) -> bool:
    """Whether the model in it is finished: its record is written last."""
    return (folder / "training.json").exists()


def train_llava(processor: LlavaProcessor, blind: Path, steps: int, seed: int) -> Any:
    """Projector and language model on questions and captions, with the loss of each step; the tower stays as it is.

    The language model begins as that of the shipped base, which knows the words and, with its own tower, colours.
    """
    model: Any = build_model(processor, SMALL, seed)
    shipped: Any = LlavaForConditionalGeneration.from_pretrained(model_path(DEMO_BASE), dtype=torch.float32)
    for name in ("model.language_model", "lm_head"):
        model.get_submodule(name).load_state_dict(shipped.get_submodule(name).state_dict())
    model.model.vision_tower.load_state_dict(CLIPModel.from_pretrained(blind).vision_model.state_dict())
    model.model.vision_tower.requires_grad_(False)
    model.train()
    for loss in train_language(model, processor, SMALL, steps, seed, distribution="balanced", noise=0.0):
        yield model, loss


def probed(
    found: Folders, processor: LlavaProcessor, seed: int, towers: Sequence[str] = (BLIND, SEEING)
) -> dict[str, dict[str, float]]:
    """By tower and kind of probe the accuracies of its patch tokens; of smaller patches the mean over a cell."""
    train = pictures(NUM_PROBED[0], 1, seed + 1)
    test = pictures(NUM_PROBED[1], 1, seed + 1, "pairs")
    results = {}
    for name in towers:
        model: Any = AutoModel.from_pretrained(found.towers[name]).eval()
        model = getattr(model, "vision_model", model)
        if name == MASKED:
            model.config.mask_ratio = 0.0

        @torch.no_grad()
        def read(shown: Pictures, name: str = name, model: Any = model) -> torch.Tensor:
            pixels = normalised(shown.pixels[:, 0], processor)
            # An autoencoder would put its patches in an order of its own.
            kept = {"noise": torch.arange(MASKED_PATCHES).expand(len(pixels), -1)} if name == MASKED else {}
            states = model(pixel_values=pixels, **kept).last_hidden_state[:, 1:]
            side = round(states.shape[1] ** 0.5)
            grid = states.unflatten(1, (side, side)).movedim(-1, 1)
            return F.adaptive_avg_pool2d(grid, SMALL.grid).flatten(2).transpose(1, 2)

        results[f"{name}, linear"] = probe(read, train, test)
        results[f"{name}, one hidden layer"] = probe(read, train, test, hidden=128)
    return results


def _saved(folder: Path, training: Any, processor: Any) -> None:
    started, losses, model = time.perf_counter(), [], None
    for trained, loss in training:
        if len(losses) % 50 == 0:
            print(f"{time.strftime('%H:%M:%S')} {folder.name}: step {len(losses)}, loss {loss:.3f}", flush=True)
        model = trained
        losses.append(loss)
    if model is None:
        raise ValueError(f"{folder.name} needs at least one step")
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    facts = {"steps": len(losses), "loss": sum(losses[-20:]) / len(losses[-20:])}
    facts["seconds"] = round(time.perf_counter() - started, 1)
    (folder / "training.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
