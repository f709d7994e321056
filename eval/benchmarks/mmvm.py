"""MMVM (Zhou et al. 2025, https://arxiv.org/abs/2501.04670): which marked object is that of another picture.

1,510 questions, each with two pictures and 2 to 37 numbered candidates, so chance differs from one to the next. What
makes two objects the same is given by one or more of eight cues (CL, SP, TM, SZ, RP, OO, BR, OM). The authors, and
VLMEvalKit, have a judge read the answers; as they are choices between letters a rule does. The official reading is
the rule that the authors' kit tries before its judge.
"""

from __future__ import annotations

import ast
import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align_eval.benchmark import STRICT, Benchmark
from mllm_align_eval.benchmarks.files import PictureFolder, require_file
from mllm_align_eval.choice_readings import early_vlmevalkit_choice, vlmevalkit_choice
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measure, Measures, clusters_of, mean
from mllm_align_eval.statistics import Array, Metric, ratio

ORIGIN = "https://huggingface.co/zhouyik/MMVMBench"
FILE = "mllm_match_eval_full.tsv"
IMAGES = f"match_bench.zip of {ORIGIN}"
COLUMNS = ("index", "question", "answer", "match_type", "image_path")
CUES = ("CL", "SP", "TM", "SZ", "RP", "OO", "BR", "OM")
# What the authors' scorer takes for cues that it cannot read, and for a number that is none.
UNREADABLE, UNKNOWN = ("CL", "RP"), "SP"
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


def mmvm_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of mllm_match_eval_full.tsv.

    Raises:
        ValueError: If a column is missing, or a row is no question about two pictures; it names the line.
    """
    path = require_file(folder / FILE, ORIGIN)
    items = []
    for where, row in _rows(path):
        options = dict(re.findall(r"^\s*([A-Z]{1,2})\.\s*(.*\S)", row.get("choices") or row["question"], re.MULTILINE))
        names, answer = _list(row["image_path"]) or [], row["answer"].strip()
        if len(names) != 2 or answer not in options or len(options) < 2:
            raise ValueError(f"{where}: not a question with lettered options, one of them right, about two pictures")
        numbers = _list(row["match_type"])
        items.append(
            Item(
                id=f"mmvm/{row['index']}",
                benchmark="mmvm",
                split="test",
                kind="match",
                cluster=f"mmvm/{row['index']}",
                prompt=row["question"].strip() + SUFFIX,
                pictures=tuple(pictures(str(name).removeprefix("./")) for name in names),
                choices=tuple(options),
                answer=answer,
                labels=tuple(options.values()),
                truth={
                    "cues": tuple(CUES[n - 1] for n in numbers or () if n in range(1, len(CUES) + 1)),
                    "published_cues": _published_cues(numbers),
                },
            )
        )
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def mmvm_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`mmvm/acc`, `mmvm/chance_corrected_acc`, and accuracy by cue, as `mmvm/CL/acc`.

    Chance corrected is (acc - chance) / (1 - chance), chance being the mean of one over the number of options: 0 for a
    guess, 1 for all right. Cues that cannot be read count nowhere; by the authors' rules they count as colour and
    position (CL, RP).
    """
    key = "cues" if parser == STRICT else "published_cues"
    counts = np.array([[answers[item.id].right, 1 / len(item.choices), 1] for item in items], dtype=np.float64)
    found = {
        "mmvm/acc": mean(items, lambda item: answers[item.id].right),
        "mmvm/chance_corrected_acc": Measure(Metric(counts.reshape(-1, 3), over_chance), clusters_of(items)),
    }
    for cue in CUES:
        members = [item for item in items for found_cue in item.truth[key] if found_cue == cue]
        if members:
            found[f"mmvm/{cue}/acc"] = mean(members, lambda item: answers[item.id].right)
    return found


def over_chance(totals: Array) -> Array:
    """(right - chance) / (number - chance) of totals of the three."""
    right, chance, number = (totals[..., index] for index in range(3))
    return ratio(np.stack([right - chance, number - chance], axis=-1))


def _published_cues(numbers: Sequence[Any] | None) -> tuple[str, ...]:
    if numbers is None:
        return UNREADABLE
    return tuple(CUES[n - 1] if n in range(1, len(CUES) + 1) else UNKNOWN for n in numbers)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    # Columns that are not read hold whole pictures, longer than the module's limit for a field.
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            missing = sorted(set(COLUMNS) - set(reader.fieldnames or ()))
            if missing:
                raise ValueError(f"{path} lacks the columns {', '.join(missing)}; get it from {ORIGIN}")
            for row in reader:
                yield f"{path}, line {reader.line_num}", {name: value or "" for name, value in row.items() if name}
    finally:
        csv.field_size_limit(limit)


def _list(text: str) -> list[Any] | None:
    """A list written as such; None where it is not."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None
    return list(found) if isinstance(found, (list, tuple)) else None


MMVM = Benchmark(
    name="mmvm",
    title="MMVM (Zhou et al., 2025): the same object in two pictures",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=(FILE,),
    read=mmvm_items,
    score=mmvm_score,
    primary="mmvm/acc",
    readings={"official": early_vlmevalkit_choice, "vlmevalkit": vlmevalkit_choice},
)
