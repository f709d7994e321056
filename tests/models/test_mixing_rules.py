"""Which mixer a model gets, and what is refused instead of being passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from batches import make_batch
from mixed import mixed_tiny, shake
from mllm_align.families import family_of, inner
from mllm_align.models import load_model, merge_and_export
from mllm_align.models.arguments import ModelArguments
from mllm_align.models.fingerprint import base_fingerprint
from mllm_align.objectives import NextToken
from mllm_align.signals import FrozenCopy, measure
from mllm_align.signals.vision import reads_the_same_tokens
from mllm_align.vision.attach import attach, detach
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixer_files import fingerprint
from runs import make_trainer, pair_rows, trained
from tiny import save_tiny, tiny
from tiny_encoders import save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


def stage(folder: Path, encoder: Path, train: str = "frozen", **changes: Any) -> tuple[Path, Path, Any]:
    """A base, and a run on it in which the mixer and its encoder train and no LoRA layer does."""
    base = save_tiny("llava", folder / "base")
    mixer = {"kind": "gated", "encoders": [{"model": str(encoder), "train": train}]}
    arguments = ModelArguments(str(base), use_peft=True, lora_scope=[], mixer=mixer, **changes)
    model, processor = load_model(arguments, device="cpu")
    mixed = mixed_of(inner(model.get_base_model()))
    assert mixed is not None
    shake(mixed)
    trainer = make_trainer(
        folder / "one", NextToken(), pair_rows(2), model=model, processing_class=processor, adapter=None
    )
    trainer.train()
    trainer.save_model()
    return base, folder / "one", (trainer.model, processor)


def test_a_copy_with_another_mixer_sees_for_itself(encoder: Path, pictures: list[Any]) -> None:
    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    shake(mixed)
    model.requires_grad_(False)
    family = family_of(model)
    stock = FrozenCopy(tiny("llava")[0].requires_grad_(False))
    assert not reads_the_same_tokens(family, model, stock)
    batch = make_batch(model, processor, pictures[:2], [((0,), (3,)), ((1,), (4,))])
    with torch.no_grad():
        _, reference = measure(model, batch, reference=stock)
        alone, _ = measure(stock.model, batch)
    assert reference is not None
    for view, value in alone.logps.items():
        torch.testing.assert_close(reference.logps[view], value, atol=1e-5, rtol=0)
    other, _, twin = mixed_tiny("llava", "gated", {"model": str(encoder), "layer": 1})
    shake(twin)
    assert not reads_the_same_tokens(family, model, FrozenCopy(other.requires_grad_(False)))
    same, _, third = mixed_tiny("llava", "gated", encoder)
    shake(third)
    assert reads_the_same_tokens(family, model, FrozenCopy(same.requires_grad_(False)))


def test_what_is_kept_of_a_reference_knows_how_encoders_are_read(encoder: Path) -> None:
    digests = set()
    for spec in (str(encoder), {"model": str(encoder), "layer": 1}, {"model": str(encoder), "size": 28}):
        model, processor = tiny("llava")
        attach(model, {"kind": "concat"}, [spec], processor)
        digests.add(base_fingerprint(model, "no").digest)
    model, processor = tiny("llava")
    digests.add(base_fingerprint(model, "no").digest)
    assert len(digests) == 4


def test_the_next_stage_trains_what_it_says(encoder: Path, tmp_path: Path) -> None:
    base, one, _ = stage(tmp_path, encoder)
    plain, _ = load_model(ModelArguments(str(base), start_from=str(one)), device="cpu")
    named = dict(plain.named_parameters())
    assert all(named[name].requires_grad for name in named if ".language_model." in name)
    assert not any(named[name].requires_grad for name in named if ".vision_mixer.encoders." in name)
    for train in ("lora", "full"):
        mixer = {"kind": "gated", "encoders": [{"model": str(encoder), "train": train}]}
        arguments = ModelArguments(str(base), use_peft=True, start_from=str(one), mixer=mixer)
        model, processor = load_model(arguments, device="cpu")
        names = [n for n, parameter in model.named_parameters() if parameter.requires_grad and ".encoders." in n]
        assert names
        assert all(("lora_" if train == "lora" else "modules_to_save") in name for name in names)
        assert processor is not None
    for mixer, says in (
        ({"kind": "concat", "encoders": [str(encoder)]}, "says concat"),
        ({"kind": "gated", "encoders": [{"model": str(encoder), "layer": 1}]}, "layer 1"),
        ({"kind": "gated", "encoders": [str(encoder)], "norm": "layer"}, "has norm"),
    ):
        with pytest.raises(ValueError, match=says):
            load_model(ModelArguments(str(base), start_from=str(one), mixer=mixer), device="cpu")


def test_an_encoder_that_the_first_stage_trained_is_kept(encoder: Path, tmp_path: Path) -> None:
    base, one, (model, processor) = stage(tmp_path, encoder, train="full")
    # The gate was open from the start: its encoder has moved.
    mixer = {"kind": "gated", "encoders": [str(encoder)]}
    second, fresh = load_model(
        ModelArguments(str(base), use_peft=True, start_from=str(one), mixer=mixer), device="cpu"
    )
    assert fingerprint(second, fresh) == fingerprint(model, processor)
    trainer = make_trainer(
        tmp_path / "two", NextToken(), pair_rows(2), model=second, processing_class=fresh, adapter=None
    )
    assert not any(".encoders." in name for name in trained(trainer))
    trainer.train()
    trainer.save_model()
    loaded, own = load_model(base, tmp_path / "two", device="cpu")
    assert fingerprint(loaded, own) == fingerprint(trainer.model, fresh)


def test_a_stage_that_gives_other_outputs_than_it_did_is_refused(encoder: Path, tmp_path: Path) -> None:
    base, one, _ = stage(tmp_path, encoder)
    weights = load_file(one / "adapter_model.safetensors")
    (gates,) = [name for name in weights if name.endswith("gates")]
    save_file({**weights, gates: torch.zeros_like(weights[gates])}, one / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="other image tokens of one and the same image"):
        load_model(ModelArguments(str(base), start_from=str(one)), device="cpu")


def test_a_stage_without_a_mixer_is_to_be_merged(tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    arguments = ModelArguments(str(base), use_peft=True, lora_scope=[], train_projector=True)
    model, processor = load_model(arguments, device="cpu")
    trainer = make_trainer(
        tmp_path / "one", NextToken(), pair_rows(2), model=model, processing_class=processor, adapter=None
    )
    trainer.train()
    trainer.save_model()
    with pytest.raises(ValueError, match="has no mixer; merge it"):
        load_model(ModelArguments(str(base), start_from=str(tmp_path / "one")), device="cpu")


def test_a_mixer_beside_the_base_is_never_passed_over(encoder: Path, tmp_path: Path) -> None:
    _, one, _ = stage(tmp_path, encoder)
    exported = merge_and_export(one, tmp_path / "exported", dtype="float32", device="cpu")
    mixer = {"kind": "concat", "encoders": [str(encoder)]}
    with pytest.raises(ValueError, match="has a mixer already"):
        load_model(ModelArguments(str(exported), mixer=mixer), device="cpu")
    with pytest.raises(ValueError, match="has its own mixer"):
        load_model(ModelArguments(str(one.parent / "base"), mixer=mixer), one, device="cpu")
    model, processor = load_model(exported, device="cpu")
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    peft.save_pretrained(tmp_path / "plain")
    loaded, fresh = load_model(exported, tmp_path / "plain", device="cpu")
    assert fingerprint(loaded, fresh) == fingerprint(peft.eval(), processor)


@pytest.mark.parametrize("name", ["/no/where/x", "a/b/c", "user/adapter", "nope"])
def test_no_adapter_there(name: str, tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    with pytest.raises(ValueError, match="no adapter in"):
        load_model(base, name, device="cpu")


def test_adapters_are_seen_without_their_wrapper(encoder: Path) -> None:
    model, processor, _ = mixed_tiny("llava", "gated", encoder)
    peft = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj"))
    with pytest.raises(ValueError, match="has adapters"):
        detach(peft.get_base_model(), processor)
    other, processor = tiny("llava")
    peft = get_peft_model(other, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="has adapters"):
        attach(peft.get_base_model(), {"kind": "gated"}, [str(encoder)], processor)
