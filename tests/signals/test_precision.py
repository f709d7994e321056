"""bfloat16: packed scores are as far from float32 as plain ones are, and no farther.

A bfloat16 number has 8 bits of mantissa, so a rounding moves it by up to 2**-9 of its size. Two orders of summation
(one long sequence, several short ones) round differently, so packed and plain scores cannot be equal; the measure of
both is the float32 model of the very same weights. The average error of packed scores may be `LARGER` times that of
plain ones: two draws of one error, averaged over 200 tokens, differ by a tenth. And no token may be farther from
the plain score than two numbers can be that are both as far from float32 as plain scores are at worst.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText

from layouts import SIZES, VIEWS, Layout, batch_of, loaded_attention, plain_signals, variant
from mllm_align.contract import Batch, Signals
from mllm_align.families import family_of, unwrap
from mllm_align.models import load_processor
from mllm_align.signals import AdaptersOff, EngineOptions, Replay, measure
from tiny import FAMILIES, nf4_config, tiny

LARGER = 1.25
PACKINGS = ("auto", "off")
OWN, NONE, OTHER, OWN_REJECTED, NONE_REJECTED, OTHER_REJECTED = VIEWS
# Several images in a prompt, one, none, and prompts that rows share; long responses, because tokens are averaged over.
LAYOUT = Layout(
    pictures=SIZES[:4],
    prompts=((3, (1, 0)), (1, (2,)), (2, ()), (0, (3,)), (3, (1,))),
    rows=(
        ((0, OWN, 9), (0, OWN_REJECTED, 12), (1, OTHER, 7), (2, NONE, 10)),
        ((2, NONE, 12), (2, NONE_REJECTED, 8)),
        ((3, OWN, 11), (3, OWN_REJECTED, 10), (4, OTHER, 12), (4, OTHER_REJECTED, 6)),
    ),
    referenced=(True, True, True),
)


def adapted(model: Any, *, zero: bool = False, copied: bool = False) -> Any:
    """LoRA in the model's precision; `zero` as at the first step, `copied` with a trained copy of the projector."""
    family = family_of(model)
    config = LoraConfig(
        r=4,
        target_modules=family.lora_targets(model, ["language"]),
        init_lora_weights=zero,
        modules_to_save=[path.rsplit(".", 1)[-1] for path in family.projectors(model)[:1]] if copied else None,
    )
    torch.manual_seed(0)
    return get_peft_model(model, config, autocast_adapter_dtype=False).eval()


@functools.cache
def pair_of(name: str) -> tuple[Any, Any, Any]:
    """A policy in bfloat16, one in float32 with the very same weights, and the processor."""
    model, processor = variant(name)
    half = adapted(model.to(torch.bfloat16))
    whole = adapted(variant(name)[0])
    whole.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    return half, whole, processor


