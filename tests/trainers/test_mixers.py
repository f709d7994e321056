"""Training a mixer: every family's engine, NF4, references, checkpoints, ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from mixed import OPTIONS, mixed_tiny, shake
from mllm_align.models import load_model, lora_config
from mllm_align.models.arguments import ModelArguments
from mllm_align.objectives import SVCO, NextToken, Weighted
from mllm_align.trainers.save import save_beside_model
from mllm_align.trainers.setup import apply_peft
from mllm_align.vision.attach import attach
from mllm_align.vision.mixer_files import fingerprint, read_settings
from runs import gradients, make_trainer, pair_rows, start_ranks, trained, wait_for_ranks
from tiny import save_tiny
from tiny_encoders import save_encoder

MIXER = ".vision_mixer.mixer."


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


def objective() -> Weighted:
    return Weighted((SVCO(), 1.0), (NextToken(), 1.0))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
@pytest.mark.parametrize("kind", ["gated", "concat"])
def test_it_trains_beside_lora_on_an_nf4_model_and_comes_back(
    family: str, kind: str, encoder: Path, tmp_path: Path
) -> None:
    base = save_tiny(family, tmp_path / "base")
    arguments = ModelArguments(
        str(base),
        load_in_4bit=True,
        use_peft=True,
        lora_dropout=0.0,
        train_projector=True,
        mixer={"kind": kind, "encoders": [str(encoder)], **OPTIONS[kind]},
    )
    model, processor = load_model(arguments, device="cpu")
    trainer = make_trainer(
        tmp_path / "run",
        objective(),
        pair_rows(2),
        model=model,
        processing_class=processor,
        adapter=None,
        learning_rate=5e-2,
    )
    before = trained(trainer)
    assert any(MIXER in name for name in before)
    assert not any(".encoders." in name for name in before)
    trainer.train()
    after = trained(trainer)
    # A gate that starts at zero lets nothing through to what lies behind it at the first step, at the second it does.
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert {name for name in before if MIXER in name} <= set(moved)
    first = next(entry for entry in trainer.state.log_history if "svco/margins/attend" in entry)
    assert first["svco/margins/attend"] == 0  # policy and reference are one at first
    trainer.save_model()
    loaded, fresh = load_model(ModelArguments(str(base), load_in_4bit=True), tmp_path / "run", device="cpu")
    assert fingerprint(loaded, fresh) == fingerprint(model, processor)


@pytest.mark.parametrize("kind", OPTIONS)
def test_gradients_are_the_same_cached_and_recomputed(kind: str, encoder: Path, tmp_path: Path) -> None:
    found = []
    for number, settings in enumerate(
        ({}, {"cache_gradients": True, "max_tokens_per_forward": 90}, {"gradient_checkpointing": True})
    ):
        model, processor, mixed = mixed_tiny("llava", kind, encoder)
        shake(mixed)
        trainer = make_trainer(
            tmp_path / str(number),
            objective(),
            pair_rows(2),
            model=model,
            processing_class=processor,
            max_steps=1,
            **settings,
        )
        found.append(gradients(trainer))
    assert any(MIXER in name and gradient.abs().max() > 0 for name, gradient in found[0].items())
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=2e-4, atol=1e-6, msg=name)


@torch.no_grad()
def test_short_names_of_layers_do_not_reach_the_encoders(encoder: Path) -> None:
    for train in ("frozen", "lora", "full"):
        model, processor, _ = mixed_tiny("llava", "gated", {"model": str(encoder), "train": train})
        for config in (LoraConfig(target_modules=["q_proj", "v_proj"]), LoraConfig()):
            wrapped = apply_peft(
                model
                if config.target_modules
                else mixed_tiny("llava", "gated", {"model": str(encoder), "train": train})[0],
                config,
                processor,
            )
            names = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
            assert any(f"{MIXER}modules_to_save" in name for name in names)
            inside = [name for name in names if ".encoders." in name]
            if train == "full":
                assert inside
                assert all("modules_to_save" in name for name in inside)
            elif train == "lora" and not config.target_modules:
                assert all("lora_" in name for name in inside)
            else:
                assert not inside


def test_an_encoder_does_not_stay_untrained_in_silence(encoder: Path) -> None:
    model, processor, _ = mixed_tiny("llava", "gated", {"model": str(encoder), "train": "lora"})
    with pytest.raises(ValueError, match="train: lora"):
        apply_peft(model, None, processor)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_encoders_that_train_come_back(train: str, encoder: Path, tmp_path: Path) -> None:
    base = save_tiny("llava", tmp_path / "base")
    model, processor = load_model(base, device="cpu")
    mixed = attach(model, {"kind": "gated"}, [{"model": str(encoder), "train": train}], processor)
    shake(mixed)
    arguments = ModelArguments(lora_r=4, lora_dropout=0.0)
    trainer = make_trainer(
        tmp_path / "run",
        objective(),
        pair_rows(2),
        model=apply_peft(model, lora_config(model, arguments), processor),
        processing_class=processor,
        adapter=None,
    )
    before = trained(trainer)
    trainer.train()
    moved = [name for name, value in trained(trainer).items() if not torch.equal(value, before[name])]
    assert any(".encoders." in name for name in moved)
    trainer.save_model()
    loaded, fresh = load_model(base, tmp_path / "run", device="cpu")
    assert fingerprint(loaded, fresh) == fingerprint(trainer.model, processor)


def test_a_run_without_adapters_is_resumed(encoder: Path, tmp_path: Path) -> None:
    def run(folder: str, steps: int, *, resume: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
        model, processor, mixed = mixed_tiny("llava", "gated", encoder)
        shake(mixed, seed)
        trainer = make_trainer(
            tmp_path / folder,
            NextToken(),
            pair_rows(4),
            model=model,
            processing_class=processor,
            adapter=None,
            max_steps=steps,
            save_strategy="steps",
            save_steps=1,
            learning_rate=1e-3,
        )
        trainer.train(resume_from_checkpoint=resume or None)
        return trained(trainer)

    whole = run("whole", 2)
    run("halves", 1)
    resumed = run("halves", 2, resume=True, seed=1)
    assert any("vision_mixer.mixer." in name for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)


def test_a_model_in_parts_is_said_to_be_saved_unchecked_once(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor, _ = mixed_tiny("llava", "gated", encoder)
    trainer = make_trainer(tmp_path, NextToken(), pair_rows(2), model=model, processing_class=processor)
    trainer.save_model()
    assert read_settings(tmp_path)["fingerprint"] is not None
    trainer.is_deepspeed_enabled = True
    for _ in range(2):
        save_beside_model(trainer, str(tmp_path))
    assert read_settings(tmp_path)["fingerprint"] is None
    (said,) = [message for message in caplog.messages if "fingerprint" in message]
    assert "load_model will not compare" in said


def first_gradients(folder: Path, encoder: Path, processes: int) -> dict[str, torch.Tensor]:
    """Of one step on four rows of which the last two have no image."""
    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    shake(mixed)
    trainer = make_trainer(
        folder,
        Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions")),
        {"pairs": pair_rows(2), "instructions": pair_rows(2, images=False)},
        model=model,
        processing_class=processor,
        per_device_train_batch_size=4 // processes,
        train_sampling_strategy="sequential",
        max_steps=1,
        ddp_backend="gloo" if processes > 1 else None,
    )
    return gradients(trainer)


@pytest.mark.ddp
def test_a_process_without_images_waits_for_nobody(tmp_path: Path) -> None:
    encoder = save_encoder("dinov2", tmp_path / "encoder")
    ranks = start_ranks(__file__, tmp_path)
    alone = first_gradients(tmp_path / "alone", encoder, 1)
    wait_for_ranks(ranks)
    saved = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert any(MIXER in name and gradient.abs().max() > 0 for name, gradient in alone.items())
    for name, gradient in alone.items():
        torch.testing.assert_close(saved[0][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
        assert torch.equal(saved[0][name], saved[1][name]), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(first_gradients(root / "together", root / "encoder", 2), root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
