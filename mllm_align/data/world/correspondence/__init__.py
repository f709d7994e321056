"""Two pictures of the same things, among look-alikes: which one of the second is the one marked in the first?

    matching (what is where, hashed) -> drawing (pixels, boxes, marks) -> rows

A task in the manner of MMVM (Zhou et al. 2025, https://arxiv.org/abs/2501.04670), with exact boxes and identities.
"""

from mllm_align.data.world.correspondence.drawing import boxes, draw
from mllm_align.data.world.correspondence.matching import Matching, iter_matchings
from mllm_align.data.world.correspondence.rows import correspondence_rows, objects_of
from mllm_align.data.world.correspondence.things import DIFFICULTIES, Difficulty, Frame, Placed, Thing

__all__ = [
    "DIFFICULTIES",
    "Difficulty",
    "Frame",
    "Matching",
    "Placed",
    "Thing",
    "boxes",
    "correspondence_rows",
    "draw",
    "iter_matchings",
    "objects_of",
]
