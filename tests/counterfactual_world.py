"""Pairs of the rendered world with known truth: minimal pairs among random ones and mere copies, and encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from mllm_align.data.mine.pairs import pixel_digest
from mllm_align.data.world import Scene, iter_pairs, render, scenes

MINIMAL, RANDOM, COPY = "minimal", "random", "copy"
BASE = Path(str(resources.files("mllm_align"))) / "demo" / "base"


def planted(count: int, seed: int = 0) -> tuple[list[dict[str, Any]], dict[str, Scene]]:
    """3 x count rows in random order, `truth` says of which kind; and the scene behind every picture's digest.

    Minimal pairs differ in one fact, random ones in most, copies in jitter and background alone.
    """
    rng = Random(seed)
    stream = iter_pairs("train", seed, "balanced")
    others = iter(scenes("train", 3 * count, seed + 1000, "balanced"))
    drawn: list[tuple[str, Scene, Scene, str, tuple[str, str], str]] = []
    for _ in range(count):
        pair = next(stream)
        drawn.append((MINIMAL, *pair.scenes, pair.text, pair.answers, pair.kind))
        drawn.append((RANDOM, next(others), next(others), "What do you see?", ("this", "that"), "random"))
        scene = next(others)
        drawn.append((COPY, scene, _shaken(scene, rng), "What is new?", ("nothing", "something"), "copy"))
    rng.shuffle(drawn)
    known: dict[str, Scene] = {}
    rows = []
    for number, (truth, first, second, prompt, answers, kind) in enumerate(drawn):
        images = [render(first), render(second)]
        known |= {pixel_digest(image): scene for image, scene in zip(images, (first, second), strict=True)}
        texts = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "category": kind, "truth": truth}
        rows.append({"id": f"row {number}", "image": images[0], "contrast_image": images[1], **texts})
    return rows, known


def _shaken(scene: Scene, rng: Random) -> Scene:
    while True:
        items = tuple(replace(item, dx=rng.randint(-1, 1), dy=rng.randint(-1, 1)) for item in scene.items)
        other = replace(scene, items=items, background=rng.randint(228, 252))
        if other != scene:
            return other


class FactEmbedder:
    """An encoder that reads the scene behind a picture: coarse, by its attributes; or sharp, by the whole of it."""

    def __init__(self, known: dict[str, Scene], sharp: bool) -> None:
        self.known, self.sharp = known, sharp
        self.identity = f"facts, {'sharp' if sharp else 'coarse'}"
        self.calls = 0

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.calls += len(images)
        found = [self._vector(self.known[pixel_digest(image)]) for image in images]
        return np.stack([vector / np.linalg.norm(vector) for vector in found])

    def _vector(self, scene: Scene) -> np.ndarray:
        facts = [scene.content_hash] if self.sharp else list(_attributes(scene))
        return sum((_one_hot(fact) for fact in facts), np.zeros(1024))


def _attributes(scene: Scene) -> Iterator[str]:
    for item in scene.items:
        cell = f"{item.row},{item.column}"
        yield from (cell, item.shape, f"{cell} {item.shape}", f"{cell} {item.colour}", f"{cell} {item.size}")
        yield from (f"{item.shape} {item.colour}", f"{item.shape} {item.size}")


@lru_cache(maxsize=100_000)
def _one_hot(fact: str) -> np.ndarray:
    """As good as one: random signs in many dimensions."""
    seed = int.from_bytes(hashlib.sha256(fact.encode()).digest()[:8])
    return np.random.default_rng(seed).choice((-1.0, 1.0), 1024)


class ColourEmbedder:
    """The mean colours of a 4 x 4 grid, for tests in which the truth does not matter."""

    identity = "colours"

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        found = [np.asarray(image.resize((4, 4)), dtype=np.float64).ravel() - 128.1 for image in images]
        return torch.tensor(np.stack([vector / np.linalg.norm(vector) for vector in found]))


class TowerEmbedder:
    """The demo base's own tower: all its patches side by side, or all tokens that its language model reads."""

    def __init__(self, projected: bool) -> None:
        self.identity = f"demo base, {'projected' if projected else 'tower'}"
        self.projected = projected
        self.model = LlavaForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32).eval().model
        self.processor = AutoProcessor.from_pretrained(BASE).image_processor

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        tokens = self.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        if self.projected:
            tokens = self.model.multi_modal_projector(tokens)
        return torch.nn.functional.normalize(tokens.flatten(1), dim=1)


def precision_and_recall(kept: Sequence[str], wanted: Sequence[str]) -> tuple[float, float]:
    """Of ids."""
    right = len(set(kept) & set(wanted))
    return right / max(len(kept), 1), right / len(wanted)
