"""An encoder that collapsed, on every benchmark of embeddings: it gets nothing, and every tie is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from eval_encoders import Constant
from mllm_align.cli import main
from mllm_align_eval.benchmarks import BENCHMARKS
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.scoring import measures_of
from mllm_align_eval.similarity import similarity_rows

CREPE = {"filename": "a.jpg", "caption": "a cat", "caption2": "one cat", "negative_caption": "a dog"}
BOX = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 2, "bbox_h": 2}
VG = {"image_path": "a.jpg", "true_caption": "the cat is on the bed", "false_caption": "the bed is on the cat", **BOX}
GROUND = {"image_0": "a", "image_1": "b", "caption_0": "a cat on a bed", "caption_1": "a bed on a cat"}
POOL = [{"image": f"{n}.jpg", "caption": [f"{n} {k}" for k in range(5)]} for n in range(12)]
FILES = {
    "aro": {
        "visual_genome_relation.json": [VG | {"relation_name": "on"}] * 3,
        "visual_genome_attribution.json": [VG | {"attributes": ["old", "wet"]}] * 25,
        "coco_order.json": [{"image": "a.jpg", "caption_options": list("abcde")}] * 3,
        "flickr30k_order.json": [{"image": "a.jpg", "caption_options": list("abcde")}] * 3,
    },
    "coco_retrieval": {"coco_karpathy_test.json": POOL},
    "flickr30k": {"flickr30k_test.json": POOL},
    "mmvp_vlm": {"Questions.csv": "Question ID,Type,Statement\n1,Texts,one\n2,Texts,two\n"},
    "sugarcrepe_captions": {"add_att.json": [CREPE] * 4},
    "sugarcrepe_pp": {"swap_obj.json": [CREPE] * 4},
    "winoground": {"examples.jsonl": "".join(json.dumps(GROUND | {"id": n}) + "\n" for n in range(3))},
    "world_negatives": {},
    "world_retrieval": {},
    "world_sugarcrepe_pp": {},
    "world_winoground": {},
    "world_zero_shot": {},
    "zero_shot": {"images.csv": "image,class\n" + "".join(f"{n}.jpg,class {n}\n" for n in range(7))},
}


def write(folder: Path, name: str) -> Path:
    """The benchmark's annotations, small."""
    for file, content in FILES[name].items():
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_no_benchmark_of_embeddings_is_left_out() -> None:
    assert set(FILES) == {name for name, benchmark in BENCHMARKS.items() if benchmark.ties is not None}


@pytest.mark.parametrize("name", FILES)
def test_a_collapsed_encoder_gets_nothing(name: str, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[name]
    items = benchmark.read(write(tmp_path, name), PictureFolder(None, "nowhere"))
    given = similarity_rows(Constant(384), items)
    assert benchmark.default_parser == "strict"
    found = measures_of(benchmark, items, given, benchmark.default_parser)
    rates = {key: measure.metric.value() for key, measure in found.items() if not key.endswith("/tied")}
    assert rates
    assert set(rates.values()) == {0}, "every metric of a benchmark of embeddings is a share of what is right"
    ties = {key: measure for key, measure in found.items() if key.endswith("/tied")}
    assert {measure.metric.value() for measure in ties.values()} == {1}
    assert {key.split("/")[1] for key in ties} == {item.split for item in items}


def test_the_score_command_is_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    write(tmp_path, "aro")
    monkeypatch.setattr("mllm_align_eval.encoders.encoder_of", lambda name: Constant())
    command = ["eval", "score", "aro", "--data", str(tmp_path), "--images", str(tmp_path), "--dual-encoder", "any"]
    out = tmp_path / "scores.json"
    assert main([*command, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["aro/coco_order/acc"]["value"] == 0
    assert "Ties, which count as wrong: ARO 34 of 34." in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--json", str(out), "--overwrite", "--parser", "official"]) == 0
    assert json.loads(out.read_text())["aro/coco_order/acc"]["value"] == 1
