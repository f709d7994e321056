"""Two small vision towers for the mixing study: one that is blind to colour by its training, one that sees it.

The blind one is trained as CLIP is, pictures against captions (Radford et al. 2021, https://arxiv.org/abs/2103.00020)
and places against phrases, as RegionCLIP does (Zhong et al. 2021, https://arxiv.org/abs/2112.09106). Its captions name
no colour, every picture is shown in two colourings, and the tokens of the two are pulled together. The other learns by
itself, without a word: it draws pictures again of which parts are hidden (Pathak et al. 2016,
https://arxiv.org/abs/1604.07379), from a DINOv2's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, LlavaProcessor

from mllm_align.data.world import SMALL, Scene, iter_scenes, render
from mllm_align.demo.base_model import PATCH

WIDTH, LAYERS, HEADS = 96, 3, 4
NUM_SCENES, COLOURINGS, BATCH = 2000, 4, 64
CLIP_STEPS, SSL_STEPS = 500, 400
CLIP_RATE, SSL_RATE = 2e-3, 2e-3
INVARIANCE = 30.0  # weight of the distance between the tokens of two colourings
HIDDEN_PART = 0.4  # of the blocks of a picture that is to be drawn again
BLOCK = 4  # pixels on a side
END = "."

VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": SMALL.image_size,
    "patch_size": PATCH,
}


class Pictures(NamedTuple):
    """Scenes in several colourings: `pixels` (N, V, 3, H, W) uint8, the first one the scene's own colours."""

    scenes: list[Scene]
    pixels: Tensor


def recoloured(scene: Scene, rng: Random) -> Scene:
    """The scene with every object's colour drawn anew."""
    return replace(scene, items=tuple(replace(item, colour=rng.choice(SMALL.colours)) for item in scene.items))


def pictures(num_scenes: int, colourings: int, seed: int, split: str = "train") -> Pictures:
    """Balanced scenes of a split, drawn once."""
    rng = Random(f"colourings {seed}")
    found = list(islice(iter_scenes(split, seed, "balanced"), num_scenes))
    shown = [[scene, *(recoloured(scene, rng) for _ in range(colourings - 1))] for scene in found]
    drawn = np.stack([np.stack([np.asarray(render(each)) for each in views]) for views in shown])
    return Pictures(found, torch.from_numpy(drawn).permute(0, 1, 4, 2, 3).contiguous())


def normalised(pixels: Tensor, processor: LlavaProcessor) -> Tensor:
    """(..., 3, H, W) float32 from uint8, as the image processor does it."""
    settings = processor.image_processor
    mean, std = torch.tensor(settings.image_mean).view(3, 1, 1), torch.tensor(settings.image_std).view(3, 1, 1)
    return (pixels.float() * settings.rescale_factor - mean) / std


def colourless(scene: Scene) -> list[str]:
    """What a caption says of each object, its colour left out."""
    return [f"a {item.size} {item.shape} on the {scene.side(item)}" for item in scene.items]


def cells(scene: Scene) -> list[int]:
    """The patch in which each object lies, one patch a cell."""
    return [item.row * scene.grid + item.column for item in scene.items]


def train_blind(
    processor: LlavaProcessor, shown: Pictures, steps: int, seed: int
) -> Iterator[tuple[CLIPModel, float]]:
    """A CLIP that ignores colour, with the loss of each step.

    Three terms: pictures against whole captions and objects' patches against their phrases, both by InfoNCE in both
    directions; and the squared distance between the patch tokens of two colourings, over their variance.
    """
    tokenizer = processor.tokenizer
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),  # what CLIP reads a text off; captions end with it
    }
    config = CLIPConfig(
        text_config=text,
        vision_config={**VISION, "intermediate_size": 3 * WIDTH, "projection_dim": WIDTH},
        projection_dim=WIDTH,
    )
    model: Any = seeded(lambda: CLIPModel(config), seed)
    rng = Random(f"blind {seed}")
    for optimizer, schedule in optimised(model.train(), steps, CLIP_RATE):
        chosen = rng.sample(range(len(shown.scenes)), BATCH)
        views = torch.stack([shown.pixels[i, rng.sample(range(shown.pixels.shape[1]), 2)] for i in chosen])
        loss = _blind_loss(model, processor, [shown.scenes[i] for i in chosen], normalised(views, processor))
        step(model, loss, optimizer, schedule)
        yield model, loss.item()


