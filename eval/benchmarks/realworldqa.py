"""RealWorldQA (xAI 2024, https://huggingface.co/datasets/xai-org/RealworldQA): 765 questions about photos.

Choices between letters, yes or no, and short answers; each question says itself how it wants to be answered. There is
no published script. Of VLMEvalKit there is no rule here: it asks another file, in which all are choices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.answers import Parsed
from mllm_align_eval.benchmark import STRICT, Benchmark, Hub
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.tables import Row, hub_rows, table_rows
from mllm_align_eval.choice_readings import after_statement, lmms_letter
from mllm_align_eval.items import YES_NO, Answer, Item
from mllm_align_eval.metrics import Measures, by_kind, mean
from mllm_align_eval.readings import UNREAD

ORIGIN = "https://huggingface.co/datasets/xai-org/RealworldQA"
COLUMNS = ("question", "answer")
LETTERS = ("A", "B", "C", "D")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# The end of questions that S-VCO's grader reads four characters of.
ASKS_LETTER = "answer directly with only the letter of the correct option and nothing else"


def realworldqa_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of all `.parquet` files in the folder, or of `.jsonl` files of {image, question, answer}."""
    items = items_of(table_rows(folder, COLUMNS, ORIGIN), pictures)
    pictures.check(item.cluster for item in items if item.truth["is_file"])
    return items


def realworldqa_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The questions of the Hub's copy, by their place in it."""
    return items_of(hub_rows(rows), PictureFolder(None, ORIGIN))


def items_of(rows: Iterable[Row], pictures: PictureFolder) -> list[Item]:
    """The questions of a table, by their place in it.

    Raises:
        ValueError: Naming the row that is no question about a picture.
    """
    items = []
    for index, row in enumerate(rows):
        question, answer = str(row.values["question"]).strip(), str(row.values["answer"]).strip()
        if not question or not answer or not row.name:
            raise ValueError(f"{row.where}: not a question with image and answer; get it from {ORIGIN}")
        choices, labels = choices_of(question, answer)
        items.append(
            Item(
                id=f"realworldqa/{index}",
                benchmark="realworldqa",
                split="test",
                kind="short" if not choices else "yes_no" if choices == YES_NO else "choice",
                cluster=row.name,
                prompt=question,
                pictures=(row.picture(pictures),),
                choices=choices,
                answer=(answer.lower() if choices == YES_NO else answer.upper()) if choices else "",
                labels=labels,
                truth={"answer": answer, "is_file": row.load is None},
            )
        )
    return items


def choices_of(question: str, answer: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices and their wording; none for a short answer.

    The options are read from the question; where the true one is not among them, the letters A to D are the choices.
    """
    if answer.lower() in YES_NO:
        return YES_NO, ()
    if answer.upper() not in LETTERS:
        return (), ()
    options = dict(re.findall(r"^\s*([A-Z])[.)]\s+(.*\S)", question, re.MULTILINE))
    return (tuple(options), tuple(options.values())) if answer.upper() in options else (LETTERS, ())


def lmms_reading(text: str, item: Item) -> Parsed:
    """lmms-eval: its shared extractor among A to D; yes or no without a period after it, to the letter."""
    if item.kind == "choice":
        return _said(lmms_letter(text, LETTERS), item)
    return _said(_lmms_short(text), item)


def cambrian_reading(text: str, item: Item) -> Parsed:
    """cambrian: the first word after the last "answer is", or of all, without periods after it."""
    said = _cambrian_short(text)
    return _said(said.upper() if item.kind == "choice" else said, item)


def svco_reading(text: str, item: Item) -> Parsed:
    """S-VCO: the letter in the first four characters, else the whole text; parentheses, spaces, periods left out."""
    said = _svco_short(text, item.prompt)
    return _said(said.upper() if item.kind == "choice" else said, item)


def realworldqa_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`realworldqa/acc`, and by kind: choice, yes_no and short.

    A short answer is right, strictly, if it is the same words, with numbers as words or digits; the harnesses compare
    letter by letter, and take "two" and "2" for different.
    """

    def right(item: Item) -> bool:
        answer = answers[item.id]
        return answer.right if item.is_closed else _is_same(answer.text, item, parser)

    found = {"realworldqa/acc": mean(items, right)}
    return found | {f"realworldqa/{kind}/acc": mean(members, right) for kind, members in by_kind(items).items()}


def _is_same(text: str, item: Item, parser: str) -> bool:
    truth = item.truth["answer"].lower()
    if parser == STRICT:
        return _plain(text) == _plain(truth)
    if parser == "s-vco":
        return _svco_short(text, item.prompt) == re.sub(r"[().\s]", "", truth)
    return (_lmms_short(text) if parser == "lmms-eval" else _cambrian_short(text)) == truth


def _plain(text: str) -> str:
    words = re.sub(r"[*_\"]", "", text.lower()).strip().rstrip(".!").split()
    return " ".join(str(NUMBERS.index(word)) if word in NUMBERS else word for word in words)


def _lmms_short(text: str) -> str:
    return text.lower().strip().rstrip(".")


def _cambrian_short(text: str) -> str:
    """The script fails where no word is left; that is "" here, and wrong."""
    return next(iter(after_statement(text).rstrip(".").split()), "")


def _svco_short(text: str, question: str) -> str:
    said = text.strip().lower()
    return re.sub(r"[().\s]", "", said[:4] if ASKS_LETTER in question.lower() else said)


def _said(said: str, item: Item) -> Parsed:
    return Parsed(said, "answered") if said in item.choices else UNREAD


REALWORLDQA = Benchmark(
    name="realworldqa",
    title="RealWorldQA (xAI, 2024): questions about photos",
    origin=ORIGIN,
    image_origin=ORIGIN,
    files=("*.jsonl", "*.parquet"),
    read=realworldqa_items,
    score=realworldqa_score,
    primary="realworldqa/acc",
    readings={"lmms-eval": lmms_reading, "cambrian": cambrian_reading, "s-vco": svco_reading},
    hub=(Hub("lmms-lab/RealWorldQA", realworldqa_hub_items),),
)
