"""Evaluation questions with exact answers, for the test splits and for POPE-style existence polling.

Every yes/no test is object-matched: for each object name as many questions have the answer yes as no, so an answer
from the question's text alone is right half of the time (Li et al. 2023, https://arxiv.org/abs/2305.10355, poll
without this). No scene is asked more than twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from mllm_align.data.world.catalogue import SMALL, World
from mllm_align.data.world.facts import CLOSED_KINDS, Fact, facts
from mllm_align.data.world.language import word
from mllm_align.data.world.scenes import Scene
from mllm_align.data.world.splits import generator, iter_scenes

POPE_REGIMES = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        id: Unique within the world: split, regime or kind, seed and number.
        scene: What the picture shows; `render(scene)` draws it.
        text: The question as the model is asked.
        answer: The true answer.
        choices: The answers that are possible; empty for captions.
        kind: One of `facts.KINDS`.
        split: The split of the scene.
        prior_answer: What the prior of training says; None where it says nothing.
        cluster: The unit of resampling: content hash of the scene, or of a pair's first scene.
        subject: What the question names.
        pair_id: The minimal pair it belongs to.
        regime: `random`, `popular` or `adversarial` where it polls for existence.
        held_out: Whether it is about a combination of colour and shape that never occurs in training.
    """

    id: str
    scene: Scene
    text: str
    answer: str
    choices: tuple[str, ...]
    kind: str
    split: str
    prior_answer: str | None
    cluster: str
    subject: tuple[str, ...] = ()
    pair_id: str | None = None
    regime: str | None = None
    held_out: bool = False


def make_question(
    identifier: str,
    scene: Scene,
    fact: Fact,
    text: str,
    split: str,
    world: World = SMALL,
    cluster: str | None = None,
    pair_id: str | None = None,
    regime: str | None = None,
) -> Question:
    """The question for one fact of one scene."""
    named = [scene.find(name) for name in fact.subject]
    held_out = any(item is not None and world.held_out(item.shape, item.colour) for item in named)
    return Question(
        id=identifier,
        scene=scene,
        text=text,
        answer=fact.answer,
        choices=fact.choices,
        kind=fact.kind,
        split=split,
        prior_answer=fact.prior_answer,
        cluster=cluster or scene.content_hash,
        subject=fact.subject,
        pair_id=pair_id,
        regime=regime,
        held_out=held_out,
    )


