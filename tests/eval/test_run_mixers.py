"""Evaluating runs with a mixer: whose it is, and encoders that are switched off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from eval_items import item
from mllm_align.cli import main
from mllm_align.models import ModelArguments, load_adapter, load_arms, load_model, merge_and_export, mixing_without
from mllm_align.vision.mixer_files import save_mixer
from mllm_align_eval.arms import Arm, fingerprint, identity_of
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.run import evaluate
from mllm_align_eval.runner import answer, answer_arms
from runs import picture
from tiny import save_tiny
from tiny_encoders import save_encoder


class Folders(NamedTuple):
    base: str
    mixed: str
    other: str
    plain: str
    interleaved: str


def trained(base: str, folder: Path, **options: Any) -> str:
    """A run whose every trained weight has moved."""
    arguments = ModelArguments(base, use_peft=True, lora_scope=["language"], **options)
    model, processor = load_model(arguments, device="cpu", trainable=True)
    generator = torch.Generator().manual_seed(len(str(folder)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    if options:
        save_mixer(model, folder, processor)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("runs")
    encoders = [str(save_encoder(name, folder / name)) for name in ("dinov2", "siglip")]
    base = str(save_tiny("llava", folder / "base"))
    mixed = trained(base, folder / "mixed", mixer={"kind": "gated", "encoders": encoders})
    other = trained(base, folder / "mixed too", mixer={"kind": "gated", "encoders": encoders})
    interleaved = trained(base, folder / "interleaved", mixer={"kind": "interleave", "encoders": encoders[:1]})
    return Folders(base, mixed, other, trained(base, folder / "plain"), interleaved)


def questions() -> list[Item]:
    return [item(f"i{n}", "red", choices=("red", "blue"), load=partial(picture, n)) for n in range(3)]


def scores(given: Sequence[Answer]) -> list[Any]:
    return [each.scores for each in given]


def test_each_arm_is_its_own_model(folders: Folders) -> None:
    """On one load: the stock base, a run without a mixer, and two with; each as it is when loaded alone."""
    adapters = {"plain": folders.plain, "mixed": folders.mixed, "other": folders.other}
    model, processor, own = load_arms(ModelArguments(folders.base), adapters)
    assert own == {None: False, "plain": False, "mixed": True, "other": True}
    arms = [Arm(name or "base", name, () if mine else None) for name, mine in own.items()]
    found = answer_arms(
        model, processor, questions(), arms, images=("right",), methods=("logprob",), show_progress=False
    )
    for name, adapter in {"base": None, **adapters}.items():
        alone, own_processor = load_model(folders.base, adapter, device="cpu")
        expected = answer(alone, own_processor, questions(), method="logprob")
        for ours, theirs in zip(scores(found[name]["logprob", "right"]), scores(expected), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
    assert len({tuple(map(tuple, scores(given["logprob", "right"]))) for given in found.values()}) == 4


def test_an_encoder_less_is_another_model(folders: Folders) -> None:
    model, processor, _ = load_arms(ModelArguments(folders.base), {"mixed": folders.mixed})
    arms = [Arm("all", "mixed"), Arm("one", "mixed", (0,)), Arm("other", "mixed", (1,)), Arm("none", "mixed", None)]
    found = answer_arms(
        model, processor, questions(), arms, images=("right",), methods=("logprob",), show_progress=False
    )
    assert len({tuple(map(tuple, scores(given["logprob", "right"]))) for given in found.values()}) == 4
    assert len({identity_of(model, processor, arm.adapter, arm.off) for arm in arms}) == 4
    stock, _ = load_model(folders.base, device="cpu")
    with_lora = load_adapter(stock, folders.plain)
    both, _, _ = load_arms(ModelArguments(folders.base), {"default": folders.plain, "mixed": folders.mixed})
    # A mixer that is off is no part of who answers.
    assert fingerprint(both, "default", None) == fingerprint(with_lora, "default")
    assert fingerprint(both, "default") != fingerprint(with_lora, "default")


def test_frozen_encoders_are_not_remembered_across_arms(folders: Folders, tmp_path: Path) -> None:
    """An exported model has no adapter on its vision side, so a picture's tokens would be kept for all arms."""
    merge_and_export(folders.mixed, tmp_path / "exported", dtype="float32", device="cpu")
    model, processor, own = load_arms(ModelArguments(str(tmp_path / "exported")), {})
    assert own == {None: True}
    arms = [Arm("all"), Arm("one", None, (0,))]
    found = answer_arms(
        model, processor, questions(), arms, images=("right",), methods=("logprob",), show_progress=False
    )
    assert scores(found["all"]["logprob", "right"]) != scores(found["one"]["logprob", "right"])
    with mixing_without(model, (0,)):
        alone = answer(model, processor, questions(), method="logprob")
    assert scores(found["one"]["logprob", "right"]) == scores(alone)


def test_evaluating_without_an_encoder(folders: Folders, tmp_path: Path) -> None:
    arguments, adapters = ModelArguments(folders.base), {"mixed": folders.mixed}
    whole = evaluate(arguments, adapters, questions(), tmp_path / "out")
    less = evaluate(arguments, adapters, questions(), tmp_path / "out", without=[2], overwrite=True)
    assert "without_encoders" not in whole["model"]
    assert less["model"]["without_encoders"] == [2]
    assert whole["model"]["sha256"]["base"] == less["model"]["sha256"]["base"]
    assert whole["model"]["sha256"]["mixed"] != less["model"]["sha256"]["mixed"]
    # The same folder, but answers of the other model are not taken for this one's.
    kept = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(kept) == len({json.dumps(each, sort_keys=True) for each in kept})
    assert whole["arms"]["base"] == less["arms"]["base"]


def test_what_cannot_be_is_said(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stock, _ = load_model(folders.base, device="cpu")
    with pytest.raises(ValueError, match=r"was trained with a mixer.*load_model\(base, adapter\) attaches it"):
        load_adapter(stock, folders.mixed)
    with pytest.raises(ValueError, match="'mixed' and 'interleaved' have different mixers"):
        load_arms(ModelArguments(folders.base), {"mixed": folders.mixed, "interleaved": folders.interleaved})
    command = ["eval", "run", folders.base, "--limit", "4", "--output", str(tmp_path / "out"), "--without", "3"]
    assert main(command) == 2
    assert "the model has no mixer" in capsys.readouterr().err
    assert main([*command, "--adapter", folders.mixed]) == 2
    assert "there is no further vision encoder 3: the mixer has 1 to 2" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()
