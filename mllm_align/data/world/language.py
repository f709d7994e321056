"""What is asked and answered in words: paraphrases, captions, and the objects that a text mentions."""

from __future__ import annotations

import re
from random import Random

from mllm_align.data.world.catalogue import SHAPES, SIGN
from mllm_align.data.world.scenes import Item, Scene

# The last paraphrase of each kind is held out of training; its words occur in the others.
PARAPHRASES: dict[str, tuple[str, ...]] = {
    "existence": (
        "Is there a {0}?",
        "Do you see a {0} in the picture?",
        "Can you see a {0}?",
        "Is a {0} in the picture?",
    ),
    "colour": (
        "What colour is the {0}?",
        "Which colour does the {0} have?",
        "Tell me the colour of the {0}.",
        "What is the colour of the {0}?",
    ),
    "size": (
        "What size is the {0}?",
        "Is the {0} small or large?",
        "Tell me the size of the {0}.",
        "What is the size of the {0}?",
    ),
    "side": (
        "On which side is the {0}?",
        "Is the {0} on the left or on the right?",
        "Tell me the side of the {0}.",
        "Which side is the {0} on?",
    ),
    "count": (
        "How many objects are there?",
        "How many objects do you see?",
        "Count the objects in the picture.",
        "How many objects are in the picture?",
    ),
    "relation": (
        "Is the {0} {1} the {2}?",
        "Do you see the {0} {1} the {2}?",
        "Is it true that the {0} is {1} the {2}?",
        "Is it true that you see the {0} {1} the {2}?",
    ),
    "text": (
        "What does the sign say?",
        "Tell me what the sign does say.",
        "Which text does the sign have?",
        "What text does the sign have?",
    ),
    "caption": (
        "Describe the picture.",
        "What do you see?",
        "Tell me what is in the picture.",
        "Describe what you see.",
    ),
}
RELATIONS = ("left of", "right of", "above", "below")
PARAPHRASE_SETS = ("seen", "held_out", "all")


def paraphrases(kind: str, which: str = "seen") -> tuple[str, ...]:
    """The templates of a kind of question: those of training (`seen`), the `held_out` one, or `all`."""
    if which not in PARAPHRASE_SETS:
        raise ValueError(f"unknown set of paraphrases {which!r}; there are {', '.join(PARAPHRASE_SETS)}")
    templates = PARAPHRASES[kind]
    return {"seen": templates[:-1], "held_out": templates[-1:], "all": templates}[which]


def word(kind: str, subject: tuple[str, ...], rng: Random, which: str = "seen") -> str:
    """A question in words, the paraphrase drawn by `rng`."""
    return rng.choice(paraphrases(kind, which)).format(*subject)


def phrase(scene: Scene, item: Item) -> str:
    """One object as a caption says it."""
    if item.shape == SIGN:
        return f"a sign that does say {item.text} on the {scene.side(item)}"
    return f"a {item.size} {item.colour} {item.shape} on the {scene.side(item)}"


def caption(scene: Scene) -> str:
    """All objects in reading order; at most 39 words for five objects."""
    return " and ".join(phrase(scene, item) for item in scene.items)


def mentioned(text: str) -> tuple[str, ...]:
    """The shapes that a text names, each once, in order of first mention."""
    words = (_singular(word) for word in re.findall(r"[a-z]+", text.lower()))
    return tuple(dict.fromkeys(word for word in words if word in SHAPES))


def _singular(word: str) -> str:
    return next((form for form in (word, word.removesuffix("s"), word.removesuffix("es")) if form in SHAPES), word)
