"""Time and memory of one S-VCO step: the shared-prefix plan against the published plan, side by side.

    python benchmarks/svco_step.py --json benchmarks/svco_step.json

A step is the policy's six log-probabilities, the reference's six, and the backward pass, on a LLaVA-shaped model
(576 image tokens) with LoRA on the language model and the reference by adapters off, batch 1, float32 on CPU and
bfloat16 on a GPU. *Ours* is `mllm_align.signals.measure`. The *peer* is the published plan on the same model: one
plain forward over the four views that have an image and one over the two that have none, for policy and reference,
with full logits. Each side is a process of its own, so that its memory is its own; the parent lets them step in turn,
so that a machine whose speed drifts slows both.

Written to the JSON: `speedup` (median over rounds of peer seconds / our seconds) and `memory_ratio` (peer peak / our
peak, both above what the loaded model takes), keyed by response length.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

IMAGE_TOKENS, PROMPT, VOCABULARY = 576, 40, 8000
LENGTHS = (40, 80, 150)


def build_model(device: str) -> Any:
    """A LLaVA of 24 M parameters with 576 image tokens, LoRA rank 8 on its language model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from mllm_align.families import family_of

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768, image_size=336
        ),
        text_config=LlamaConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            intermediate_size=1536,
            vocab_size=VOCABULARY,
        ),
        image_token_index=VOCABULARY - 1,
        image_seq_length=IMAGE_TOKENS,
    )
    config.vision_config.patch_size = 14
    model = LlavaForConditionalGeneration(config)
    targets = family_of(model).lora_targets(model, ["language"])
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return get_peft_model(model.to(device, dtype), lora).train()


def build_tensors(length: int, device: str) -> dict[str, Any]:
    """Two images, a prompt and two responses of `length` tokens, all random."""
    import torch

    generator = torch.Generator().manual_seed(length)

    def ids(count: int) -> Any:
        return torch.randint(1, VOCABULARY - 1, (count,), generator=generator)

    prompt = ids(PROMPT)
    return {
        "pixels": [torch.randn(1, 3, 336, 336, generator=generator).to(device) for _ in range(2)],
        "plain": prompt.to(device),
        "with_image": torch.cat([prompt[:4], torch.full((IMAGE_TOKENS,), VOCABULARY - 1), prompt[4:]]).to(device),
        "responses": [ids(length).to(device) for _ in range(2)],
    }


def our_step(model: Any, data: dict[str, Any]) -> float:
    """One step through the engine; returns the loss."""
    from mllm_align.contract import Batch, Branch, Prefix
    from mllm_align.objectives.svco import SVCO
    from mllm_align.signals import AdaptersOff, measure

    objective = SVCO()
    prefixes = (
        Prefix(data["with_image"], (0,), {}),
        Prefix(data["with_image"], (1,), {}),
        Prefix(data["plain"], (), {}),
    )
    where = {"image": 0, "contrast_image": 1, None: 2}
    which = {"chosen": 0, "rejected": 1}
    branches = tuple(
        Branch(where[view.image], 0, view, data["responses"][which[view.response]]) for view in objective.needs.views
    )
    images = tuple({"pixel_values": pixels} for pixels in data["pixels"])
    batch = Batch(("pairs",), ("0",), images, prefixes, branches, (True,))
    loss = objective(*measure(model, batch, reference=AdaptersOff())).loss
    loss.backward()
    return float(loss)


def published_step(model: Any, data: dict[str, Any]) -> float:
    """One step by the published plan: every view a sequence of its own, with logits at every position."""
    import torch
    import torch.nn.functional as F

    first, second = data["responses"]
    pixels = torch.cat([data["pixels"][0], data["pixels"][1], data["pixels"][0], data["pixels"][1]])
    with_image = torch.stack([torch.cat([data["with_image"], r]) for r in (first, first, second, second)])
    plain = torch.stack([torch.cat([data["plain"], r]) for r in (first, second)])

    def sums(ids: Any, **extra: Any) -> Any:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        return logps[:, -first.numel() :].sum(-1)

    def six() -> Any:
        return torch.cat([sums(with_image, pixel_values=pixels), sums(plain)])

    policy = six()
    with torch.no_grad(), model.disable_adapter():
        reference = six()
    own, other, other_own, own_other, none_first, none_second = 0.1 * (policy - reference)
    margins = [own - none_first, none_first - other, own_other - none_second, none_second - other_own]
    loss = -F.logsigmoid(torch.stack(margins)).sum()
    loss.backward()
    return float(loss)


