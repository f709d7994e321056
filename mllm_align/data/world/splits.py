"""Splits that are disjoint by what their scenes show, whatever seeds and sizes are asked for.

The content hash of a scene decides the split that it may be in, so no list of training scenes has to be kept and a
private test with a salt of the user's own cannot meet a training scene either.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.sampling import BALANCED, BROKEN, DISTRIBUTIONS, PRIOR, Distribution, sample_scene
from mllm_align.data.world.scenes import Scene

# The share of all scenes, in tenths, that a split may draw from.
_SHARES = {
    "train": 5,
    "validation": 1,
    "test_in_distribution": 1,
    "test_adversarial": 1,
    "pairs": 1,
    "private": 1,
}
SPLITS = tuple(_SHARES)
_OWNER = tuple(name for name, share in _SHARES.items() for _ in range(share))
_DEFAULTS = {
    "train": PRIOR,
    "validation": PRIOR,
    "test_in_distribution": PRIOR,
    "test_adversarial": BROKEN,
    "pairs": BALANCED,
    "private": BROKEN,
}


def split_of(scene: Scene) -> str:
    """The only split in which a scene of this content may be."""
    return _OWNER[int(scene.content_hash[:8], 16) % len(_OWNER)]


def check_split(split: str, salt: str) -> None:
    """Raise ValueError for an unknown split, or a private test without a salt."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the world has {', '.join(SPLITS)}")
    if split == "private" and not salt:
        raise ValueError("the private test needs a salt of your own: pass salt='...'")


def distribution_of(split: str, name: str | None = None) -> Distribution:
    """The distribution called `name`, or the default of the split.

    Test splits may show the combinations of colour and shape that are held out of training, except in distribution.
    """
    if name is not None and name not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {name!r}; the world has {', '.join(DISTRIBUTIONS)}")
    distribution = DISTRIBUTIONS[name] if name is not None else _DEFAULTS[split]
    held_out = split in ("test_adversarial", "pairs", "private") and distribution is not PRIOR
    return Distribution(**{**vars(distribution), "held_out": held_out})


def generator(*parts: object) -> Random:
    """A random generator seeded by the parts; the same on every platform."""
    return Random("|".join(str(part) for part in parts))


def iter_scenes(
    split: str, seed: int = 0, distribution: str | None = None, world: World = SMALL, salt: str = ""
) -> Iterator[Scene]:
    """Endless scenes of a split, none twice.

    Args:
        split: One of `SPLITS`.
        seed: Another seed, another sequence.
        distribution: `prior`, `broken` or `balanced`; the split's own where None.
        world: The choice from the catalogue.
        salt: Enters the seed; needed for the private test.
    """
    check_split(split, salt)
    chosen = distribution_of(split, distribution)
    rng = generator("scenes", split, chosen.name, seed, salt, world)
    seen: set[str] = set()
    while True:
        scene = sample_scene(rng, chosen, world)
        if split_of(scene) == split and scene.content_hash not in seen:
            seen.add(scene.content_hash)
            yield scene


def scenes(
    split: str, num_scenes: int, seed: int = 0, distribution: str | None = None, world: World = SMALL, salt: str = ""
) -> list[Scene]:
    """The first `num_scenes` of `iter_scenes`."""
    stream = iter_scenes(split, seed, distribution, world, salt)
    return [next(stream) for _ in range(num_scenes)]
