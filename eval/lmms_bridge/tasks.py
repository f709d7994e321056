"""Our questions as tasks of lmms-eval (`--include_path`), for models and comparisons that live there."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value

from mllm_align.models.export import refuse_file
from mllm_align_eval.items import Item
from mllm_align_eval.matrices import NUM_SCORES

# Read by lmms-eval, beside the YAML files and without us.
READING = '''\
"""What lmms-eval shows of a question, and when an answer is right."""

import re


def visuals(doc):
    """The pictures, in order."""
    return [picture.convert("RGB") for picture in doc["images"]]


def plain(text):
    """In lower case, without what ends a sentence."""
    return re.sub(r"[\\s.!]+$", "", text.strip().lower())


def right(doc, results):
    """Whether the answer is the true choice and nothing else."""
    return {"right": float(plain(results[0]) == plain(doc["answer"]))}
'''
TASK = """\
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {parquet}
test_split: test
output_type: generate_until
doc_to_visual: !function reading.visuals
doc_to_text: question
doc_to_target: answer
process_results: !function reading.right
generation_kwargs:
  max_new_tokens: {length}
  do_sample: false
  temperature: 0
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""


def write_tasks(items: Iterable[Item], folder: str | os.PathLike[str], *, max_new_tokens: int = 16) -> list[str]:
    """Writes closed questions as one task for each split, and a group of them all.

    The files name the folder by its full path, as `datasets` needs it: written anew where it is moved to.

    Args:
        items: Questions; those without choices, and those whose choices are scored and not named, are left out.
        folder: Where to; must be missing or empty.
        max_new_tokens: Length of an answer.

    Returns:
        Names of the tasks, for `--tasks`; the group first.

    Raises:
        ValueError: If no question has choices, or the folder has something in it.
    """
    place = Path(folder).resolve()
    refuse_file(place)
    if place.exists() and any(place.iterdir()):
        raise ValueError(f"{str(place)!r} has something in it: name another folder")
    splits: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.is_closed and NUM_SCORES not in item.truth:
            splits[f"mllm_align_{item.benchmark}_{re.sub(r'[^0-9A-Za-z_]', '_', item.split)}"].append(item)
    if not splits:
        raise ValueError("none of the questions has choices, and lmms-eval would not know which answers are right")
    place.mkdir(parents=True, exist_ok=True)
    text = Value("string")
    columns = Features({"id": text, "images": List(Image()), "question": text, "answer": text, "choices": List(text)})
    for name, own in splits.items():
        rows = [
            {
                "id": item.id,
                "images": [picture.load() for picture in item.pictures],
                "question": item.prompt,
                "answer": item.answer,
                "choices": list(item.choices),
            }
            for item in own
        ]
        file = place / f"{name}.parquet"
        Dataset.from_list(rows, columns).to_parquet(file)
        settings = TASK.format(name=name, parquet=json.dumps(str(file)), length=max_new_tokens)
        (place / f"{name}.yaml").write_text(settings, encoding="utf-8")
    (place / "reading.py").write_text(READING, encoding="utf-8")
    group = f"mllm_align_{next(iter(splits.values()))[0].benchmark}"
    listed = "".join(f"  - {name}\n" for name in splits)
    (place / f"{group}.yaml").write_text(f"group: {group}\ntask:\n{listed}", encoding="utf-8")
    return [group, *splits]
