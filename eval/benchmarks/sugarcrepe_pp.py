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
from mllm_align_eval.items import Answer, Item
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
        head = f"{NAME}/{subset}/{number}"
        for place, own in enumerate(true):
            kinds = BY_IMAGE[place], BY_TEXT[place]
            shown = pictures(image)
            seen.append(caption_item(f"{head}/{kinds[0]}", subset, kinds[0], image, shown, (own, false), 0))
            choices = true[1 - place], false
            read.append(
                Item(
                    id=f"{head}/{kinds[1]}",
                    benchmark=NAME,
                    split=TEXT_SPLIT.format(subset),
                    kind=kinds[1],
                    cluster=image,
                    prompt=own,
                    pictures=(),
                    choices=choices,
                    answer=choices[0],
                    truth={NUM_SCORES: 2, ANCHOR: own},
                )
            )
    pictures.check(item.cluster for item in seen)
    return seen + read


def plus_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """By subset `itt_acc` and, where texts were compared, `tot_acc`; each true caption by itself; plain means."""
    found: Measures = {}
    scores, splits = rows_of_scores(items, answers), by_split(items)
    for subset in SUBSETS_PP if scores else ():
        head = f"{NAME}/{subset}"
        for split, kinds, task in ((subset, BY_IMAGE, "itt"), (TEXT_SPLIT.format(subset), BY_TEXT, "tot")):
            members = splits.get(split, [])
            if not members:
                continue
            right = {item.id: beats_all(scores[item.id], 0) for item in members}
            found[f"{head}/{task}_acc"] = in_both(members, right, kinds)
            for kind in kinds:
                asked = [item for item in members if side(item) == kind]
                found[f"{head}/{kind}_acc"] = mean(asked, lambda item, right=right: right[item.id])
    return with_mean(NAME, "tot_acc", SUBSETS_PP, with_mean(NAME, "itt_acc", SUBSETS_PP, found))


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
)
