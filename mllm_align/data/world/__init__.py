"""The rendered world: scenes with exact ground truth, a prior in training, questions and minimal pairs.

    scenes (data, hashed) -> render (pixels) and facts (answers) -> questions, pairs -> rows

Beside them, in folders of their own: `correspondence`, two pictures of the same things among look-alikes, and
`documents`, pages of words.

Everything is deterministic from a seed and needs Pillow and numpy alone. Splits are disjoint by what scenes show.
"""

from mllm_align.data.world.captions import caption_rows, hard_negative_items, retrieval_pool
from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.classes import class_rows
from mllm_align.data.world.correspondence import correspondence_rows
from mllm_align.data.world.documents import document_rows
from mllm_align.data.world.facts import CLOSED_KINDS, KINDS, Fact, facts
from mllm_align.data.world.language import caption, mentioned
from mllm_align.data.world.pairs import PAIR_KINDS, MinimalPair, iter_pairs, pair_questions
from mllm_align.data.world.questions import POPE_REGIMES, Question, existence_questions, questions
from mllm_align.data.world.references import reference_rows
from mllm_align.data.world.render import boxes, masks, render
from mllm_align.data.world.rows import annotate, instruction_rows, pair_rows
from mllm_align.data.world.sampling import BALANCED, BROKEN, DISTRIBUTIONS, PRIOR, Distribution, sample_scene
from mllm_align.data.world.scenes import Item, Scene, manifest_hash
from mllm_align.data.world.splits import SPLITS, iter_scenes, scenes, split_of

__all__ = [
    "BALANCED",
    "BROKEN",
    "CLOSED_KINDS",
    "DISTRIBUTIONS",
    "KINDS",
    "PAIR_KINDS",
    "POPE_REGIMES",
    "PRIOR",
    "SMALL",
    "SPLITS",
    "Distribution",
    "Fact",
    "Item",
    "MinimalPair",
    "Question",
    "Scene",
    "World",
    "annotate",
    "boxes",
    "caption",
    "caption_rows",
    "class_rows",
    "correspondence_rows",
    "document_rows",
    "existence_questions",
    "facts",
    "hard_negative_items",
    "instruction_rows",
    "iter_pairs",
    "iter_scenes",
    "manifest_hash",
    "masks",
    "mentioned",
    "pair_questions",
    "pair_rows",
    "questions",
    "reference_rows",
    "render",
    "retrieval_pool",
    "sample_scene",
    "scenes",
    "split_of",
]
