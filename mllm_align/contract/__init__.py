"""The shared nouns: what an objective declares, what is measured for it, and what it returns.

    dataset rows -> collator -> Batch -> signals.measure -> Signals -> objective -> Outcome -> trainer

An objective is fully described by the views it scores, the features it extracts, whether it wants a frozen
reference, and the maths on the small tensors that come back. The first three are data (`Needs`); the last is
`Objective.__call__`. This module imports torch and the standard library alone, so an objective written against it
runs in any trainer.
"""

from mllm_align.contract.batch import Batch, Branch, Phrase, Prefix
from mllm_align.contract.embedding import Embedding, EmbeddingHead
from mllm_align.contract.expert import OBJECT_TOKEN, KeptExpert, ObjectAdapter
from mllm_align.contract.needs import Feature, Needs, View
from mllm_align.contract.outcome import Objective, Outcome, Term, needs_for
from mllm_align.contract.regions import Regions
from mllm_align.contract.signals import Ragged, Signals
from mllm_align.contract.teacher import Teacher, teacher_from

__all__ = [
    "OBJECT_TOKEN",
    "Batch",
    "Branch",
    "Embedding",
    "EmbeddingHead",
    "Feature",
    "KeptExpert",
    "Needs",
    "ObjectAdapter",
    "Objective",
    "Outcome",
    "Phrase",
    "Prefix",
    "Ragged",
    "Regions",
    "Signals",
    "Teacher",
    "Term",
    "View",
    "needs_for",
    "teacher_from",
]
