"""Time and memory of one S-VCO step: the shared-prefix plan against the published plan, side by side.

    python benchmarks/svco_step.py --json benchmarks/svco_step.json
    python benchmarks/svco_step.py --preset llava-1.5-7b --json benchmarks/svco_step_gpu.json

A step is the policy's six log-probabilities, the reference's six, and the backward pass, for one row, with LoRA on
the language model and the reference by adapters off. *Ours* is `mllm_align.signals.measure`. The *peer* is the
published plan on the same model: one plain forward over the four views that have an image and one over the two that
have none, for policy and reference, with full logits. `cached_reference` is our step where the reference was scored
once, before; the peer has no such thing. Image processing is outside on both sides.

Written to the JSON, keyed by response length: `speedup` and `speedup_cached_reference` (peer seconds / our seconds),
`limit...` (the same ratio of floating point operations), `of_limit...` (speedup / limit), `memory_ratio` (our peak /
the peer's, both above the loaded model).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from comparison import Case, compare, print_comparison
from mllm_align.contract import Batch, Branch, Prefix
from mllm_align.objectives.svco import SVCO
from mllm_align.signals import AdaptersOff, measure
from results import finish, parser_of, shape_of
from shapes import Shape, build_model, random_ids, random_pixels, with_images

CACHED = "cached_reference"


class Tensors:
    """Two images, a prompt and two responses of one length, all random."""

    def __init__(self, shape: Shape, length: int) -> None:
        generator = torch.Generator().manual_seed(length)
        self.plain = random_ids(shape, shape.prompt_tokens, generator)
        self.with_image = with_images(shape, self.plain, 1)
        self.responses = [random_ids(shape, length, generator) for _ in range(2)]
        self.pixels = [random_pixels(shape, generator).to(shape.device, shape.dtype) for _ in range(2)]


class Ours:
    """The step through the engine."""

    objective = SVCO()

    def __init__(self, shape: Shape) -> None:
        self.shape, self.model = shape, build_model(shape)

    def prepare(self, case: Case) -> tuple[Batch, Any]:
        """The batch and, where the reference is cached, its signals."""
        batch = self._batch(Tensors(self.shape, case.length))
        if case.variant != CACHED:
            return batch, None
        with torch.no_grad(), self.shape.autocast():
            return batch, measure(self.model, batch, reference=AdaptersOff())[1]

    def _batch(self, data: Tensors) -> Batch:
        prefixes = (Prefix(data.with_image, (0,), {}), Prefix(data.with_image, (1,), {}), Prefix(data.plain, (), {}))
        where = {"image": 0, "contrast_image": 1, None: 2}
        which = {"chosen": 0, "rejected": 1}
        branches = tuple(
            Branch(where[view.image], 0, view, data.responses[which[view.response]])
            for view in self.objective.needs.views
        )
        images = tuple({"pixel_values": pixels} for pixels in data.pixels)
        return Batch(("pairs",), ("0",), images, prefixes, branches, (True,))

    def step(self, data: tuple[Batch, Any]) -> float:
        """Measure, objective, backward."""
        batch, cached = data
        with self.shape.autocast():
            policy, reference = measure(self.model, batch, reference=None if cached else AdaptersOff())
            loss = self.objective(policy, cached or reference).loss
        loss.backward()
        return loss.item()


class Published:
    """The step by the published plan: every view a sequence of its own, with logits at every position."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.model = shape, build_model(shape)

    def prepare(self, case: Case) -> dict[str, Any]:
        """Six sequences: the four with an image beside their pixels, the two without."""
        data, device = Tensors(self.shape, case.length), self.shape.device
        first, second = data.responses
        with_image = [torch.cat([data.with_image, response]) for response in (first, first, second, second)]
        return {
            "with_image": torch.stack(with_image).to(device),
            "plain": torch.stack([torch.cat([data.plain, response]) for response in (first, second)]).to(device),
            "pixels": torch.cat([*data.pixels, *data.pixels]),
            "length": case.length,
        }

    def step(self, data: dict[str, Any]) -> float:
        """Policy, reference, loss, backward."""
        with self.shape.autocast():
            policy = self._six(data)
            with torch.no_grad(), self.model.disable_adapter():
                reference = self._six(data)
        own, other, other_own, own_other, none_first, none_second = 0.1 * (policy - reference)
        margins = [own - none_first, none_first - other, own_other - none_second, none_second - other_own]
        loss = -F.logsigmoid(torch.stack(margins)).sum()
        loss.backward()
        return loss.item()

    def _six(self, data: dict[str, Any]) -> Tensor:
        with_image = self._sums(data["with_image"], data["length"], pixel_values=data["pixels"])
        return torch.cat([with_image, self._sums(data["plain"], data["length"])])

    def _sums(self, ids: Tensor, length: int, **images: Tensor) -> Tensor:
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **images).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        return logps[:, -length:].sum(-1)


def main() -> None:
    """Runs both sides and prints a table; see the module's text."""
    arguments = parser_of(__doc__).parse_args()
    shape = shape_of(arguments.preset)
    result = compare(Ours, Published, shape, rounds=arguments.rounds, threads=arguments.threads, variants=(CACHED,))
    print_comparison(result, (CACHED,))
    finish(result, arguments)


if __name__ == "__main__":
    main()
