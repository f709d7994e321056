"""Taking a metric's key apart, and what its parts are called: tables that a further benchmark adds a line to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

GENERATED = "_generated"
PICTURES = {"other": "another image", "blank": "a blank image", "no": "no image"}
# Benchmarks of open questions alone: that their answers were generated need not be said.
WRITTEN = ("chair", "docvqa", "infovqa", "mmhal", "objhal", "textvqa", "world_documents")
SCORINGS = {"_per_byte": "per byte", "_pmi": "by what the image adds (PMI)", "_matched": "at equal lengths"}

BENCHMARKS = {
    "amber": "AMBER",
    "aro": "ARO",
    "chair": "CHAIR",
    "coco_retrieval": "COCO retrieval",
    "cvbench": "CV-Bench",
    "docvqa": "DocVQA",
    "flickr30k": "Flickr30k",
    "hallusion": "HallusionBench",
    "infovqa": "InfographicVQA",
    "mmhal": "MMHal-Bench",
    "mmvm": "MMVM",
    "mmvp": "MMVP",
    "mmvp_vlm": "MMVP-VLM",
    "objhal": "Object HalBench images",
    "own": "Your benchmark",
    "pope": "POPE",
    "popev2": "POPEv2",
    "realworldqa": "RealWorldQA",
    "scienceqa": "ScienceQA",
    "sugarcrepe": "SugarCrepe",
    "sugarcrepe_captions": "SugarCrepe, captions",
    "sugarcrepe_pp": "SugarCrepe++",
    "textvqa": "TextVQA",
    "winoground": "Winoground",
    "world": "World",
    "world_correspondence": "Rendered correspondence",
    "world_documents": "Rendered documents",
    "world_negatives": "Rendered hard negatives",
    "world_retrieval": "Rendered retrieval",
    "world_sugarcrepe_pp": "Rendered SugarCrepe++",
    "world_winoground": "Rendered Winoground",
    "world_zero_shot": "Rendered zero-shot classification",
    "zero_shot": "Zero-shot classification",
}


class Measure(NamedTuple):
    """What a measure is called, which way is better (1 up, -1 down, 0 neither), and how its number is written.

    `digits` of a number that is no rate; None for rates, which are written in per cent. `text` marks what only
    generated texts have, so that it need not be said.
    """

    label: str
    better: int = 1
    digits: int | None = None
    text: bool = False


MEASURES = {
    "acc": Measure("accuracy"),
    "pair_acc": Measure("pairs, both right"),
    "pair_item_acc": Measure("questions of pairs, one by one"),
    "both_acc": Measure("right in both orders"),
    "itt_acc": Measure("both captions right"),
    "tot_acc": Measure("true captions nearer to one another"),
    "top1_acc": Measure("accuracy at 1"),
    "top1_acc_mean3": Measure("accuracy at 1, mean of three tasks"),
    "top5_acc": Measure("accuracy at 5"),
    "macro_acc": Measure("accuracy, mean over groups"),
    "chance_corrected_acc": Measure("accuracy above chance"),
    "acc_mean3": Measure("mean of three accuracies"),
    "acc_mean7": Measure("mean accuracy of seven subsets"),
    "acc_mean8": Measure("mean accuracy of eight subsets"),
    "itt_acc_mean8": Measure("both captions right, mean of eight subsets"),
    "tot_acc_mean5": Measure("true captions nearer to one another, mean of five subsets"),
    "itt_acc_mean5": Measure("both captions right, mean of five subsets"),
    "official": Measure("official score"),
    "2d": Measure("2D, mean over sources"),
    "3d": Measure("3D"),
    "precision": Measure("precision"),
    "recall": Measure("recall"),
    "f1": Measure("F1"),
    "f1_mean3": Measure("mean F1 of three splits"),
    "yes_rate": Measure("share of yes", 0),
    "yes_diff": Measure("yes beyond the truth", 0),
    "fp_ratio": Measure("wrong yes among errors", 0),
    "dprime": Measure("sensitivity d\N{PRIME}", 1, 2),
    "criterion": Measure("criterion c", 0, 2),
    "auc": Measure("area under ROC", 1, 2),
    "ece": Measure("calibration error", -1),
    "brier": Measure("Brier score", -1, 3),
    "visual_gap": Measure("visual gap"),
    "follows_prior": Measure("answers that follow the prior", -1),
    "hallucination_index": Measure("hallucination index", -1),
    "omission_index": Measure("omission index", -1),
    "chair_i": Measure("wrong mentions (CHAIR-i)", -1, text=True),
    "chair_s": Measure("descriptions with a wrong mention (CHAIR-s)", -1, text=True),
    "chair_exact": Measure("wrong mentions, exact words", -1, text=True),
    "cover_exact": Measure("objects covered, exact words", text=True),
    "hal_exact": Measure("descriptions with a wrong mention, exact words", -1, text=True),
    "cog_exact": Measure("expected hallucinations, exact words", -1, text=True),
    "amber_score_exact": Measure("AMBER score, exact words", text=True),
    "response_hall": Measure("responses with a wrong object", -1, text=True),
    "mention_hall": Measure("wrong objects among those mentioned", -1, text=True),
    "words": Measure("words per answer", 0, 1, text=True),
    "mentions": Measure("objects mentioned per answer", 0, 2, text=True),
    "rating": Measure("rating by the judge", 1, 2, text=True),
    "hallucination_rate": Measure("answers with a hallucination, by the judge", -1, text=True),
    "length_correlation": Measure("correlation of rating and length", 0, 2, text=True),
    "anls": Measure("ANLS", text=True),
    "exact": Measure("exact answers", text=True),
    "aAcc": Measure("questions right (aAcc)"),
    "fAcc": Measure("figures all right (fAcc)"),
    "qAcc": Measure("questions right on all their figures (qAcc)"),
    "mean3": Measure("mean of aAcc, fAcc and qAcc"),
    "text": Measure("text score"),
    "image": Measure("image score"),
    "group": Measure("group score"),
    "r1": Measure("recall at 1"),
    "r5": Measure("recall at 5"),
    "r10": Measure("recall at 10"),
    "r_mean": Measure("mean recall at 1, 5 and 10"),
    "invalid": Measure("unreadable answers", -1),
    "abstained": Measure("answers that cannot tell", 0),
    "tied": Measure("ties, counted as wrong", -1),
}
_PICTURE = re.compile(rf"_({'|'.join(PICTURES)})_image$")
_PICTURE_ACC = re.compile(rf"(?:^|_)({'|'.join(PICTURES)})_image_acc$")


@dataclass(frozen=True)
class Key:
    """The parts of a metric's key `<benchmark>/[<split>/]...[<kind>_]<measure>[_<scoring>][_<picture>][_generated]`.

    Attributes:
        benchmark: The first part.
        split: The parts between, "" for none.
        kind: The kind of question that the measure is of, "" for all.
        measure: One of `MEASURES`, or "" where the key ends in none.
        picture: "other", "blank", "no", or "" for the question's own.
        scoring: One of `SCORINGS`, or "".
        generated: Whether answers were generated.
    """

    benchmark: str
    split: str
    kind: str
    measure: str
    picture: str
    scoring: str
    generated: bool


@cache
def parse_key(metric: str) -> Key:
    """The parts of a key."""
    plain = metric.removesuffix(GENERATED)
    benchmark, *between = plain.split("/")
    last = between.pop() if between else ""
    picture = ""
    if match := _PICTURE_ACC.search(last):
        # Of the general measures: <picture>_image_acc.
        picture, last = match[1], (last[: match.start()] + "_acc").removeprefix("_")
    elif match := _PICTURE.search(last):
        # Of a benchmark's own: <measure>_<picture>_image.
        picture, last = match[1], last[: match.start()]
    scoring = next((ending for ending in SCORINGS if last.endswith(ending)), "")
    last = last.removesuffix(scoring)
    kind, measure = _kind_and_measure(last)
    return Key(benchmark, "/".join(between), kind, measure, picture, scoring, plain != metric)


def _kind_and_measure(last: str) -> tuple[str, str]:
    if last in MEASURES:
        return "", last
    found = max((name for name in MEASURES if last.endswith(f"_{name}")), key=len, default="")
    return last.removesuffix(f"_{found}") if found else last, found


def better(metric: str) -> int:
    """1 where more of a metric is better, -1 where less is, 0 where neither, as with another image than the right."""
    key = parse_key(metric)
    return MEASURES[key.measure].better if key.measure and not key.picture else 0


def benchmark_label(name: str) -> str:
    """What a benchmark is called for people; its own name where nothing better is known."""
    return BENCHMARKS.get(name, name)


def generic_label(metric: str) -> str:
    """A metric's name by its parts, as "POPE adversarial: accuracy, no image"; "" where the measure is unknown."""
    key = parse_key(metric)
    if not key.measure:
        return ""
    measure = MEASURES[key.measure]
    split = key.split.replace("/", ", ").replace("_", " ")
    kind = f" ({key.kind.replace('_', ' ')})" if key.kind else ""
    ways = [PICTURES.get(key.picture, ""), SCORINGS.get(key.scoring, "")]
    ways += ["generated"] if key.generated and not measure.text and key.benchmark not in WRITTEN else []
    head = f"{benchmark_label(key.benchmark)} {split}".strip()
    return f"{head}: {measure.label}{kind}" + "".join(f", {way}" for way in ways if way)
