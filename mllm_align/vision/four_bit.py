"""4-bit layers on the CPU, which bitsandbytes changes at the first evaluation."""

from __future__ import annotations

from torch import nn

SMALLEST_4BIT_WIDTH = 64


def settle_4bit_on_cpu(model: nn.Module) -> None:
    """Makes 4-bit layers on CPU compute the same before and after an evaluation.

    On CPUs with AVX512-BF16 bitsandbytes repacks the weights at the first evaluation forward, which changes later
    training forwards and what is saved.

    Raises:
        ValueError: If a layer is too narrow for the 4-bit CPU kernels.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for name, module in model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        if module.in_features < SMALLEST_4BIT_WIDTH:
            raise ValueError(
                f"load_in_4bit on CPU needs at least {SMALLEST_4BIT_WIDTH} input features per layer, "
                f"{name} has {module.in_features}: set load_in_4bit off"
            )
        module.support_avx512bf16_for_cpu = False
