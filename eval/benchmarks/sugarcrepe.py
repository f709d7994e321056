"""SugarCrepe (Hsieh et al. 2023, https://arxiv.org/abs/2306.14610): the true caption, or one with a small change?

Two benchmarks. `sugarcrepe` asks as the authors ask GPT-4V: both captions in one prompt, in both orders, since order
alone moves subsets by 5 to 9 points. `sugarcrepe_captions` scores each caption by itself, the contrastive protocol:
chance is a half, and a tie is wrong.

Taking the shorter caption for the true one, without looking, is right for .996 of add_att, .990 of add_obj, .534 of
replace_att, .505 of replace_obj, .642 of replace_rel, .492 of swap_att and .549 of swap_obj (ties half). A sum of
log-probabilities favours short captions, so it is near that on add_att and add_obj whatever the image shows. A model
that writes is therefore judged by `_pmi`, what the image adds to a caption's log-probability; a dual encoder's
similarities are taken as they are.

The image is the cluster: 7,511 captions are about fewer images. Neither lmms-eval nor VLMEvalKit has the benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mllm_align_eval.answers import Parsed
from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.captions import (
    beats_all,
    caption_item,
    read_as_is,
    rows_of_scores,
    texts_of,
    tied_rows,
)
from mllm_align_eval.benchmarks.files import PictureFolder, read_json
from mllm_align_eval.benchmarks.tables import hub_rows, image_names
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measure, Measures, by_split, mean, mean_of
from mllm_align_eval.readings import UNREAD
from mllm_align_eval.statistics import mean_metric

SUBSETS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
ORIGIN = "https://github.com/RAIVNLab/sugar-crepe (data)"
HUB = "HuggingFaceM4/SugarCrepe_{}"
IMAGES = "COCO val2017, http://images.cocodataset.org/zips/val2017.zip"
QUESTION = "Which caption best describes the image?\n(1) {}\n (2) {}\nOutput (1) or (2)."
NUMBERS = ("(1)", "(2)")
ORDERS = ("pos_first", "neg_first")
COLUMNS = ("filename", "caption", "negative_caption")


def sugarcrepe_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """Two questions per caption pair, `sugarcrepe/<subset>/<number>/pos_first` and `.../neg_first`."""
    rows = subset_rows(folder, SUBSETS, COLUMNS, ORIGIN)
    items = [
        item
        for subset, number, (image, true, false) in rows
        for item in _in_both_orders(subset, number, pictures(image), image, true, false)
    ]
    pictures.check(item.cluster for item in items)
    return items


def _in_both_orders(subset: str, number: str, picture: Picture, cluster: str, true: str, false: str) -> Iterator[Item]:
    for order, captions in zip(ORDERS, ((true, false), (false, true)), strict=True):
        yield Item(
            id=f"sugarcrepe/{subset}/{number}/{order}",
            benchmark="sugarcrepe",
            split=subset,
            kind=subset,  # the order would tell the answer
            cluster=cluster,
            prompt=QUESTION.format(*captions),
            pictures=(picture,),
            choices=NUMBERS,
            answer=NUMBERS[ORDERS.index(order)],
            labels=captions,
        )


def caption_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """One row of two scores per caption pair, that of the true caption first."""
    items = [
        caption_item(f"sugarcrepe_captions/{subset}/{number}", subset, subset, image, pictures(image), captions, 0)
        for subset, number, (image, *captions) in subset_rows(folder, SUBSETS, COLUMNS, ORIGIN)
    ]
    pictures.check(item.cluster for item in items)
    return items


def hub_items(subset: str, rows: Any) -> list[Item]:
    """The questions of `sugarcrepe_items` from the rows of a subset on the Hub."""
    return [
        item
        for number, picture, cluster, (true, false) in _hub_rows(rows)
        for item in _in_both_orders(subset, number, picture, cluster, true, false)
    ]


def caption_hub_items(subset: str, rows: Any) -> list[Item]:
    """The rows of `caption_items` from those of a subset on the Hub."""
    return [
        caption_item(f"sugarcrepe_captions/{subset}/{number}", subset, subset, cluster, picture, captions, 0)
        for number, picture, cluster, captions in _hub_rows(rows)
    ]


def _hub_rows(rows: Any) -> Iterator[tuple[str, Picture, str, list[str]]]:
    """Number, picture, name of its content, and the true and the wrong caption of each row."""
    names, nowhere = image_names(rows), PictureFolder(None, IMAGES)
    for number, (row, name) in enumerate(zip(hub_rows(rows), names, strict=True)):
        captions = row.values.get("tested_labels")
        if not isinstance(captions, Sequence) or len(captions) != 2:
            raise ValueError(f"{row.where}: tested_labels is not a true and a wrong caption")
        # By its content, too, because rows of all subsets are numbered from 0.
        yield str(number), Picture(name, row.picture(nowhere).load), name, list(captions)


def subset_rows(
    folder: Path, subsets: Sequence[str], columns: Sequence[str], origin: str
) -> Iterator[tuple[str, str, list[str]]]:
    """Subset, number and texts of each row of those files `<subset>.json` that there are; one must be there."""
    there = [subset for subset in subsets if (folder / f"{subset}.json").is_file()] or subsets[:1]
    for subset in there:
        path = folder / f"{subset}.json"
        content = read_json(path, origin)
        if not isinstance(content, Mapping | list) or not content:
            raise ValueError(f"{path} is neither an object of numbered rows nor a list of rows")
        rows = content.items() if isinstance(content, Mapping) else enumerate(content)
        for number, row in rows:
            yield subset, str(number), texts_of(row, columns, f"{path}, row {number}")


def one_number(text: str, item: Item) -> Parsed:
    """The authors' reading: one of "(1)" and "(2)", anywhere; it fits all 15,024 GPT-4V answers they published."""
    said = [number for number in NUMBERS if number in text]
    return Parsed(said[0], "answered") if len(said) == 1 else UNREAD