def worker(side: str, device: str, threads: int, pipe: Connection) -> None:
    """Answers each response length received with (seconds, loss); ("memory", length) with the peak in bytes."""
    import torch

    torch.set_num_threads(threads)
    model = build_model(device)
    step: Callable[[Any, dict[str, Any]], float] = our_step if side == "ours" else published_step
    loaded = _resident(device)
    pipe.send("ready")
    while (request := pipe.recv()) is not None:
        kind, length = request
        data = build_tensors(length, device)
        model.zero_grad(set_to_none=True)
        _reset_peak(device)
        start = time.perf_counter()
        loss = step(model, data)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        pipe.send(_peak(device) - loaded if kind == "memory" else (seconds, loss))


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: memory is measured on Linux or on a GPU")


def _resident(device: str) -> int:
    import torch

    return _status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()


def _reset_peak(device: str) -> None:
    import torch

    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int:
    import torch

    return _status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Side:
    """A worker process and the pipe to it."""

    def __init__(self, name: str, device: str, threads: int) -> None:
        context = mp.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=worker, args=(name, device, threads, child), daemon=True)
        self.process.start()
        self.pipe.recv()

    def ask(self, kind: str, length: int) -> Any:
        """One step; see `worker`."""
        self.pipe.send((kind, length))
        return self.pipe.recv()

    def close(self) -> None:
        """Ends the process."""
        self.pipe.send(None)
        self.process.join()


def peak_of(name: str, device: str, threads: int, length: int) -> int:
    """Largest peak in bytes of three steps of a fresh process, above its loaded model."""
    side = Side(name, device, threads)
    try:
        return max(side.ask("memory", length) for _ in range(3))
    finally:
        side.close()


def main() -> None:
    """Runs both sides and prints a table; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    shared = (arguments.device, arguments.threads)
    ours, peer = Side("ours", *shared), Side("peer", *shared)
    result: dict[str, Any] = {"speedup": {}, "memory_ratio": {}, "seconds": {}, "peak_mb": {}}
    for length in LENGTHS:
        losses = ours.ask("time", length)[1], peer.ask("time", length)[1]
        if abs(losses[0] - losses[1]) > (1e-3 if arguments.device == "cpu" else 0.2):
            raise SystemExit(f"the two sides disagree on the loss: {losses}")
        times = [(ours.ask("time", length)[0], peer.ask("time", length)[0]) for _ in range(arguments.rounds)]
        result["speedup"][str(length)] = statistics.median(theirs / own for own, theirs in times)
        result["seconds"][str(length)] = [statistics.median(side) for side in zip(*times, strict=True)]
    ours.close()
    peer.close()
    for length in LENGTHS:
        peaks = [peak_of(name, *shared, length) for name in ("ours", "peer")]
        result["memory_ratio"][str(length)] = peaks[1] / peaks[0]
        result["peak_mb"][str(length)] = [peak / 2**20 for peak in peaks]
    for length in map(str, LENGTHS):
        own, theirs = result["seconds"][length]
        print(  # noqa: T201
            f"{length:>4} response tokens: {own:.2f} s against {theirs:.2f} s, "
            f"{result['speedup'][length]:.2f} times as fast; "
            f"{result['peak_mb'][length][0]:.0f} MB against {result['peak_mb'][length][1]:.0f} MB, "
            f"{result['memory_ratio'][length]:.2f} times less"
        )
    if arguments.json:
        import torch
        import transformers

        result["machine"] = {"processor": _processor(), "threads": arguments.threads}
        result["device"] = arguments.device if arguments.device == "cpu" else torch.cuda.get_device_name()
        result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
