"""TextVQA (Singh et al. 2019, https://arxiv.org/abs/1904.08920): questions about text in photos, ten answers each.

Validation split (5,000 questions). VQA accuracy after the normalisation of the authors' script, leaving each answer
out once; "strict", "official" and "lmms-eval" agree but that lmms-eval also writes the question's first letter large
and the rest small. "vlmevalkit" normalises a little differently: "'s" stays with its word, and a period after a digit
stays. Questions are asked without the OCR tokens that LLaVA's script adds. The photo is the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm_align_eval.benchmark import Benchmark, Hub
from mllm_align_eval.benchmarks.docvqa import ANSWERS, READINGS, SUFFIX, question_rows
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.benchmarks.tables import Row, hub_rows
from mllm_align_eval.items import Answer, Item, Picture
from mllm_align_eval.metrics import Measures, mean
from mllm_align_eval.text_metrics import NUM_VQA_ANSWERS, vqa_accuracy, vqa_normalise, vqa_normalise_vlmevalkit

ORIGIN = "https://textvqa.org/dataset (TextVQA_0.5.1_val.json)"
IMAGES = "https://textvqa.org/dataset (train_val_images.zip, the folder train_images/)"
FILES = ("TextVQA_0.5.1_val.json",)


def textvqa_items(folder: Path, pictures: PictureFolder) -> list[Item]:
    """The questions of `TextVQA_0.5.1_val.json`; images are `<image_id>.jpg`."""
    rows = question_rows(folder, FILES, ORIGIN, "image_id")
    items = _items((row, pictures(f"{row.name}.jpg")) for row in rows)
    pictures.check(item.cluster for item in items)
    return items


def textvqa_hub_items(rows: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The questions of the Hub's copy."""
    nowhere = PictureFolder(None, IMAGES)
    return _items((row, Picture(f"{row.values['image_id']}.jpg", row.picture(nowhere).load)) for row in hub_rows(rows))


def _items(rows: Iterable[tuple[Row, Picture]]) -> list[Item]:
    items = []
    for row, picture in rows:
        values = row.values
        answers = values.get("answers")
        if "question_id" not in values or not isinstance(values.get("question"), str):
            raise ValueError(f"{row.where}: no question_id and question")
        whole = isinstance(answers, list) and len(answers) == NUM_VQA_ANSWERS
        if not whole or not all(isinstance(text, str) for text in answers):
            raise ValueError(f"{row.where}: no list of ten answers (only the validation split can be scored here)")
        items.append(
            Item(
                id=f"textvqa/{values['question_id']}",
                benchmark="textvqa",
                split="validation",
                kind="text",
                cluster=picture.name,
                prompt=values["question"] + SUFFIX,
                pictures=(picture,),
                truth={ANSWERS: tuple(answers)},
            )
        )
    return items


def textvqa_score(items: Sequence[Item], answers: Mapping[str, Answer], parser: str) -> Measures:
    """`textvqa/acc`, the mean VQA accuracy."""
    plain = vqa_normalise_vlmevalkit if parser == "vlmevalkit" else vqa_normalise
    score = {
        item.id: vqa_accuracy(plain(answers[item.id].text), [plain(text) for text in item.truth[ANSWERS]])
        for item in items
    }
    return {"textvqa/acc": mean(items, lambda item: score[item.id])}


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA (Singh et al., 2019), validation: reading text in photos",
    origin=ORIGIN,
    image_origin=IMAGES,
    files=FILES,
    read=textvqa_items,
    score=textvqa_score,
    readings=READINGS,
    primary="textvqa/acc",
    max_new_tokens=32,
    hub=(Hub("lmms-lab/textvqa", textvqa_hub_items, split="validation"),),
)
