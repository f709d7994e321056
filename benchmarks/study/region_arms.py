"""The arms of the regions study: the same rows, steps and replay, with and without contrast between regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mllm_align.data.world import correspondence_rows, document_rows
from view_rows import MOST_VIEWS, steps_of_views, view_rows

Spec = dict[str, Any]
Row = dict[str, Any]
CONTROL, HEAVY, CONTRAST, DOCO = "next_token", "next_token_3x", "region_contrast", "doco"
VIEWS, PULLED, WORST = "contrast", "contrast_all", "contrast_worst"
NAMED, NAMED_PULLED, NAMED_WORST = "text", "text_all", "text_worst"
LIGHT = 0.1  # weight of the same terms in arms whose names end so
SEEDS = (0, 1, 2)
LEARNING_RATES = (4e-3, 1e-3)
STEPS, NUM_ROWS = 300, 2000
ROWS_PER_STEP, REPLAY_PER_STEP = 11, 21


class Run(NamedTuple):
    """What decides a run's result."""

    task: str
    level: str
    arm: str
    learning_rate: float
    seed: int
    steps: int
    num_rows: int


def base_run(task: str, level: str) -> Run:
    """The base, untrained, as a run of no steps."""
    return Run(task, level, "base", 0.0, 0, 0, 0)


@dataclass(frozen=True)
class Task:
    """What is trained on and asked.

    Attributes:
        text: What it is, for readers.
        rows: Rows of a level: `(num_rows, seed, split, level)`.
        level: The usual one.
        columns: Image columns whose regions are compared when retrieval is measured; none where the task measures it
            in its own way.
        arms: Per arm the objective's parts beside next-token on the rows; controls are first.
        plan: By step which rows it has: `(rows, seed, steps, level)`; drawn by the trainer where None.
        compared: Pairs of arms whose difference is told, too.
        tuned: The arm on which the learning rate of all is chosen; each has its own where None.
    """

    text: str
    rows: Callable[[int, int, str, str], list[Row]]
    level: str
    columns: tuple[str, ...]
    arms: Mapping[str, tuple[Spec, ...]]
    plan: Callable[[Sequence[Row], int, int, str], list[list[int]]] | None = None
    compared: tuple[tuple[str, str], ...] = ()
    tuned: str | None = None


# Things of other rows may look the same, so that only those of the row itself are told apart.
REGIONS: Spec = {"name": "region_contrast", "columns": ["image"], "negatives": "row"}
# In a step of views every thing looks different, and views of one are on several rows.
COLUMNS = ["image", "contrast_image"]
THINGS: Spec = {"name": "region_contrast", "columns": COLUMNS, "negatives": "batch"}
CENTROID: Spec = {"name": "view_centroid", "columns": COLUMNS, "across_rows": True}
# As the paper has it: what keeps all from becoming the same is a contrast with words alone.
WORDS: Spec = {"name": "region_text", "columns": COLUMNS}
OUTLIERS = 5
TASKS: Mapping[str, Task] = {
    "correspondence": Task(
        "two pictures of the same things, among look-alikes",
        correspondence_rows,
        "medium",
        ("image",),
        {CONTROL: (), HEAVY: (), CONTRAST: (REGIONS,), f"{CONTRAST}_light": ({**REGIONS, "weight": LIGHT},)},
    ),
    "documents": Task(
        "pages of words",
        document_rows,
        "small",
        ("image", "contrast_image"),
        {
            CONTROL: (),
            HEAVY: (),
            DOCO: ({"name": "doco_like"},),
            f"{DOCO}_light": ({"name": "doco_like", "weight": LIGHT},),
        },
    ),
    "views": Task(
        "things alone, in views of which some are hard",
        view_rows,
        "quarter",
        (),
        {
            CONTROL: (),
            VIEWS: (THINGS,),
            PULLED: (THINGS, {**CENTROID, "outliers": MOST_VIEWS}),
            WORST: (THINGS, {**CENTROID, "outliers": OUTLIERS}),
            NAMED: (WORDS,),
            NAMED_PULLED: (WORDS, {**CENTROID, "outliers": MOST_VIEWS}),
            NAMED_WORST: (WORDS, {**CENTROID, "outliers": OUTLIERS}),
        },
        steps_of_views,
        (
            *((WORST, PULLED), (PULLED, VIEWS), (WORST, VIEWS)),
            *((NAMED_WORST, NAMED_PULLED), (NAMED_PULLED, NAMED), (NAMED_WORST, NAMED)),
        ),
        VIEWS,
    ),
}
# Beside these, an arm needs a document model, which is not trained here.
NEEDS_TEACHER = (DOCO, f"{DOCO}_light")


def objective_of(task: str, arm: str, teacher: str | None = None) -> list[Spec]:
    """The parts of an arm's objective.

    Every arm trains next-token on both views of a row; a second control, where there is one, gives it three times the
    weight, because an arm with a term more gives the rows more weight against the replay.

    Args:
        task: One of `TASKS`.
        arm: One of its arms.
        teacher: Folder or Hub id of the document model, for arms that need one.

    Raises:
        ValueError: If it needs one and none is named.
    """
    further = [dict(spec) for spec in TASKS[task].arms[arm]]
    if arm in NEEDS_TEACHER:
        if teacher is None:
            raise ValueError(f"arm {arm!r} needs a document model: name it with --teacher")
        further = [{**spec, "teacher": teacher} for spec in further]
    return [
        {"name": "next_token", "weight": 3.0 if arm == HEAVY else 1.0, "sources": "pairs"},
        *({"weight": 1.0, **spec, "sources": "pairs"} for spec in further),
        {"name": "next_token", "weight": 1.0, "sources": "replay"},
    ]