def sugarcrepe_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """By subset the accuracy in each order, over both orders (`acc`), and of pairs right in both (`both_acc`).

    `sugarcrepe/acc_mean7`, the plain mean over subsets, is ours: the authors report subsets alone.
    """
    found: Measures = {}
    for subset, members in by_split(items).items():
        right = {item.id: answers[item.id].right for item in members}
        found[f"sugarcrepe/{subset}/acc"] = mean(members, lambda item, right=right: right[item.id])
        for order in ORDERS:
            asked = [item for item in members if side(item) == order]
            found[f"sugarcrepe/{subset}/{order}_acc"] = mean(asked, lambda item, right=right: right[item.id])
        found[f"sugarcrepe/{subset}/both_acc"] = in_both(members, right, ORDERS)
    return with_mean("sugarcrepe", "acc", SUBSETS, found)


def captions_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """By subset how often the true caption has the higher score; a tie is wrong, as in the authors' script.

    `sugarcrepe_captions/<way>/acc` is the plain mean over the subsets of "add", "replace" or "swap".
    """
    scores = rows_of_scores(items, answers)
    found = {
        f"sugarcrepe_captions/{subset}/acc": mean(members, lambda item: beats_all(scores[item.id], 0))
        for subset, members in (by_split(items).items() if scores else ())
    }
    return with_mean("sugarcrepe_captions", "acc", SUBSETS, with_ways("sugarcrepe_captions", "acc", SUBSETS, found))


def side(item: Item) -> str:
    """Which of a row's two questions an item is."""
    return item.id.rsplit("/", 1)[1]


def in_both(items: Sequence[Item], right: Mapping[str, bool], kinds: tuple[str, str]) -> Measure:
    """How often both questions about a row, which differ in kind, are right; rows of which one was not asked aside."""
    firsts = [item for item in items if side(item) == kinds[0]]
    pairs = [(item, item.id.removesuffix(kinds[0]) + kinds[1]) for item in firsts]
    whole = [(item, other) for item, other in pairs if other in right]
    both = [float(right[item.id] and right[other]) for item, other in whole]
    return Measure(mean_metric(both), tuple(item.cluster for item, _ in whole))


def with_ways(name: str, metric: str, subsets: Sequence[str], found: Measures) -> Measures:
    """The metrics and, of each way to make a caption wrong whose subsets are all there, their plain mean."""
    means: Measures = {}
    for way in dict.fromkeys(subset.split("_")[0] for subset in subsets):
        keys = [f"{name}/{subset}/{metric}" for subset in subsets if subset.startswith(f"{way}_")]
        if all(key in found for key in keys):
            means[f"{name}/{way}/{metric}"] = mean_of([found[key] for key in keys])
    return found | means


def with_mean(name: str, metric: str, subsets: Sequence[str], found: Measures) -> Measures:
    """The metrics and, where all subsets are there, their plain mean."""
    parts = [found[key] for subset in subsets if (key := f"{name}/{subset}/{metric}") in found]
    return found | {f"{name}/{metric}_mean{len(subsets)}": mean_of(parts)} if len(parts) == len(subsets) else found


SUGARCREPE = Benchmark(
    name="sugarcrepe",
    title="SugarCrepe (Hsieh et al., 2023): which of two captions, asked in both orders",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=tuple(f"{subset}.json" for subset in SUBSETS),
    read=sugarcrepe_items,
    score=sugarcrepe_score,
    readings={"official": one_number},
    primary="sugarcrepe/acc_mean7",
    hub=tuple(Hub(HUB.format(subset), partial(hub_items, subset)) for subset in SUBSETS),
)
SUGARCREPE_CAPTIONS = Benchmark(
    name="sugarcrepe_captions",
    title="SugarCrepe (Hsieh et al., 2023): scores of two captions",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=tuple(f"{subset}.json" for subset in SUBSETS),
    read=caption_items,
    score=captions_score,
    readings={"official": read_as_is},
    primary="sugarcrepe_captions/acc_mean7_pmi",
    hub=tuple(Hub(HUB.format(subset), partial(caption_hub_items, subset)) for subset in SUBSETS),
    folder="sugarcrepe",
    ties=tied_rows,
)
