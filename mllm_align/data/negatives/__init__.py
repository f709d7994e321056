"""Texts that are nearly right: edits of captions and of names of objects, false of the picture; and paraphrases.

    texts (of a row) -> making (rules, masked, chat) -> known (what the row's objects say) -> job (rows, report)

English, and without a parser: closed lists, whole words, few patterns. Limits that are known: "orange" is a colour
wherever something follows that it could describe; "two dogs" is taken for exactly two; an edit of a row without named
objects is not checked, and says so.
"""

from mllm_align.data.negatives.job import NegativeOptions, make_negatives
from mllm_align.data.negatives.known import Known
from mllm_align.data.negatives.making import KINDS, proposals
from mllm_align.data.negatives.positives import paraphrases

__all__ = ["KINDS", "Known", "NegativeOptions", "make_negatives", "paraphrases", "proposals"]
