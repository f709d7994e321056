"""CHAIR (Rohrbach et al. 2018, https://arxiv.org/abs/1809.02156): objects in a description that are not in the image.

An image shows the classes of its COCO instances and whatever its reference captions mention. `chair_i` is the share of
mentions (repeats count) of objects that are not there, `chair_s` that of descriptions with such a mention, `recall`
the share of the objects there that are mentioned (pooled over images, as lmms-eval has it). Long descriptions
hallucinate more: LLaVA-1.5-7B is reported from 20 to 50 % by `chair_s`, at 50 and at 95 words, so `words` and
`mentions` stand beside, and `objects.matched_lengths` cuts two models' texts to equal length. How mentions are found,
and in which words this differs from the published script and its forks: `mllm_align_eval.benchmarks.objects`. Numbers
depend on the images drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.coco import IMAGES, CocoImage, coco_images
from mllm_align_eval.benchmarks.coco import ORIGIN as COCO
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.objects import Mention, Vocabulary, read_vocabulary
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measures, mean, share

SYNONYMS = "https://github.com/LisaAnne/Hallucination (data/synonyms.txt)"
ORIGIN = f"{SYNONYMS} and {COCO}"
PROMPT = "Please describe this image in detail."
IDS = "image_ids.txt"


def chair_items(folder: Path, pictures: PictureFolder, num_images: int = 500, seed: int = 0) -> list[Item]:
    """One request for a description per image.

    Args:
        folder: Holds synonyms.txt, COCO's annotation files of val2014 (and of train2014 where images of it are asked
            about), and perhaps image_ids.txt, an id of COCO on each line; without it images of val2014 are drawn.
        pictures: COCO's, by its file names.
        num_images: How many to draw.
        seed: Of the draw.
    """
    vocabulary = read_vocabulary(folder / "synonyms.txt", SYNONYMS)
    images = coco_images([folder], read_ids(folder / IDS), num_images, seed)
    items = [caption_item("chair", image.id, image, PROMPT, pictures, vocabulary) for image in images]
    pictures.check(picture.name for item in items for picture in item.pictures)
    return items


def caption_item(
    benchmark: str, name: int, image: CocoImage, prompt: str, pictures: PictureFolder, vocabulary: Vocabulary
) -> Item:
    """The request for a description of an image, with the objects that are there as its truth."""
    return Item(
        id=f"{benchmark}/{name}",
        benchmark=benchmark,
        split="captions",
        kind="description",
        cluster=str(image.id),
        prompt=prompt,
        pictures=(pictures(image.file_name),),
        truth={"objects": objects_in(image, vocabulary), "vocabulary": vocabulary},
    )


def read_ids(path: Path) -> list[int] | None:
    """The ids in a file of one a line; None without the file."""
    if not path.is_file():
        return None
    ids: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip() and not line.strip().isdigit():
            raise ValueError(f"{path}, line {number}: {line!r} is no id of an image")
        ids += [int(line)] if line.strip() else []
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path} names an image twice")
    return ids


def objects_in(image: CocoImage, vocabulary: Vocabulary) -> frozenset[str]:
    """The classes of an image's instances and of what its captions mention."""
    unknown = next((name for name in image.categories if name not in vocabulary.synonyms), None)
    if unknown is not None:
        raise ValueError(f"COCO's class {unknown!r} is not among the synonyms; get them from {SYNONYMS}")
    shown = {vocabulary.synonyms[name] for name in image.categories}
    return frozenset(shown.union(mention.category for text in image.captions for mention in vocabulary.mentions(text)))


def chair_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`chair/chair_i` (undefined where nothing is mentioned), `chair_s`, `recall`, `words` and `mentions`."""
    found = {item.id: item.truth["vocabulary"].mentions(answers[item.id].text) for item in items}
    return object_measures("chair", items, answers, found)


def object_measures(
    prefix: str, items: Sequence[Item], answers: Mapping[str, Answer], found: Mapping[str, Sequence[Mention]]
) -> Measures:
    """CHAIR's metrics of the mentions found in each answer, under `<prefix>/`."""

    def wrong(item: Item) -> int:
        return sum(mention.category not in item.truth["objects"] for mention in found[item.id])

    def right(item: Item) -> int:
        return len(item.truth["objects"] & _categories(found[item.id]))

    measures = {
        "chair_i": share(items, wrong, lambda item: len(found[item.id])),
        "chair_s": mean(items, lambda item: float(wrong(item) > 0)),
        "recall": share(items, right, lambda item: len(item.truth["objects"])),
        "words": mean(items, lambda item: len(answers[item.id].text.split())),
        "mentions": mean(items, lambda item: len(found[item.id])),
    }
    return {f"{prefix}/{name}": measure for name, measure in measures.items()}


def _categories(mentions: Iterable[Mention]) -> set[str]:
    return {mention.category for mention in mentions}


CHAIR = Benchmark(
    name="chair",
    title="CHAIR (Rohrbach et al., 2018): objects that are described and not there",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=("synonyms.txt", "captions_*2014.json", "instances_*2014.json", IDS),
    read=chair_items,
    score=chair_score,
    primary="chair/chair_i",
    max_new_tokens=512,
    describes=True,
)