def cast(prompts: list[dict[str, Tensor]], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """As a user casts a processor's output for a model: what is floating-point."""
    return [{k: v.to(dtype) if v.is_floating_point() else v for k, v in prompt.items()} for prompt in prompts]


def plainly(peft: Any, batch: Batch, prompts: list[dict[str, Tensor]], *, off: bool = False) -> Signals:
    with loaded_attention(peft) as hf, peft.disable_adapter() if off else nullcontext():
        return plain_signals(hf, batch, cast(prompts, hf.dtype))


def tokens(signals: Signals | None) -> Tensor:
    """(N,) every token of every view."""
    assert signals is not None
    return torch.cat([signals.token_logps[view].values for view in VIEWS])


def assert_as_good(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Packed and plain scores of the same tokens, and the scores of the float32 model."""
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float()), "the last step was rounded, too"
    error, allowed = (found - exact).abs(), (plain - exact).abs()
    assert allowed.mean() > 1e-3, "nothing was rounded"
    assert error.mean() <= LARGER * allowed.mean()
    assert (found - plain).abs().max() <= 2 * allowed.max()


def assert_packed_is_as_good(
    peft: Any, whole: Any, batch: Batch, prompts: Any, around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> None:
    """Policy and reference of `peft`, measured inside `around`, against plain calls there and against `whole`."""
    with torch.no_grad():
        exact = torch.cat([tokens(plainly(whole, batch, prompts, off=off)) for off in (False, True)])
        with around():
            plain = torch.cat([tokens(plainly(peft, batch, prompts, off=off)) for off in (False, True)])
            for packing in PACKINGS:
                options = EngineOptions(packing)
                measured = measure(peft, batch, reference=AdaptersOff(), tokens=True, options=options)
                assert_as_good(torch.cat([tokens(signals) for signals in measured]), plain, exact)


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_weights(name: str) -> None:
    half, whole, processor = pair_of(name)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    batch, prompts = batch_of(unwrap(whole), processor, LAYOUT)
    assert_packed_is_as_good(half, whole, batch, prompts)


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_weights_under_autocast(name: str) -> None:
    _, whole, processor = pair_of(name)
    batch, prompts = batch_of(unwrap(whole), processor, LAYOUT)
    assert_packed_is_as_good(whole, whole, batch, prompts, autocast)


@pytest.mark.parametrize("name", FAMILIES)
def test_nf4_with_bfloat16_compute(name: str, tmp_path: Path) -> None:
    model, processor = tiny(name)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    models = []
    for dtype in (torch.bfloat16, torch.float32):
        config = nf4_config(name)
        config.bnb_4bit_compute_dtype = dtype
        loaded = AutoModelForImageTextToText.from_pretrained(
            tmp_path, quantization_config=config, dtype=dtype, device_map={"": "cpu"}
        )
        for module in loaded.modules():
            # Repacking for AVX512-BF16 at the first evaluation would change every later forward.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        models.append(adapted(loaded.eval()))
    half, whole = models
    lora = {key: value.float() for key, value in half.state_dict().items() if "lora_" in key}
    assert not whole.load_state_dict(lora, strict=False).unexpected_keys
    batch, prompts = batch_of(unwrap(whole), load_processor(str(tmp_path)), LAYOUT)
    assert_packed_is_as_good(half, whole, batch, prompts)


@pytest.mark.parametrize("name", FAMILIES)
def test_policy_equals_reference_bit_for_bit_at_step_zero(name: str) -> None:
    for dtype, around in ((torch.bfloat16, nullcontext), (torch.float32, autocast), (torch.float32, nullcontext)):
        for copied in (False, True):
            model, processor = variant(name)
            peft = adapted(model.to(dtype), zero=True, copied=copied)
            batch, _ = batch_of(unwrap(peft), processor, LAYOUT)
            for packing in PACKINGS:
                with around():
                    options = EngineOptions(packing)
                    policy, reference = measure(peft, batch, reference=AdaptersOff(), tokens=True, options=options)
                assert torch.equal(tokens(policy), tokens(reference))
                assert tokens(policy).requires_grad
                assert not tokens(reference).requires_grad


def loss_of(signals: Signals) -> Tensor:
    """Another weight for each row and view."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(len(signals.logps[view]), generator=generator) for view in VIEWS]
    return sum((w * (signals.logps[view] / 20).tanh()).sum() for w, view in zip(weights, VIEWS, strict=True))


def gradient(peft: Any, measured: Callable[[], Signals], around: Any = nullcontext) -> Tensor:
    """All trained parameters' as one vector, in float32."""
    with around():
        loss = loss_of(measured())
    loss.backward()
    return gathered(peft)


def gathered(peft: Any) -> Tensor:
    found = torch.cat([p.grad.float().flatten() for p in peft.parameters() if p.requires_grad])
    peft.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("weights", ["bfloat16", "autocast"])
@pytest.mark.parametrize(
    "name", ["llava_next", "qwen3_vl", "internvl", "idefics3", "mistral3", "paligemma2", "gemma3"]
)
def test_gradients_are_as_good_as_those_of_plain_calls(name: str, weights: str) -> None:
    half, whole, processor = pair_of(name)
    peft, around = (half, nullcontext) if weights == "bfloat16" else (whole, autocast)
    batch, prompts = batch_of(unwrap(whole), processor, LAYOUT)
    exact = gradient(whole, lambda: plainly(whole, batch, prompts))
    plain = gradient(peft, lambda: plainly(peft, batch, prompts), around)
    packed = gradient(peft, lambda: measure(peft, batch)[0], around)
    with around():
        replay = Replay(peft, batch, options=EngineOptions(max_tokens_per_forward=1, max_images_per_forward=1))
        loss_of(replay.policy).backward()
        for again in replay.passes():
            again().backward()
    replayed = gathered(peft)
    allowed = (plain - exact).norm()
    assert allowed > 1e-3 * exact.norm(), "nothing was rounded"
    assert (packed - exact).norm() <= LARGER * allowed
    assert (replayed - exact).norm() <= LARGER * allowed
