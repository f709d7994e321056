"""Stage V, the stand-in for CLIP pretraining: the tower learns to see before any text is trained.

Next-token training of tower and language model together from scratch collapses onto the prior: the language model
answers from the question before the tower has learned anything, and then no gradient is left for the tower. So the
tower first classifies what each patch shows, on balanced scenes without any prior; the heads are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mllm_align.data.world.catalogue import World
from mllm_align.data.world.render import render
from mllm_align.data.world.scenes import Item, Scene
from mllm_align.data.world.splits import generator

OCCUPANCY = 0.6


def pixel_values(processor: LlavaProcessor, scenes: list[Scene]) -> Tensor:
    """(B, 3, H, W) float32: what the image processor gives for pictures that already have the right size, faster."""
    settings = processor.image_processor
    images = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).float()
    mean, std = torch.tensor(settings.image_mean), torch.tensor(settings.image_std)
    return ((images * settings.rescale_factor - mean) / std).permute(0, 3, 1, 2).contiguous()


def dense_scene(rng: Random, world: World) -> Scene:
    """Objects in most cells, every fact uniform, shapes repeated; combinations held out of training left out."""
    items = []
    for row in range(world.grid):
        for column in range(world.grid):
            if rng.random() < OCCUPANCY:
                shape = rng.choice(world.shapes)
                colour = rng.choice([c for c in world.colours if not world.held_out(shape, c)])
                size = rng.choice(world.sizes)
                items.append(Item(row, column, shape, colour, size, rng.randint(-1, 1), rng.randint(-1, 1)))
    return Scene(tuple(items), world.image_size, world.grid, background=rng.randint(228, 252))


class PatchHeads(nn.Module):
    """One linear classifier per attribute on each patch token; class 0 of an object's attributes means empty."""

    def __init__(self, width: int, world: World) -> None:
        super().__init__()
        self.world = world
        classes = {
            "shape": len(world.shapes) + 1,
            "colour": len(world.colours) + 1,
            "size": len(world.sizes) + 1,
            "row": world.grid,
            "column": world.grid,
        }
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})

    def targets(self, scenes: list[Scene]) -> dict[str, Tensor]:
        """Per attribute (B, grid * grid) int64, patches in reading order."""
        grid = self.world.grid
        found = {name: torch.zeros(len(scenes), grid, grid, dtype=torch.long) for name in self.heads}
        found["row"] += torch.arange(grid)[:, None]
        found["column"] += torch.arange(grid)
        for number, scene in enumerate(scenes):
            for item in scene.items:
                place = (number, item.row, item.column)
                found["shape"][place] = 1 + self.world.shapes.index(item.shape)
                found["colour"][place] = 1 + self.world.colours.index(item.colour)
                found["size"][place] = 1 + self.world.sizes.index(item.size)
        return {name: value.flatten(1) for name, value in found.items()}

    def forward(self, tokens: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss over attributes, and the part of occupied patches whose three attributes are all right."""
        logits = {name: head(tokens) for name, head in self.heads.items()}
        losses = [F.cross_entropy(logits[name].flatten(0, 1), targets[name].flatten()) for name in logits]
        seen = [logits[name].argmax(-1) == targets[name] for name in ("shape", "colour", "size")]
        occupied = targets["shape"] > 0
        return torch.stack(losses).mean(), torch.stack(seen).all(0)[occupied].float().mean()


def train_vision(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    world: World,
    steps: int,
    seed: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> Iterator[tuple[float, float]]:
    """Train the tower in place, yielding loss and patch accuracy of each step.

    Args:
        model: Its vision tower is trained, nothing else.
        processor: Gives the pixel normalisation.
        world: What is drawn; one patch per cell.
        steps: Optimiser steps.
        seed: Of the scenes and of the heads.
        batch_size: Scenes per step.
        learning_rate: Peak of the one-cycle schedule.
    """
    rng = generator("stage vision", seed)
    tower = model.model.vision_tower
    device = next(tower.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        heads = PatchHeads(tower.config.hidden_size, world).to(device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    for _ in range(steps):
        scenes = [dense_scene(rng, world) for _ in range(batch_size)]
        pixels = pixel_values(processor, scenes).to(device)
        tokens = tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        targets = {name: value.to(device) for name, value in heads.targets(scenes).items()}
        loss, accuracy = heads(tokens, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item(), accuracy.item()
