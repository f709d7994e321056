"""Evaluation of vision-language models before and after: paired, with intervals, and with controls for not looking.

benchmarks -> items -> runner (arms x images x methods, cached) -> answers -> summary -> report
"""

from mllm_align_eval.answers import parse, parse_choice, parse_yes_no
from mllm_align_eval.arms import Arm, active_arm
from mllm_align_eval.cache import AnswerCache
from mllm_align_eval.changes import changed_answers
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.runner import AnswerErrors, answer, answer_arms
from mllm_align_eval.summary import summarise

__all__ = [
    "Answer",
    "AnswerCache",
    "AnswerErrors",
    "Arm",
    "Item",
    "active_arm",
    "answer",
    "answer_arms",
    "changed_answers",
    "parse",
    "parse_choice",
    "parse_yes_no",
    "summarise",
]