class _Matching:
    """Chooses facts so that every object name gets as many yes as no."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.surplus: Counter[tuple[str, ...]] = Counter()  # yes minus no

    def choose(self, candidates: Sequence[Fact]) -> Fact | None:
        """A fact that brings its name closer to balance, else one that opens a new match; None if none does."""
        steps = {id(fact): (1 if fact.answer == "yes" else -1) * self.surplus[_name(fact)] for fact in candidates}
        closing = [fact for fact in candidates if steps[id(fact)] < 0]
        opening = [fact for fact in candidates if steps[id(fact)] == 0]
        if not closing and not opening:
            return None
        chosen = self.rng.choice(closing or opening)
        self.surplus[_name(chosen)] += 1 if chosen.answer == "yes" else -1
        return chosen

    def unmatched(self, chosen: Sequence[Question | None]) -> set[int]:
        """The indices of the latest questions whose counterpart never came."""
        left = Counter(self.surplus)
        drop = set()
        for index in reversed(range(len(chosen))):
            question = chosen[index]
            if question is None or question.choices != ("yes", "no"):
                continue
            name = (question.kind, *question.subject[:2])
            step = 1 if question.answer == "yes" else -1
            if left[name] * step > 0:
                left[name] -= step
                drop.add(index)
        return drop


def _name(fact: Fact) -> tuple[str, ...]:
    return (fact.kind, *fact.subject[:2])


def questions(
    split: str,
    num_scenes: int,
    seed: int = 0,
    kinds: Sequence[str] = CLOSED_KINDS,
    distribution: str | None = None,
    paraphrases: str = "seen",
    world: World = SMALL,
    salt: str = "",
) -> list[Question]:
    """Questions of several kinds, as many of each kind as can be, at most two a scene, yes/no ones object-matched.

    On prior-broken scenes existence is asked where the prior is wrong: of absent shapes whose partner is there, and of
    present shapes whose partner is not.

    Args:
        split: One of `SPLITS`.
        num_scenes: How many scenes are asked; a few questions fewer than twice that come back.
        seed: Another seed, other scenes of the same split.
        kinds: Which kinds of question.
        distribution: `prior`, `broken` or `balanced`; the split's own where None.
        paraphrases: `seen` in training, `held_out`, or `all`.
        world: The choice from the catalogue.
        salt: Needed for the private test.
    """
    stream = iter_scenes(split, seed, distribution, world, salt)
    rng = generator("questions", split, distribution, seed, salt)
    matching = _Matching(rng)
    asked: Counter[str] = Counter()
    found: list[Question] = []
    broken = distribution == "broken" or (distribution is None and split in ("test_adversarial", "private"))
    for number in range(num_scenes):
        scene = next(stream)
        for kind in sorted(kinds, key=lambda kind: (asked[kind], rng.random()))[:2]:
            candidates = facts(scene, kind, world)
            if broken and kind == "existence":
                candidates = [fact for fact in candidates if fact.answer != fact.prior_answer]
            fact = _choose(candidates, matching, rng)
            if fact is not None:
                asked[kind] += 1
                text = word(kind, fact.subject, rng, paraphrases)
                found.append(make_question(f"{split}/{seed}/{number}/{kind}", scene, fact, text, split, world))
    drop = matching.unmatched(found)
    return [question for index, question in enumerate(found) if index not in drop]


def _choose(candidates: Sequence[Fact], matching: _Matching, rng: Random) -> Fact | None:
    if not candidates:
        return None
    return matching.choose(candidates) if candidates[0].kind in ("existence", "relation") else rng.choice(candidates)


def existence_questions(
    regime: str,
    num_questions: int,
    seed: int = 0,
    split: str = "test_adversarial",
    distribution: str | None = None,
    paraphrases: str = "seen",
    world: World = SMALL,
    salt: str = "",
) -> list[Question]:
    """POPE-style polling: "is there a ...?", object-matched, two questions a scene where two can be had.

    `random` asks about any shape; `popular` about the shapes that are most frequent in scenes with the prior;
    `adversarial` about absent shapes whose partner is there and present shapes whose partner is not, so that a model
    which answers from the other objects is always wrong. Raises ValueError for another regime.
    """
    accepts = _regime(regime, world)
    stream = iter_scenes(split, seed, distribution, world, salt)
    rng = generator("existence", regime, split, distribution, seed, salt)
    matching = _Matching(rng)
    found: list[Question] = []
    while len(found) - sum(map(abs, matching.surplus.values())) < num_questions:
        scene = next(stream)
        taken: set[str] = set()
        for _ in range(2):
            candidates = [f for f in facts(scene, "existence", world) if accepts(f) and f.subject[0] not in taken]
            fact = matching.choose(candidates)
            if fact is not None:
                taken.add(fact.subject[0])
                name = f"{split}/pope/{regime}/{seed}/{len(found)}"
                text = word("existence", fact.subject, rng, paraphrases)
                found.append(make_question(name, scene, fact, text, split, world, regime=regime))
    drop = matching.unmatched(found)
    return [question for index, question in enumerate(found) if index not in drop]


def _regime(regime: str, world: World) -> Callable[[Fact], bool]:
    if regime == "random":
        return lambda fact: True
    if regime == "popular":
        popular = set(popular_shapes(world))
        return lambda fact: fact.subject[0] in popular
    if regime == "adversarial":
        return lambda fact: fact.answer != fact.prior_answer
    raise ValueError(f"unknown polling regime {regime!r}; there are {', '.join(POPE_REGIMES)}")


def popular_shapes(world: World = SMALL, num_scenes: int = 1000) -> tuple[str, ...]:
    """The more frequent half of the shapes in training scenes."""
    stream = iter_scenes("train", 0, "prior", world)
    counts = Counter(shape for _ in range(num_scenes) for shape in next(stream).shapes)
    return tuple(shape for shape, _ in counts.most_common(len(world.shapes) // 2))
