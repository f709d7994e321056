"""SugarCrepe++ (Dumpala et al. 2024, https://arxiv.org/abs/2406.11171): two true captions in other words, one wrong.

4,757 triplets in five subsets. Image to text (`itt_acc`): both true captions must be nearer to the image than the
wrong one. Text to text (`tot_acc`): the true captions must be nearer to one another than either is to the wrong one,
which takes embeddings of texts; a model that writes is asked the first alone. Ties are wrong, as in the authors'
script.

Chance is a third for either: of three scores in random order the wrong caption's is the lowest, or that of both true
captions the highest. The image is the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.captions import beats_all, caption_item, read_as_is, rows_of_scores, tied_rows
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.sugarcrepe import IMAGES, SUBSETS, in_both, side, subset_rows, with_mean
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.matrices import ANCHOR, NUM_SCORES
from mllm_align_eval.metrics import Measures, by_split, mean

NAME = "sugarcrepe_pp"
SUBSETS_PP = SUBSETS[2:]
ORIGIN = "https://github.com/Sri-Harsha/scpp (data)"
COLUMNS = ("filename", "caption", "caption2", "negative_caption")
BY_IMAGE, BY_TEXT = ("caption", "caption2"), ("text", "text2")
TEXT_SPLIT = "{}_text"


def plus_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """Four rows of two scores per triplet, in all of them that of a true caption and then that of the wrong one.

    `<subset>/<number>/caption` and `.../caption2` are scored for the image. Of split `<subset>_text`, `.../text` and
    `.../text2`: the prompt is one true caption, and the other one and the wrong one are scored for it.
    """
    seen, read = [], []
    for subset, number, (image, *true, false) in subset_rows(folder, SUBSETS_PP, COLUMNS, ORIGIN):
        shown, texts = triplet_items(f"{NAME}/{subset}/{number}", subset, image, pictures(image), true, false)
        seen += shown
        read += texts
    pictures.check(item.cluster for item in seen)
    return seen + read


def triplet_items(
    head: str, subset: str, cluster: str, picture: Picture, true: Sequence[str], false: str
) -> tuple[list[Item], list[Item]]:
    """The two rows of a triplet that are scored for its image, and the two that are scored for a text.

    Args:
        head: "<benchmark>/<subset>/<number>", with which ids begin.
        subset: Split of the rows for the image; that of the others ends in `_text`.
        cluster: The unit of resampling.
        picture: The image.
        true: Both true captions.
        false: The wrong one.
    """
    seen, read = [], []
    for own, other, by_image, by_text in zip(true, reversed(true), BY_IMAGE, BY_TEXT, strict=True):
        seen.append(caption_item(f"{head}/{by_image}", subset, by_image, cluster, picture, (own, false), 0))
        read.append(
            Item(
                id=f"{head}/{by_text}",
                benchmark=head.split("/")[0],
                split=TEXT_SPLIT.format(subset),
                kind=by_text,
                cluster=cluster,
                prompt=own,
                pictures=(),
                choices=(other, false),
                answer=other,
                truth={NUM_SCORES: 2, ANCHOR: own},
            )
        )
    return seen, read


def plus_score(
    items: Sequence[Item],
    answers: Mapping[str, Answer],
    parser: str,
    name: str = NAME,
    subsets: Sequence[str] = SUBSETS_PP,
) -> Measures:
    """By subset `itt_acc` and, where texts were compared, `tot_acc`; each true caption by itself; plain means."""
    found: Measures = {}
    scores, splits = rows_of_scores(items, answers), by_split(items)
    for subset in subsets if scores else ():
        head = f"{name}/{subset}"
        for split, kinds, task in ((subset, BY_IMAGE, "itt"), (TEXT_SPLIT.format(subset), BY_TEXT, "tot")):
            members = splits.get(split, [])
            if not members:
                continue
            right = {item.id: beats_all(scores[item.id], 0) for item in members}
            found[f"{head}/{task}_acc"] = in_both(members, right, kinds)
            for kind in kinds:
                asked = [item for item in members if side(item) == kind]
                found[f"{head}/{kind}_acc"] = mean(asked, lambda item, right=right: right[item.id])
    return with_mean(name, "tot_acc", subsets, with_mean(name, "itt_acc", subsets, found))


def plus_chance(items: Sequence[Item], name: str = NAME, subsets: Sequence[str] = SUBSETS_PP) -> dict[str, float]:
    """The metrics where three scores are in random order; of each caption by itself a half."""
    tasks = {"itt_acc": 1 / 3, "tot_acc": 1 / 3} | {f"{kind}_acc": 1 / 2 for kind in (*BY_IMAGE, *BY_TEXT)}
    found = {f"{name}/{subset}/{task}": value for subset in subsets for task, value in tasks.items()}
    return found | {f"{name}/{task}_acc_mean{len(subsets)}": 1 / 3 for task in ("itt", "tot")}


SUGARCREPE_PP = Benchmark(
    name=NAME,
    title="SugarCrepe++ (Dumpala et al., 2024): scores of two true captions and a wrong one",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=tuple(f"{subset}.json" for subset in SUBSETS_PP),
    read=plus_items,
    score=plus_score,
    readings={"official": read_as_is},
    primary=f"{NAME}/itt_acc_mean5_pmi",
    ties=tied_rows,
    chance=plus_chance,
)
