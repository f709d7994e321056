"""What a mixer and its encoders take, against autograd itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from live_memory import LiveBytes, kept_for_backward, storages_of
from mixed import mixed_tiny
from mllm_align.contract import Batch
from mllm_align.families import family_of, unwrap
from mllm_align.objectives import DPO
from mllm_align.signals import EngineOptions, measure
from mllm_align.trainers.memory import Run, Switches, run_of
from mllm_align.trainers.mixer_memory import MixedBytes, mixed_bytes
from mllm_align.trainers.workload import ImageShape, sample_workload
from mllm_align.vision.attach import attach, drawn_pixels
from runs import make_trainer, pair_rows
from tiny import FAMILIES, tiny
from tiny_encoders import save_encoder

GRAPH = ("activations", "attention masks", "vision activations", "signals")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder("dinov2", tmp_path_factory.mktemp("encoder")))


def trainer_of(folder: Path, family: str, kind: str, encoder: Any, *, half: bool = False, **changes: Any) -> Any:
    inside = {"llm_layers": changes.pop("llm_layers")} if "llm_layers" in changes else {}
    model, processor, _ = mixed_tiny(family, kind, encoder if isinstance(encoder, dict) else Path(encoder), **inside)
    settings = {"activation_checkpointing": False} | changes
    made = make_trainer(
        folder,
        DPO(),
        pair_rows(2),
        model=model.to(torch.bfloat16) if half else model,
        processing_class=processor,
        **settings,
    )
    made.model.train()
    return made


def run(trainer: Any) -> Run:
    parts = (trainer.model, trainer.objective, trainer.reference, trainer.data_collator, trainer.train_dataset)
    return run_of(trainer.args, *parts)


def ratio_to_autograd(trainer: Any) -> float:
    batch = trainer.data_collator(pair_rows(2))["batch"]

    def policy() -> Any:
        with trainer.accelerator.autocast():
            return measure(trainer.model, batch, options=trainer.options)

    known = storages_of(trainer.model)
    if trainer.args.activation_checkpointing:
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with LiveBytes(known) as live:
            out = policy()
            real = live.now
        del out
    else:
        real = kept_for_backward(policy, known)
    estimate = run(trainer).estimate(Switches.of(trainer.args))
    return sum(estimate.lasting[purpose] for purpose in GRAPH) / real


CASES = [
    *[("llava", kind, {}) for kind in ("additive", "gated", "concat", "interleave", "window", "sva", "x_former")],
    *[("qwen2_5_vl", kind, {}) for kind in ("gated", "concat", "sva")],
    ("llava_next", "gated", {}),
    ("llava", "interleave", {"adapter": {"train_projector": True}}),
    ("llava", "gated", {"adapter": {"lora_scope": ["language", "projector", "vision"]}}),
    ("llava", "gated", {"half": True}),
    ("llava", "sva", {"llm_layers": 1}),
    ("llava", "sva", {"llm_layers": 1, "packing": "off"}),
    ("llava", "concat", {"bf16": True}),
    ("llava", "concat", {"activation_checkpointing": True}),
]


@pytest.mark.parametrize(("family", "kind", "changes"), CASES)
def test_what_autograd_keeps(family: str, kind: str, changes: dict[str, Any], encoder: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, family, kind, encoder, **changes)
    loose = trainer.args.activation_checkpointing or trainer.args.bf16
    assert ratio_to_autograd(trainer) == pytest.approx(1, abs=0.15 if loose else 0.08)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_what_autograd_keeps_of_encoders_that_train(train: str, encoder: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "plain", "llava", "gated", {"model": encoder, "train": train})
    assert ratio_to_autograd(trainer) == pytest.approx(1, abs=0.08)
    again = {"activation_checkpointing": True}
    trainer = trainer_of(tmp_path / "again", "llava", "gated", {"model": encoder, "train": train}, **again)
    # The layer that is run again is counted, which comes later.
    assert 0.9 < ratio_to_autograd(trainer) < 1.4


@pytest.mark.parametrize(
    ("family", "kind"), [*(case[:2] for case in CASES[:11]), *((family, "gated") for family in FAMILIES)]
)
def test_the_vision_side_alone(family: str, kind: str, encoder: str) -> None:
    """Where the decoder's activations do not hide it."""
    model, processor, mixed = mixed_tiny(family, kind, Path(encoder))
    model.requires_grad_(False)
    mixed.mixer.requires_grad_(True)
    own = family_of(model)
    images = [drawn_pixels(processor, own)]
    real = kept_for_backward(lambda: own.encode_images(model, images), storages_of(model))
    found = mixed_bytes(model, None, tower_trains=False, projector_trains=False)
    (patches,) = [image.tower for image in sample_images(model, images)]
    through = 0
    if found.before_projector:
        # The activation of a frozen projector keeps what enters it.
        width = {"llava": 64, "qwen2_5_vl": 4 * 64}[family]
        through = 4 * width * patches // {"llava": 1, "qwen2_5_vl": 4}[family]
    assert real > 4000
    assert found.activations(patches, False) + through == pytest.approx(real, rel=0.05)