def _blind_loss(model: Any, processor: LlavaProcessor, scenes: list[Scene], views: Tensor) -> Tensor:
    phrases = [colourless(scene) for scene in scenes]
    single = sorted({phrase for own in phrases for phrase in own})
    captions = [" and ".join(own) for own in phrases]
    tokens = processor.tokenizer(
        [text + END for text in captions + single],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    words = F.normalize(
        model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output, dim=-1
    )
    states = model.vision_model(pixel_values=views.flatten(0, 1)).last_hidden_state
    states = states.unflatten(0, views.shape[:2])  # (B, 2, 1 + cells, d)
    seen = F.normalize(model.visual_projection(model.vision_model.post_layernorm(states)), dim=-1)
    scale = model.logit_scale.exp().clamp(max=100)
    losses, number = [], {phrase: k for k, phrase in enumerate(single)}
    row = torch.tensor([k for k, own in enumerate(phrases) for _ in own])
    place = torch.tensor([1 + cell for scene in scenes for cell in cells(scene)])
    target = torch.tensor([number[phrase] for own in phrases for phrase in own])
    for view in range(2):
        whole = scale * seen[:, view, 0] @ words[: len(scenes)].T
        own = torch.arange(len(scenes))
        losses += [F.cross_entropy(whole, own) / 2, F.cross_entropy(whole.T, own) / 2]
        losses.append(F.cross_entropy(scale * seen[row, view, place] @ words[len(scenes) :].T, target))
    losses.append(INVARIANCE * told_apart(states[row, 0, place], states[row, 1, place]))
    return torch.stack(losses).sum() / 2


def told_apart(first: Tensor, second: Tensor) -> Tensor:
    """How far two colourings of the same objects (O, d) are apart, in units of how tokens differ in general.

    The squared distance by Mahalanobis, over d: a difference counts in the directions that hold little else, where a
    plain distance would leave it for a probe to find.
    """
    both = torch.cat([first, second])
    centred = both - both.mean(dim=0)
    covariance = centred.T @ centred / len(both)
    ridge = 1e-4 * covariance.diagonal().mean() * torch.eye(len(covariance))
    return (first - second).T.mul(torch.linalg.solve(covariance + ridge, (first - second).T)).mean()


def train_seeing(processor: LlavaProcessor, shown: Pictures, steps: int, seed: int) -> Iterator[tuple[Any, float]]:
    """A DINOv2 that draws again what was hidden from it, with the loss of each step; its head is thrown away."""
    config = Dinov2Config(**VISION, mlp_ratio=3, use_mask_token=False)
    model: Any = seeded(lambda: Dinov2Model(config), seed)
    head: Any = seeded(lambda: nn.ModuleList([nn.Linear(WIDTH, 3 * PATCH**2), nn.Linear(WIDTH, WIDTH)]), seed)
    both = nn.ModuleList([model, head]).train()
    rng, generator = Random(f"seeing {seed}"), torch.Generator().manual_seed(seed)
    for optimizer, schedule in optimised(both, steps, SSL_RATE):
        chosen = rng.sample(range(len(shown.scenes)), BATCH)
        pixels = normalised(shown.pixels[chosen, rng.randrange(shown.pixels.shape[1])], processor)
        loss = _drawing_loss(model, head, pixels, generator)
        step(both, loss, optimizer, schedule)
        yield model, loss.item()


def _drawing_loss(model: Any, head: Any, pixels: Tensor, generator: torch.Generator) -> Tensor:
    side = pixels.shape[-1] // BLOCK
    hide = torch.rand(2 * len(pixels), 1, side, side, generator=generator) < HIDDEN_PART
    hide = hide.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    states = model(pixel_values=torch.cat([pixels, pixels]).masked_fill(hide, 0.0)).last_hidden_state
    wanted = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
    drawn = F.mse_loss(head[0](states[:, 1:]), torch.cat([wanted, wanted]))
    # Two hidings of one picture belong together, those of other pictures do not: a picture's class token names it.
    names = F.normalize(head[1](states[:, 0]), dim=-1)
    logits = names[: len(pixels)] @ names[len(pixels) :].T / 0.1
    own = torch.arange(len(pixels))
    return drawn + 0.1 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def seeded(make: Any, seed: int) -> Any:
    """What `make` makes with random numbers of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def optimised(model: nn.Module, steps: int, rate: float) -> Iterator[tuple[Any, Any]]:
    """For each step an optimiser and its schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for _ in range(steps):
        yield optimizer, schedule


def step(model: nn.Module, loss: Tensor, optimizer: Any, schedule: Any) -> None:
    """One of them."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
