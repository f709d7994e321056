"""Retrieval on Flickr30k (1,000 images) and COCO (5,000 images of Karpathy's test split), five captions an image.

The questions are queries: each image looks for one of its captions among all of them, each caption for its image. An
answer is a row of similarities to all candidates; a whole matrix is read from a .npy or .npz file
(`mllm_align_eval.matrices`), or comes from an encoder (`mllm_align_eval.similarity`). Some images of COCO have six or
seven captions; as CLIP_benchmark (https://github.com/LAION-AI/CLIP_benchmark) does, the first five are taken.

Recall at K is the share of queries of which a right candidate is among the first K. Equal scores: strictly a right
candidate stands behind all wrong ones that are level with it, rank 1 + #{wrong >= right}, so a constant score gets
nothing, and `<benchmark>/<direction>/tied` says for how many queries that matters; "official" breaks ties by index,
the later candidate first, which is what the reversed `argsort` of ALBEF's script comes to where the sort is stable;
numpy's is not on all processors, so the script itself ranks ties differently from machine to machine.

Chance at K is K / images from a caption; from an image 1 - C(captions - 5, K) / C(captions, K), about 5 K / captions.
The image is the cluster. lmms-eval and VLMEvalKit have no retrieval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align_eval.benchmark import OFFICIAL, Benchmark
from mllm_align_eval.benchmarks.captions import read_as_is, rows_of_scores, texts_of
from mllm_align_eval.benchmarks.files import PictureFolder, read_json
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.matrices import IMAGE_TO_TEXT, NUM_SCORES, TEXT_TO_IMAGE
from mllm_align_eval.metrics import Measures, by_split, mean, mean_of

CUTS = (1, 5, 10)
CAPTIONS = 5  # of an image
FILES = {"flickr30k": "flickr30k_test.json", "coco_retrieval": "coco_karpathy_test.json"}
ORIGIN = "https://storage.googleapis.com/sfr-vision-language-research/datasets/{}"
IMAGES = {
    "flickr30k": "Flickr30k (flickr30k-images), by request at https://shannon.cs.illinois.edu/DenotationGraph/",
    "coco_retrieval": "COCO val2014, http://images.cocodataset.org/zips/val2014.zip, in a folder val2014/",
}
# In `Item.truth`: indices of the right candidates.
TARGETS = "targets"


def retrieval_items(name: str, folder: Path, pictures: PictureFolder) -> list[Item]:
    """A query per image, `<name>/image/<index>`, and per caption, `<name>/text/<index>`, in the order of the file.

    The file is a list of {image, caption: [texts]}, as ALBEF and BLIP read it; captions after the fifth are left out.
    """
    path, origin = folder / FILES[name], ORIGIN.format(FILES[name])
    rows = read_json(path, origin)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} is not a list of images with their captions")
    images, captions = [], []
    for number, row in enumerate(rows):
        (image,) = texts_of(row, ("image",), f"{path}, row {number}")
        texts = row.get("caption")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}, row {number}: caption is not a list of texts")
        images.append(image)
        captions.append(texts[:CAPTIONS])
    pictures.check(images)
    return queries(name, images, [pictures(image) for image in images], captions)


def queries(
    name: str, images: Sequence[str], pictures: Sequence[Picture], captions: Sequence[Sequence[str]]
) -> list[Item]:
    """A query per image and per caption about the same pool, in order.

    Args:
        name: Of the benchmark.
        images: What each image is called: its cluster.
        pictures: The images.
        captions: The captions of each.
    """
    starts = np.cumsum([0, *map(len, captions)]).tolist()
    query = partial(Item, benchmark=name, kind="retrieval")
    return [
        query(
            id=f"{name}/image/{index}",
            split=IMAGE_TO_TEXT,
            cluster=image,
            prompt="",
            pictures=(pictures[index],),
            truth={NUM_SCORES: starts[-1], TARGETS: tuple(range(starts[index], starts[index + 1]))},
        )
        for index, image in enumerate(images)
    ] + [
        query(
            id=f"{name}/text/{starts[index] + place}",
            split=TEXT_TO_IMAGE,
            cluster=images[index],
            prompt=text,
            pictures=(),
            truth={NUM_SCORES: len(images), TARGETS: (index,)},
        )
        for index, texts in enumerate(captions)
        for place, text in enumerate(texts)
    ]


def retrieval_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """Recall at 1, 5 and 10 of each direction, and their mean over both (`r_mean`)."""
    scores = rows_of_scores(items, answers)
    if not scores:
        return {}
    hits = official_hits if parser == OFFICIAL else strict_hits
    found: Measures = {}
    for split, members in by_split(items).items():
        hit = {item.id: hits(np.asarray(scores[item.id]), item.truth[TARGETS]) for item in members}
        for place, cut in enumerate(CUTS):
            value: Callable[[Item], float] = lambda item, place=place, hit=hit: hit[item.id][place]  # noqa: E731
            found[f"{members[0].benchmark}/{split}/r{cut}"] = mean(members, value)
    if len(found) == 2 * len(CUTS):
        found[f"{items[0].benchmark}/r_mean"] = mean_of(list(found.values()))
    return found


def strict_hits(scores: np.ndarray[Any, Any], targets: Sequence[int]) -> list[float]:
    """Per cut whether a target is among the first K, behind every wrong candidate of the same score."""
    wrong, best = _wrong_and_best(scores, targets)
    return [float((wrong >= best).sum() < cut) for cut in CUTS]


def tied_queries(items: Sequence[Item], answers: Mapping[str, Answer]) -> Measures:
    """By direction, `<benchmark>/<direction>/tied`: queries whose best right candidate is level with a wrong one."""
    level = {}
    for item in items:
        wrong, best = _wrong_and_best(np.asarray(answers[item.id].scores), item.truth[TARGETS])
        level[item.id] = float((wrong == best).any())
    return {
        f"{members[0].benchmark}/{split}/tied": mean(members, lambda item: level[item.id])
        for split, members in by_split(items).items()
    }


def _wrong_and_best(scores: np.ndarray[Any, Any], targets: Sequence[int]) -> tuple[np.ndarray[Any, Any], float]:
    """The scores of all wrong candidates, and the best of a right one."""
    right = list(targets)
    return np.delete(scores, right), scores[right].max()


def official_hits(scores: np.ndarray[Any, Any], targets: Sequence[int]) -> list[float]:
    """Per cut whether a target is among the first K; of equal scores the later candidate comes first."""
    ranks = [
        int((scores > scores[target]).sum()) + int((scores[target + 1 :] == scores[target]).sum())
        for target in targets
    ]
    return [float(min(ranks) < cut) for cut in CUTS]


def _benchmark(name: str, title: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        origin=ORIGIN.format(FILES[name]),
        image_origin=IMAGES[name],
        files=(FILES[name],),
        read=partial(retrieval_items, name),
        score=retrieval_score,
        readings={"official": read_as_is},
        primary=f"{name}/r_mean",
        ties=tied_queries,
    )


FLICKR30K = _benchmark("flickr30k", "Flickr30k (Young et al., 2014): retrieval of captions and of images")
COCO_RETRIEVAL = _benchmark("coco_retrieval", "COCO (Lin et al., 2014), Karpathy's test split: retrieval both ways")
