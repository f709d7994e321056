"""The base beside runs with a mixer on one load: exactly the stock model, whatever the mixer is and carries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eval_items import item
from mixed import OPTIONS, mixed_tiny
from mllm_align.cli import main
from mllm_align.models import ModelArguments, load_arms, load_model, stock_processor
from mllm_align.objectives import NextToken
from mllm_align_eval.arms import Arm, identity_of
from mllm_align_eval.items import Item
from mllm_align_eval.run import evaluate
from mllm_align_eval.runner import Answers, answer, answer_arms
from runs import make_trainer, pair_rows, picture
from tiny import save_tiny
from tiny_encoders import save_encoder

LARGE = 5e-2  # a learning rate that moves answers in two steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    for family in ("llava", "qwen2_5_vl"):
        save_tiny(family, folder / family)
    save_encoder("dinov2", folder / "dinov2")
    return folder


def run(folder: Path, output: Path, family: str = "llava", **model: Any) -> str:
    """Two steps of next-token."""
    arguments = ModelArguments(str(folder / family), use_peft=True, lora_r=4, lora_dropout=0.0, **model)
    loaded, processor = load_model(arguments, device="cpu")
    trainer = make_trainer(
        output,
        NextToken(),
        pair_rows(2),
        model=loaded,
        processing_class=processor,
        adapter=None,
        learning_rate=LARGE,
    )
    trainer.train()
    trainer.save_model()
    return str(output)


def mixer(folder: Path, kind: str, **encoder: Any) -> dict[str, Any]:
    return {"kind": kind, **OPTIONS[kind], "encoders": [{"model": str(folder / "dinov2"), **encoder}]}


def questions() -> list[Item]:
    return [item(f"i{n}", "red", choices=("red", "blue"), load=partial(picture, n)) for n in range(3)]


def said(given: Answers) -> list[tuple[Any, ...]]:
    """Log-probabilities and texts."""
    scores, texts = given["logprob", "right"], given["generate", "right"]
    return [(a.scores, b.text) for a, b in zip(scores, texts, strict=True)]


def on_one_load(base: str, adapters: dict[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    model, processor, own = load_arms(ModelArguments(base), adapters)
    arms = [Arm(name or "base", name, () if mine else None) for name, mine in own.items()]
    found = answer_arms(model, processor, questions(), arms, images=("right",), show_progress=False)
    return {name: said(given) for name, given in found.items()}


def alone(base: str, adapter: str | None = None) -> list[tuple[Any, ...]]:
    model, processor = load_model(base, adapter, device="cpu")
    given = {(m, "right"): answer(model, processor, questions(), method=m) for m in ("logprob", "generate")}
    return said(given)  # type: ignore[arg-type]


CASES: Sequence[tuple[str, str, dict[str, Any]]] = [
    *(("llava", kind, {}) for kind in OPTIONS),
    ("llava", "gated", {"pixels": "own", "size": 112}),
    *(("qwen2_5_vl", kind, {}) for kind in ("concat", "sva")),
]


@pytest.mark.parametrize(("family", "kind", "encoder"), CASES)
def test_the_base_is_the_stock_model_and_the_run_is_itself(
    family: str, kind: str, encoder: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    base = str(folder / family)
    adapter = run(folder, tmp_path / "run", family, mixer=mixer(folder, kind, **encoder))
    found = on_one_load(base, {"mine": adapter})
    assert found["base"] == alone(base)
    assert found["mine"] == alone(base, adapter)
    assert found["mine"] != found["base"]


@pytest.mark.parametrize("kind", ["gated", "interleave"])
def test_what_an_earlier_stage_left_is_none_of_the_base(kind: str, folder: Path, tmp_path: Path) -> None:
    base = str(folder / "llava")
    first = run(folder, tmp_path / "first", mixer=mixer(folder, kind), lora_scope=[], train_projector=True)
    mine = run(folder, tmp_path / "mine", start_from=first)
    # Two stages after one, a run without a mixer that trains the projector, and one that does not.
    control = run(folder, tmp_path / "control", train_projector=True)
    plain = run(folder, tmp_path / "plain")
    expected = {"base": alone(base)} | {
        name: alone(base, adapter) for name, adapter in (("mine", mine), ("control", control), ("plain", plain))
    }
    adapters = {"control": control, "mine": mine, "plain": plain}
    for order in (("mine", "control", "plain"), ("control", "plain", "mine")):
        found = on_one_load(base, {name: adapters[name] for name in order})
        for name, given in found.items():
            assert given == expected[name], name
    assert len({json.dumps(each) for each in expected.values()}) == 4
    other = run(
        folder,
        tmp_path / "other",
        start_from=run(folder, tmp_path / "again", mixer=mixer(folder, kind), lora_scope=[], train_projector=True),
        lora_scope=["language"],
    )
    with pytest.raises(ValueError, match="the mixers of 'mine' and 'other' have other weights"):
        load_arms(ModelArguments(base), {"mine": mine, "other": other})


def test_answers_are_kept_apart_by_what_no_weight_tells(folder: Path, tmp_path: Path) -> None:
    dino = {"model": str(folder / "dinov2")}

    def identity(kind: str = "sva", encoder: dict[str, Any] = dino, **options: Any) -> str:
        model, processor, _ = mixed_tiny("llava", kind, encoder, **options)
        return identity_of(model, processor)

    found = [
        identity(),
        identity(encoder=dino | {"layer": -1}),
        identity(encoder=dino | {"size": 28}),
        identity(heads=2),
        identity(encoder={"model": str(save_encoder("dinov2", tmp_path / "other", seed=1))}),
    ]
    assert len(set(found)) == len(found)
    # What an encoder is counts, and not where it lies.
    assert identity(encoder={"model": str(save_encoder("dinov2", tmp_path / "moved"))}) == found[0]


def test_the_base_is_kept_once_beside_every_mixer(folder: Path, tmp_path: Path) -> None:
    found = []
    for kind in ("gated", "interleave"):
        adapter = run(folder, tmp_path / kind, mixer=mixer(folder, kind))
        model, processor, _ = load_arms(ModelArguments(str(folder / "llava")), {"mine": adapter})
        assert stock_processor(model) is not None
        found.append((identity_of(model, processor, None, None), identity_of(model, processor, "mine")))
    assert found[0][0] == found[1][0]
    assert len({each for pair in found for each in pair}) == 3


def test_results_and_report_name_the_mixer_and_encoders_may_move(folder: Path, tmp_path: Path) -> None:
    base = str(folder / "llava")
    at_first = save_encoder("dinov2", tmp_path / "dino_at_first")
    given = mixer(folder, "interleave") | {"encoders": [{"model": str(at_first), "layer": -1}]}
    adapter = run(folder, tmp_path / "run", mixer=given)
    results = evaluate(ModelArguments(base), {"mine": adapter}, questions(), tmp_path / "out")
    words = {"kind": "interleave", "encoders": [f"{at_first} layer -1"], "off in": ["base"]}
    assert results["model"]["mixer"] == words
    assert f"{at_first} layer -1" in (tmp_path / "out" / "report.html").read_text()
    kept = (tmp_path / "out" / "answers.jsonl").read_text()
    at_first.rename(tmp_path / "dino_now")
    command = ["eval", "run", base, "--adapter", f"mine={adapter}", "--limit", "4", "--output", str(tmp_path / "out2")]
    assert main(command) == 2
    assert main([*command, "--encoders", str(tmp_path / "dino_now")]) in (0, None)
    again = evaluate(
        ModelArguments(base),
        {"mine": adapter},
        questions(),
        tmp_path / "out",
        overwrite=True,
        encoders=[str(tmp_path / "dino_now")],
    )
    assert again["arms"] == results["arms"]
    assert (tmp_path / "out" / "answers.jsonl").read_text() == kept  # nothing was asked anew
