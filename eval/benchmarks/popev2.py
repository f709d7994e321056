"""POPEv2 (Li et al. 2026, https://arxiv.org/abs/2508.04567): POPE's question with the object and without it.

500 pictures of COCO train2017, most of them seen in training, each with a copy in which the object is masked. The
authors published no script. Papers that report it give accuracy over both, precision, recall, F1 and share of yes with
yes as positive, as for POPE; that a pair counts only if both answers are right is ours, and is what a model that
remembers the picture fails. The pair is the cluster. There is no harness with a rule for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.files import PictureFolder, read_json
from mllm_align_eval.benchmarks.pope import SUFFIX
from mllm_align_eval.benchmarks.tables import Row, hub_rows
from mllm_align_eval.items import YES_NO, Answer, Item
from mllm_align_eval.metrics import Measure, Measures, by_kind, f1, mean
from mllm_align_eval.statistics import mean_metric

ORIGIN = "https://huggingface.co/datasets/Monosail/POPEv2"
IMAGES = (
    f"the folders images/ of {ORIGIN} and coco/train2017/ of COCO, http://images.cocodataset.org/zips/train2017.zip"
)
FILE = "popev2_annotations.json"
COLUMNS = ("image_id", "image_name", "target_object", "query", "label")
SIDES = {"yes": "original", "no": "edited"}


def popev2_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of popev2_annotations.json, published as annotations.json; it lies in POPE's folder.

    Raises:
        ValueError: Naming the entry that is no question, or the picture that is not asked about twice.
    """
    path = folder / FILE
    rows = read_json(path, f"{ORIGIN} (its annotations.json)")
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of questions; get it from {ORIGIN}")
    items = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not set(COLUMNS) <= row.keys() or row["label"].lower() not in YES_NO:
            raise ValueError(f"{path}, entry {number}: not a question with {', '.join(COLUMNS)} and label Yes or No")
        shown = pictures(row["image_name"].lstrip("/"))
        items.append(_item(str(row["image_id"]), row["query"], row["label"].lower(), shown))
    _check_pairs(items, path)
    pictures.check(item.pictures[0].name for item in items)
    return items


def popev2_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The questions of the published dataset, of which a row is a pair."""
    sides = {"normal": hub_rows(rows, "normal_image"), "counterfactual": hub_rows(rows, "counterfactual_image")}
    nowhere = PictureFolder(None, IMAGES)

    def asked(row: Row, side: str) -> Item:
        values = row.values
        label = str(values[f"{side}_label"]).lower()
        return _item(str(values["image_id"]), values["question"], label, row.picture(nowhere))

    return [
        asked(row, side) for pair in zip(*sides.values(), strict=True) for row, side in zip(pair, sides, strict=True)
    ]


def _item(image: str, question: str, label: str, shown: Any) -> Item:
    return Item(
        id=f"popev2/{image}/{SIDES[label]}",
        benchmark="popev2",
        split="pairs",
        kind=SIDES[label],
        cluster=image,
        prompt=question + SUFFIX,
        pictures=(shown,),
        choices=YES_NO,
        answer=label,
        pair=f"popev2/{image}",
    )


def _check_pairs(items: Iterable[Item], path: Path) -> None:
    sides: dict[str, list[str]] = {}
    for item in items:
        sides.setdefault(item.cluster, []).append(item.kind)
    odd = next((image for image, kinds in sides.items() if sorted(kinds) != sorted(SIDES.values())), None)
    if odd is not None:
        raise ValueError(f"{path}: image {odd} is not asked about once with the label Yes and once with No")


def popev2_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`popev2/acc`, precision, recall, F1 and share of yes over all, accuracy by side, and `popev2/pair_acc`."""
    parts = {
        "acc": mean(items, lambda item: answers[item.id].right),
        "yes_rate": mean(items, lambda item: answers[item.id].choice == "yes"),
    }
    parts |= f1(items, lambda item: answers[item.id].choice == "yes", lambda item: item.answer == "yes")
    pairs = _pair_accuracy(items, answers)
    parts |= {"pair_acc": pairs} if pairs.clusters else {}
    for side, members in by_kind(items).items():
        parts[f"{side}/acc"] = mean(members, lambda item: answers[item.id].right)
    return {f"popev2/{name}": measure for name, measure in parts.items()}


def _pair_accuracy(items: Sequence[Item], answers: Mapping[str, Answer]) -> Measure:
    """Both answers right; a picture of which one side was not asked counts for nothing."""
    pairs: dict[str, list[bool]] = {}
    for item in items:
        pairs.setdefault(item.cluster, []).append(answers[item.id].right)
    whole = {image: float(all(right)) for image, right in pairs.items() if len(right) == len(SIDES)}
    return Measure(mean_metric(list(whole.values())), tuple(whole))


POPEV2 = Benchmark(
    name="popev2",
    title="POPEv2 (Li et al., 2026): whether an object is there, and after it was removed",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=(FILE,),
    read=popev2_items,
    score=popev2_score,
    primary="popev2/pair_acc",
    folder="pope",
    hub=(Hub("Monosail/POPEv2", popev2_hub_items),),
)
