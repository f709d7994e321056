"""Tasks that lmms-eval itself runs on our models: what it gets is what our own evaluation gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig, get_peft_model

from mllm_align.models import load_model
from mllm_align_eval.benchmarks.world import world_items
from mllm_align_eval.items import Item
from mllm_align_eval.runner import answer
from runs import start_ranks, wait_for_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("lmms_eval") is None, reason="lmms-eval is missing: pip install mllm-align[lmms-eval]"
    ),
]
LENGTH = 6
SHARED = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {parquet}}}, cache_dir: {cache}}}
test_split: test
doc_to_visual: !function reading.visuals
doc_to_text: question
"""
GENERATE = """
task: tiny_world
output_type: generate_until
doc_to_target: answer
process_results: !function reading.right
generation_kwargs: {{max_new_tokens: {length}, do_sample: false, temperature: 0}}
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
CHOOSE = """
task: tiny_world_choices
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
READING = """
def visuals(doc):
    return doc["images"]

def right(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""
# Of its own, because lmms-eval changes file locks, logging and process groups of the process that it is in.
RUN = """
import json, os, sys
from pathlib import Path
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
manager = TaskManager(include_path=str(folder), include_defaults=False)
for name, run in json.loads((folder / "runs.json").read_text()).items():
    found = simple_evaluate(model="mllm_align", batch_size=8, task_manager=manager, bootstrap_iters=0, **run)
    if rank == 0:
        (task,) = found["samples"]
        said = {s["doc_id"]: s["filtered_resps"] for s in found["samples"][task]}
        (folder / f"{name}.json").write_text(json.dumps([found["results"][task], said]))
"""


def write_tasks(folder: Path, items: Sequence[Item]) -> None:
    rows = [
        {
            "images": [picture.load() for picture in item.pictures],
            "question": item.prompt,
            "answer": item.answer,
            "choices": list(item.choices),
            "label": item.choices.index(item.answer),
        }
        for item in items
    ]
    text = Value("string")
    columns = {
        "images": List(Image()),
        "question": text,
        "answer": text,
        "choices": List(text),
        "label": Value("int64"),
    }
    Dataset.from_list(rows, Features(columns)).to_parquet(folder / "world.parquet")
    shared = SHARED.format(parquet=folder / "world.parquet", cache=folder / "cache")
    (folder / "reading.py").write_text(READING)
    (folder / "tiny_world.yaml").write_text(GENERATE.format(length=LENGTH) + shared)
    (folder / "tiny_world_choices.yaml").write_text(CHOOSE + shared)
    (folder / "run.py").write_text(RUN)


def run(folder: Path, runs: dict[str, Any], count: int) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Scores and answers by document of each run."""
    (folder / "runs.json").write_text(json.dumps(runs))
    wait_for_ranks(start_ranks(str(folder / "run.py"), folder, count=count))
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in runs}


def saved_adapter(folder: Path) -> str:
    """An adapter that changes the demo model's answers."""
    model, _ = load_model("demo-base")
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=r".*language_model.*(q|v)_proj", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder)
    return str(folder)


def test_lmms_eval_gets_the_answers_of_our_own_evaluation(tmp_path: Path) -> None:
    items = [item for item in world_items(12, 12, 12, regimes=["adversarial"]) if item.is_closed][:40]
    adapter = saved_adapter(tmp_path / "adapter")
    write_tasks(tmp_path, items)
    tuned = f"pretrained=demo-base,adapter={adapter}"
    found = run(
        tmp_path,
        {
            "base": {"model_args": "pretrained=demo-base", "tasks": ["tiny_world"]},
            "adapter": {"model_args": tuned, "tasks": ["tiny_world"]},
            "folder": {"model_args": f"pretrained={adapter}", "tasks": ["tiny_world"], "limit": 9},
            "simple": {"model_args": tuned, "tasks": ["tiny_world"], "force_simple": True},
            "choices": {"model_args": tuned, "tasks": ["tiny_world_choices"], "force_simple": True},
        },
        count=1,
    )
    ours = {}
    for name, folder in {"base": None, "adapter": adapter}.items():
        model, processor = load_model("demo-base", folder)
        given = answer(model, processor, items, max_new_tokens=LENGTH)
        ours[name] = [entry.text for entry in given]
        scores, said = found[name]
        assert [said[str(number)] for number in range(len(items))] == [[text] for text in ours[name]]
        right = [text == item.answer for text, item in zip(ours[name], items, strict=True)]
        assert scores["right,none"] == pytest.approx(sum(right) / len(items))
    assert ours["base"] != ours["adapter"]
    assert found["simple"][1] == found["adapter"][1]
    assert found["folder"][1].items() <= found["adapter"][1].items()
    scored = answer(model, processor, items, method="logprob")
    # Two choices of as many tokens are ranked alike by the sum and by the mean.
    same = [n for n, item in enumerate(items) if item.is_yes_no]
    for number in same:
        losses = [loss for loss, _ in found["choices"][1][str(number)]]
        assert items[number].choices[losses.index(min(losses))] == scored[number].choice


@pytest.mark.ddp
def test_two_processes_share_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As `accelerate launch --cpu` sets it; without, accelerate takes each of them for the only one.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    items = [item for item in world_items(8, 8, 8, regimes=["adversarial"]) if item.is_closed][:13]
    write_tasks(tmp_path, items)
    _, said = run(tmp_path, {"base": {"model_args": "pretrained=demo-base", "tasks": ["tiny_world"]}}, count=2)["base"]
    model, processor = load_model("demo-base")
    assert said == {str(n): [a.text] for n, a in enumerate(answer(model, processor, items, max_new_tokens=LENGTH))}