def sample_images(model: Any, images: list[Any]) -> tuple[ImageShape, ...]:
    """As a plan counts them."""
    empty = Batch((), (), tuple(images), (), (), ())
    return sample_workload(model, lambda rows: {"batch": empty}, [], EngineOptions(), reference=False).images


def test_two_encoders_and_another_dtype_of_the_mixer(encoder: str) -> None:
    single, double = (mixed_of_kind("gated", [encoder] * count) for count in (1, 2))
    assert double.kept == pytest.approx(2 * single.kept, rel=0.1)
    half = mixed_of_kind("gated", [encoder], torch.bfloat16)
    assert half.kept == pytest.approx(single.kept / 2, rel=0.01)


def mixed_of_kind(kind: str, encoders: list[str], dtype: torch.dtype = torch.float32) -> MixedBytes:
    model, processor = tiny("llava")
    model = model.to(dtype)
    attach(model, {"kind": kind, "encoders": encoders}, None, processor)
    return mixed_bytes(model, None, tower_trains=False, projector_trains=False)


def test_what_is_frozen_keeps_nothing(encoder: str) -> None:
    model, _, mixed = mixed_tiny("llava", "gated", Path(encoder))
    mixed.requires_grad_(False)
    found = mixed_bytes(model, None, tower_trains=False, projector_trains=False)
    assert (found.activations(1000, False), found.trains, found.before_projector) == (0, False, False)
    assert found.at_work(1000) > 0
    # A projector that trains in front of one that looks at its tokens sends its gradient through.
    model, _, mixed = mixed_tiny("llava", "window", Path(encoder))
    mixed.requires_grad_(False)
    assert mixed_bytes(model, None, tower_trains=False, projector_trains=False).kept == 0
    assert mixed_bytes(model, None, tower_trains=False, projector_trains=True).kept > 0
    assert mixed_bytes(tiny("llava")[0], None, tower_trains=True, projector_trains=True) == MixedBytes()


def test_weights_gradients_and_moments_count_mixer_and_encoders(encoder: str, tmp_path: Path) -> None:
    plain = run(make_trainer(tmp_path / "plain", DPO(), pair_rows(2)))
    trainer = trainer_of(tmp_path / "mixed", "llava", "gated", {"model": encoder, "train": "full"})
    with_it = run(trainer)
    hf: Any = unwrap(trainer.model).model.vision_mixer
    trained = sum(4 * p.numel() for p in hf.parameters() if p.requires_grad)
    assert trained > 4 * 10_000
    assert with_it.weights - plain.weights == sum(4 * p.numel() for p in hf.parameters())
    assert with_it.gradients - plain.gradients == trained
    assert with_it.moments - plain.moments == 2 * trained
    trainer = trainer_of(tmp_path / "frozen", "llava", "gated", encoder)
    frozen = run(trainer)
    own = [p for name, p in trainer.model.named_parameters() if "vision_mixer" in name]
    assert frozen.weights - plain.weights == sum(4 * p.numel() for p in own)
    assert frozen.gradients - plain.gradients == sum(4 * p.numel() for p in own if p.requires_grad) < trained


def test_the_decoder_keeps_what_a_mixer_needs_although_nothing_else_trains(encoder: str, tmp_path: Path) -> None:
    """Stage 1: no LoRA, the mixer alone; its gradient goes through all layers."""
    arguments = {"lora_scope": []}
    trainer = trainer_of(tmp_path, "llava", "gated", encoder, adapter=arguments)
    assert not [n for n, p in trainer.model.named_parameters() if p.requires_grad and "vision_mixer" not in n]
    assert ratio_to_autograd(trainer) == pytest.approx(1, abs=0.08)
