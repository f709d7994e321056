"""HallusionBench (Guan et al. 2024, https://arxiv.org/abs/2310.14566): pairs of yes/no questions on edited pictures.

1,129 questions in 167 sets; a set is the cluster. 178 are asked without a picture, and there an admission of not
knowing counts as right. The authors have GPT-4 compare free text with a reference; with questions that ask for yes or
no a rule suffices, and none of theirs exists, so there is no official reading here, only their counting. Always no has
57.1 / 12.1 / 19.3 % aAcc / fAcc / qAcc; what share of errors comes from language and what from vision they
leave to the same judge, and it is left out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.files import PictureFolder, read_json
from mllm_align_eval.benchmarks.tables import Row, hub_rows
from mllm_align_eval.items import YES_NO, Answer, Item
from mllm_align_eval.metrics import Measure, Measures, by_split, mean, mean_of, share
from mllm_align_eval.readings import substring_yes_no, word_yes_no
from mllm_align_eval.statistics import mean_metric

ORIGIN = "https://github.com/tianyi-lab/HallusionBench"
IMAGES = f"hallusion_bench.zip, see {ORIGIN}"
FILE = "HallusionBench.json"
COLUMNS = (
    *("category", "subcategory", "visual_input", "set_id", "figure_id"),
    *("question_id", "question", "gt_answer", "filename"),
)
# As the wrappers of VLMEvalKit ask yes/no questions; the authors ask the question alone, for their judge.
SUFFIX = " Please answer yes or no."
ANSWERS = {"0": "no", "1": "yes"}

Right = Callable[[Item], bool]


def hallusion_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of HallusionBench.json; pictures by their path in the archive, as VS/table/7_1.png."""
    path = folder / FILE
    rows = read_json(path, ORIGIN)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of questions; get it from {ORIGIN}")
    items = items_of((_row(path, number, values) for number, values in enumerate(rows)), pictures)
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def hallusion_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The 951 questions with a picture, which the split "image" of the Hub's copy holds."""
    return items_of(hub_rows(rows), PictureFolder(None, IMAGES))


def items_of(rows: Iterable[Row], pictures: PictureFolder) -> list[Item]:
    """The questions of a table.

    Raises:
        ValueError: Naming the row that is no question.
    """
    items = []
    for row in rows:
        values = row.values
        if not set(COLUMNS) <= values.keys() or str(values["gt_answer"]) not in ANSWERS:
            raise ValueError(f"{row.where}: not a question with {', '.join(COLUMNS)} and gt_answer 0 or 1")
        group = f"{values['category']}_{values['subcategory']}_{values['set_id']}"
        figure, question = f"{group}_{values['figure_id']}", f"{group}_{values['question_id']}"
        shown = str(values["visual_input"]) != "0"
        items.append(
            Item(
                id=f"hallusion/{figure}_{values['question_id']}",
                benchmark="hallusion",
                split="image" if shown else "no_image",
                kind=str(values["subcategory"]),
                cluster=group,
                prompt=values["question"] + SUFFIX,
                pictures=(row.picture(pictures),) if shown else (),
                choices=YES_NO,
                answer=ANSWERS[str(values["gt_answer"])],
                truth={
                    "category": values["category"],
                    "figure": figure,
                    "question": question,
                    "edited": str(values["visual_input"]) == "2",
                    "may_abstain": values["category"] == "VS" and str(values["figure_id"]) == "0",
                },
            )
        )
    return items


def hallusion_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """The leaderboard's columns, all as shares.

    `hallusion/aAcc` by question; `hallusion/fAcc`: all questions about one figure right; `hallusion/qAcc`: one
    question right on every figure it is asked about. `hallusion/easy_acc` and `hallusion/hard_acc` are qAcc on
    original figures or none, and on edited ones. `hallusion/image/...` is of the questions with a picture alone, which
    lmms-eval and VLMEvalKit ask; its `mean3` is the average of the three that VLMEvalKit leads with.
    `hallusion/yes_diff` is the share of yes less that of the truth, and `hallusion/fp_ratio` the share of errors that
    say yes, both as the authors count: a wrong answer is the other answer, whatever it says. By VD and VS as well.
    """

    def right(item: Item) -> bool:
        answer = answers[item.id]
        return answer.right or (item.truth["may_abstain"] and answer.state == "abstained")

    def taken_for_yes(item: Item) -> bool:
        return right(item) == (item.answer == "yes")

    found = {f"hallusion/{name}": measure for name, measure in _accuracies(items, right).items()}
    for name, edited in (("easy_acc", False), ("hard_acc", True)):
        members = [item for item in items if item.truth["edited"] == edited]
        if members:
            found[f"hallusion/{name}"] = _all_right(members, right, "question")
    for category in ("VD", "VS"):
        members = [item for item in items if item.truth["category"] == category]
        parts = _accuracies(members, right) if members else {}
        found |= {f"hallusion/{category}/{name}": measure for name, measure in parts.items()}
    shown = _accuracies(by_split(items).get("image", []), right)
    shown |= {"mean3": mean_of(list(shown.values()))} if shown else {}
    found |= {f"hallusion/image/{name}": measure for name, measure in shown.items()}
    found["hallusion/yes_rate"] = mean(items, lambda item: answers[item.id].choice == "yes")
    found["hallusion/yes_diff"] = mean(items, lambda item: taken_for_yes(item) - (item.answer == "yes"))
    found["hallusion/fp_ratio"] = share(
        items, lambda item: not right(item) and item.answer == "no", lambda item: not right(item)
    )
    return found


def _accuracies(items: Sequence[Item], right: Right) -> Measures:
    """By question, figure and question over figures; those of no case are left out."""
    figures = [item for item in items if not item.truth["may_abstain"]]
    found: Measures = {"aAcc": mean(items, right)} if items else {}
    found |= {"fAcc": _all_right(figures, right, "figure")} if figures else {}
    found |= {"qAcc": _all_right(items, right, "question")} if items else {}
    return found


def _all_right(items: Sequence[Item], right: Right, group: str) -> Measure:
    """The share of groups of which every question is right."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.truth[group], []).append(item)
    metric = mean_metric([float(all(map(right, members))) for members in groups.values()])
    return Measure(metric, tuple(members[0].cluster for members in groups.values()))


def _row(path: Path, number: int, values: Any) -> Row:
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}, entry {number}: not an object with {', '.join(COLUMNS)}")
    return Row(f"{path}, entry {number}", values, str(values.get("filename") or "").removeprefix("./"))


HALLUSION = Benchmark(
    name="hallusion",
    title="HallusionBench (Guan et al., 2024): language priors and visual illusions",
    origin=f"{ORIGIN} ({FILE})",
    image_origin=IMAGES,
    files=(FILE,),
    read=hallusion_items,
    score=hallusion_score,
    primary="hallusion/aAcc",
    readings={"lmms-eval": substring_yes_no, "vlmevalkit": word_yes_no},
    hub=(Hub("lmms-lab/HallusionBench", hallusion_hub_items, split="image"),),
)
