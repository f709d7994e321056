"""Does CLIP-blind mining find pairs that differ in what the blind tower ignores, and only these?

A gallery holds minimal pairs that differ in one thing: colour, which is to be found, and size, side or shape, which is
not; some more pictures show the same things in other colours by chance. `mine_blind_pairs` searches all pairs of its
images. Beside MMVP's bounds, one for the seeing tower is chosen on another gallery, because how cosines are spread
differs from model to model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from mllm_align.data.mine.clip_blind import BlindOptions, mine_blind_pairs
from mllm_align.data.mine.embed import embed_images
from mllm_align.data.mine.encoder import ImageEmbedder
from mllm_align.data.world import Scene, iter_pairs, render

KINDS = ("colour", "size", "side", "existence")
NUM_PAIRS = 150  # of each kind
PAPER = (0.95, 0.6)  # MMVP's bounds, for CLIP and DINOv2
BELOW = (0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
SEED, CHOOSING_SEED = 0, 1
PER_IMAGE = 100
NO_COPIES = 1.0  # small pictures of few things are alike without being copies: all of them take part


def draw_gallery(folder: Path, num_pairs: int, seed: int) -> dict[str, Scene]:
    """Two pictures for each planted pair, whose names say its kind and number; by name what they show."""
    folder.mkdir(parents=True)
    shown = {}
    stream = iter_pairs("pairs", seed, kinds=KINDS)
    for number, pair in enumerate(islice(stream, num_pairs * len(KINDS))):
        for side, scene in zip("ab", pair.scenes, strict=True):
            name = f"{pair.kind}_{number}_{side}"
            shown[name] = scene
            render(scene).save(folder / f"{name}.png")
    return shown


def only_colours(first: Scene, second: Scene) -> bool:
    """Whether two scenes show the same shapes in the same sizes, wherever they are, not all in the same colours."""
    sizes, colours = (
        [{item.shape: getattr(item, name) for item in scene.items} for scene in (first, second)]
        for name in ("size", "colour")
    )
    return sizes[0] == sizes[1] and colours[0] != colours[1]


def judged(found: Sequence[tuple[str, str]], shown: Mapping[str, Scene], num_pairs: int) -> dict[str, float]:
    """How well pairs of names are those that differ in colour alone, planted or there by chance.

    Args:
        found: Pairs of names.
        shown: The gallery.
        num_pairs: Planted pairs of each kind.

    Returns:
        `precision` and `recall` over all such pairs of the gallery, and how many planted pairs of each kind were
        found, of colour as the part `planted found`.
    """
    wanted = sum(only_colours(one, other) for one, other in combinations(shown.values(), 2))
    right = sum(only_colours(shown[one], shown[other]) for one, other in found)
    planted = [one.split("_")[0] for one, other in found if one.split("_")[:2] == other.split("_")[:2]]
    return {
        "to be found": wanted,
        "found": len(found),
        "precision": right / max(1, len(found)),
        "recall": right / wanted,
        "planted found": planted.count("colour") / num_pairs,
        **{f"planted pairs of {kind} found": planted.count(kind) for kind in KINDS[1:]},
    }


def mined(folder: Path, blind: Path, seeing: Path, bounds: Sequence[tuple[float, float]]) -> list[list[Any]]:
    """For each pair of bounds the names of the pairs that are found among the pictures of a folder."""
    with tempfile.TemporaryDirectory() as work:
        vectors = [
            embed_images(str(folder), ImageEmbedder(tower, "cpu"), Path(work) / tower.name, progress=False)
            for tower in (blind, seeing)
        ]
        found = []
        for number, (above, below) in enumerate(bounds):
            output = Path(work) / f"pairs_{number}.jsonl"
            options = BlindOptions(above=above, below=below, repeated_above=NO_COPIES, per_image=PER_IMAGE)
            mine_blind_pairs(str(folder), vectors[0], vectors[1], output, options, sheet=0, progress=False)
            rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
            found.append([(Path(row["image"]).stem, Path(row["contrast_image"]).stem) for row in rows])
        return found


def mining_record(blind: Path, seeing: Path, num_pairs: int = NUM_PAIRS) -> dict[str, Any]:
    """What mining finds with MMVP's bounds and with the bound that has the best F1 on another gallery."""
    with tempfile.TemporaryDirectory() as folder:
        choosing, asked = Path(folder) / "choosing", Path(folder) / "asked"
        known, shown = draw_gallery(choosing, num_pairs, CHOOSING_SEED), draw_gallery(asked, num_pairs, SEED)
        tried = mined(choosing, blind, seeing, [(PAPER[0], below) for below in BELOW])
        best = max(range(len(BELOW)), key=lambda k: _f1(judged(tried[k], known, num_pairs)))
        paper, chosen = mined(asked, blind, seeing, [PAPER, (PAPER[0], BELOW[best])])
    images = 2 * num_pairs * len(KINDS)
    facts = {"images": images, "pairs of images": images * (images - 1) // 2, "planted of each kind": num_pairs}
    return facts | {
        "MMVP's bounds": {"above": PAPER[0], "below": PAPER[1], **judged(paper, shown, num_pairs)},
        "chosen bound": {"above": PAPER[0], "below": BELOW[best], **judged(chosen, shown, num_pairs)},
    }


def _f1(score: dict[str, float]) -> float:
    precision, recall = score["precision"], score["recall"]
    return 2 * precision * recall / (precision + recall) if recall else 0.0
