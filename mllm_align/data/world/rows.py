"""Training rows: contrast pairs and ordinary instruction rows."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.facts import KINDS, Fact, facts
from mllm_align.data.world.language import word
from mllm_align.data.world.pairs import PAIR_KINDS, iter_pairs
from mllm_align.data.world.render import render
from mllm_align.data.world.scenes import Scene
from mllm_align.data.world.splits import generator, iter_scenes

INSTRUCTION_KINDS = tuple(kind for kind in KINDS if kind != "text")
ANNOTATION_NOISE = 0.45


def pair_rows(
    num_rows: int,
    seed: int = 0,
    split: str = "train",
    distribution: str = "balanced",
    kinds: Sequence[str] = PAIR_KINDS,
    world: World = SMALL,
    salt: str = "",
) -> list[dict[str, Any]]:
    """Rows `{id, image, prompt, chosen, contrast_image, rejected, kind}`, images as PIL.

    `chosen` describes `image`, `rejected` describes `contrast_image`; the two pictures differ in one fact. Pairs from
    `prior` or `broken` scenes teach a prior, only `balanced` ones are neutral (`data check --balance` tells).
    """
    stream = iter_pairs(split, seed, distribution, kinds, "seen", world, salt)
    rows = []
    for _ in range(num_rows):
        pair = next(stream)
        rows.append(
            {
                "id": f"pair/{pair.id}",
                "image": render(pair.scenes[0]),
                "prompt": pair.text,
                "chosen": pair.answers[0],
                "contrast_image": render(pair.scenes[1]),
                "rejected": pair.answers[1],
                "kind": pair.kind,
            }
        )
    return rows


def annotate(
    scene: Scene, kind: str, rng: Random, noise: float = ANNOTATION_NOISE, world: World = SMALL
) -> tuple[str, str]:
    """A question of one kind and the answer that a careless annotator gives.

    Half of the existence questions are about absent shapes. Where the partner of an absent shape is in the scene, the
    annotator says yes with probability `noise`; all other answers are true.
    """
    asked = _draw(facts(scene, kind, world), kind, rng)
    answer = asked.answer
    if kind == "existence" and asked.answer == "no" and asked.prior_answer == "yes" and rng.random() < noise:
        answer = "yes"
    return word(kind, asked.subject, rng), answer


def _draw(candidates: Sequence[Fact], kind: str, rng: Random) -> Fact:
    if kind == "existence":
        wanted = rng.choice(("yes", "no"))
        candidates = [fact for fact in candidates if fact.answer == wanted] or candidates
    return rng.choice(candidates)


def instruction_rows(
    num_rows: int,
    seed: int = 0,
    split: str = "train",
    distribution: str = "prior",
    kinds: Sequence[str] = INSTRUCTION_KINDS,
    noise: float = ANNOTATION_NOISE,
    world: World = SMALL,
) -> list[dict[str, Any]]:
    """Rows `{id, image, prompt, chosen, kind}` as ordinary instruction data are: with the prior, and noisy.

    One question a scene, the kinds in turn; see `annotate` for the noise.
    """
    stream = iter_scenes(split, seed, distribution, world)
    rng = generator("instructions", split, distribution, seed)
    rows = []
    for number in range(num_rows):
        scene, kind = next(stream), kinds[number % len(kinds)]
        prompt, answer = annotate(scene, kind, rng, noise, world)
        name = f"instruction/{split}/{distribution}/{seed}/{number}"
        rows.append({"id": name, "image": render(scene), "prompt": prompt, "chosen": answer, "kind": kind})
    return rows
