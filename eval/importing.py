"""Answers that another harness kept, as texts by the ids of our questions.

lmms-eval's `--log_samples` files name a question by its place in the task's data set (`doc_id`) and keep its row
(`doc`); their `doc_hash` is the same for every sample and tells nothing. VLMEvalKit's tables have an `index` and the
row's columns. So questions are found by what the row says, benchmark by benchmark, and checked against the truth or
the question that the row has: where that differs, another version of the data was used, and nothing is scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_align_eval.items import Item

FORMATS = ("lmms-eval", "vlmevalkit")

# A row to the keys of the questions that it answers; none where the row does not have what is needed.
Keys = Callable[[Mapping[str, Any]], Sequence[str]]


def _stem(name: Any) -> str:
    return Path(str(name)).stem


def _pope_keys(row: Mapping[str, Any]) -> Sequence[str]:
    """POPE: split, picture and question; the number of a question is not unique over splits.

    A row of VLMEvalKit is of all the splits that its category names, "adversarial,popular".
    """
    picture = row.get("image_source", row.get("image_path", row.get("image")))
    if row.get("category") is None or picture is None:
        return ()
    question = str(row.get("question", "")).splitlines()[:1]
    splits = str(row["category"]).lower().split(",")
    return [f"{split.strip()}|{_stem(picture)}|{question[0] if question else ''}" for split in splits]


def _pope_item(item: Item) -> str:
    return f"{item.split}|{_stem(item.pictures[0].name)}|{item.prompt.splitlines()[0]}"


def _number(*names: str) -> Keys:
    def keys(row: Mapping[str, Any]) -> Sequence[str]:
        return [str(int(row[name])) for name in names if row.get(name) is not None][:1]

    return keys


def _last(item: Item) -> str:
    return item.id.rsplit("/", 1)[-1]


def _hallusion_keys(row: Mapping[str, Any]) -> Sequence[str]:
    columns = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return ["_".join(str(row[name]) for name in columns)] if all(row.get(name) is not None for name in columns) else ()


def _choice_differs(item: Item, row: Mapping[str, Any], target: Any) -> str:
    truth = row.get("answer", target)
    if truth is None or _bare(truth) in (_bare(item.answer), _bare(_label(item))):
        return ""
    return f"the truth of {item.id!r} is {truth!r} there and {item.answer!r} here"


def _hallusion_differs(item: Item, row: Mapping[str, Any], target: Any) -> str:
    # The target of the task is a sentence.
    return _choice_differs(item, {"answer": {"0": "no", "1": "yes"}.get(str(row.get("gt_answer")), "missing")}, None)


def _question_differs(item: Item, row: Mapping[str, Any], target: Any) -> str:
    question = str(row.get("question", "")).strip()
    if question and question in item.prompt:
        return ""
    return f"the question of {item.id!r} is {question!r} there and another one here"


def _scienceqa_differs(item: Item, row: Mapping[str, Any], target: Any) -> str:
    if tuple(row.get("choices") or ()) != item.labels:
        return f"the choices of {item.id!r} are others there; its place tells questions apart in the copy on the Hub"
    return _question_differs(item, row, target) or _choice_differs(item, {"answer": target}, None)


def _objects_differ(item: Item, row: Mapping[str, Any], target: Any) -> str:
    if not item.is_closed and set(row.get("truth") or ()) == set(item.truth["truth"]):
        return ""
    return f"the objects in the image of {item.id!r} are others there"


@dataclass(frozen=True)
class Origin:
    """How the rows of a harness and the questions of a benchmark are brought together.

    Attributes:
        keys: Those of a row.
        of_item: That of a question.
        differs: What of the question is another thing in the row (and the sample's target) than here, or "".
        formats: The harnesses whose rows have the keys.
    """

    keys: Keys
    of_item: Callable[[Item], str]
    differs: Callable[[Item, Mapping[str, Any], Any], str] = _choice_differs
    formats: tuple[str, ...] = FORMATS


LMMS = ("lmms-eval",)
ORIGINS = {
    "pope": Origin(_pope_keys, _pope_item),
    "mmvp": Origin(_number("Index", "index"), _last),
    "cvbench": Origin(_number("idx", "index"), _last),
    "realworldqa": Origin(_number("index", "doc_id"), _last),
    # The task has the questions with an image, and the one of AMBER the descriptions.
    "hallusion": Origin(_hallusion_keys, _last, _hallusion_differs, LMMS),
    "amber": Origin(_number("question_id"), _last, _objects_differ, LMMS),
    "docvqa": Origin(_number("questionId"), _last, _question_differs, LMMS),
    "infovqa": Origin(_number("questionId"), _last, _question_differs, LMMS),
    "textvqa": Origin(_number("question_id"), _last, _question_differs, LMMS),
    "scienceqa": Origin(_number("doc_id"), _last, _scienceqa_differs, LMMS),
}


def import_texts(path: Path, form: str, benchmark: str, items: Sequence[Item]) -> dict[str, str]:
    """The texts in a file of another harness, by item id.

    Args:
        path: lmms-eval's `*_samples_*.jsonl`, or VLMEvalKit's table (.xlsx, .tsv, .json).
        form: "lmms-eval" or "vlmevalkit".
        benchmark: Whose questions were asked.
        items: The questions.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the harness or benchmark is not known here, the file is none of its files, or a row is to no
            question or has another truth.
    """
    if form not in FORMATS:
        raise ValueError(f"no format {form!r}; use {', '.join(FORMATS)}")
    can = [name for name, origin in ORIGINS.items() if form in origin.formats]
    if benchmark not in can:
        raise ValueError(
            f"answers of {form} to {benchmark} cannot be told apart; those to {', '.join(can)} can. Write them as "
            "JSON lines of id and text"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no file of answers {path}")
    origin = ORIGINS[benchmark]
    by_key = {origin.of_item(item): item for item in items}
    texts: dict[str, str] = {}
    rows = _lmms_rows(path) if form == "lmms-eval" else _table_rows(path)
    for where, key, row, text, target in _with_keys(path, rows, origin.keys, benchmark):
        item = by_key.get(key)
        if item is None:
            raise ValueError(f"{path}, {where}: an answer to no question of {benchmark} ({key!r})")
        if difference := origin.differs(item, row, target):
            raise ValueError(f"{path}, {where}: {difference}: another version of the benchmark")
        if item.id in texts:
            raise ValueError(f"{path}, {where}: a second answer to {item.id!r}")
        texts[item.id] = text
    return texts


def _with_keys(
    path: Path, rows: Iterable[tuple[str, Mapping[str, Any], str, Any]], keys_of: Keys, benchmark: str
) -> Iterator[tuple[str, str, Mapping[str, Any], str, Any]]:
    for where, row, text, target in rows:
        keys = keys_of(row)
        if not keys:
            raise ValueError(
                f"{path}, {where}: does not say which question of {benchmark} it answers; there is "
                f"{', '.join(map(str, row))}"
            )
        for key in keys:
            yield where, key, row, text, target


def _lmms_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any], str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
            said = sample["filtered_resps"] if sample.get("filtered_resps") else sample["resps"]
            row = {"doc_id": sample["doc_id"], **(sample.get("doc") or {})}
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path}, line {number}: not a sample of lmms-eval (doc_id, doc, filtered_resps)"
            ) from None
        while isinstance(said, list):
            said = said[0] if said else ""
        yield f"line {number}", row, str(said), sample.get("target")


def _table_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any], str, Any]]:
    import pandas

    read = {".xlsx": pandas.read_excel, ".json": pandas.read_json}.get(path.suffix)
    try:
        table = read(path) if read else pandas.read_csv(path, sep="\t")
    except ImportError as error:
        raise ValueError(f"{path}: to read .xlsx, install openpyxl ({error}); or save it as .tsv") from error
    if "prediction" not in table.columns:
        raise ValueError(f"{path} has no column 'prediction': not a table of VLMEvalKit's answers")
    for number, row in enumerate(table.to_dict("records"), start=1):
        row = {str(name): None if _is_missing(value) else value for name, value in row.items()}
        text = row["prediction"]
        yield f"row {number}", row, "" if text is None else str(text), None


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _label(item: Item) -> str:
    return item.labels[item.choices.index(item.answer)] if item.labels else item.answer


def _bare(text: Any) -> str:
    return str(text).strip().strip("()").casefold()
