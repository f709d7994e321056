r"""A contrastive step with cached gradients on images and texts: ours against sentence-transformers, side by side.

    python benchmarks/contrast_vs_sentence_transformers.py --json benchmarks/contrast_vs_sentence_transformers.json
    python benchmarks/contrast_vs_sentence_transformers.py --preset small --json \
        benchmarks/contrast_vs_sentence_transformers_small.json

Both get one LLaVA (images of 16 tokens; a tiny one, or with `--preset small` one of 24 M parameters) with LoRA on its
language model, and the same pairs of an image and a caption. Ours is `AlignTrainer` with `InfoNCE` and
`cache_gradients`, in passes of 1,152 padded tokens, which are some 32 images; the peer is
`CachedMultipleNegativesRankingLoss` with `mini_batch_size` 32 and both directions, on the folder that
`export_sentence_transformers` writes for stock `SentenceTransformer`. A step is both passes of the model, the loss and
the backward pass. Processing images and texts is outside on both sides, as is the optimiser.

Written to the JSON, keyed by the number of pairs: `speedup` (peer seconds / our seconds, median over rounds), `limit`
(the same ratio of floating point operations), `memory_ratio` (our peak / the peer's, both above the loaded model); and
`gradient_distance`, how far the gradients of both are from each other as a share of theirs, over 48 pairs. The peer
runs the frozen vision tower once more for its second pass, we run it once; that is in the ratios.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from comparison import check_losses
from harness import Process, in_turn, peaks_of
from mllm_align.encoding import export_sentence_transformers
from mllm_align.encoding.files import save_embedding
from pairs import AT_ONCE, TEMPERATURE, Contrast, Pairs, objective, pair_rows, pair_shape, tokens_at_once
from results import finish, parser_of, print_table
from shapes import Shape, build_base, build_processor, fill_adapters, lora

COUNTS = (256, 512)
COMPARED = Pairs(48)


class Ours(Contrast):
    """`AlignTrainer` with `InfoNCE` and cached gradients."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, cache_gradients=True, max_tokens_per_forward=tokens_at_once(shape))


class Peer:
    """sentence-transformers on what we export for it, with the same LoRA."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.folder = shape, tempfile.TemporaryDirectory()
        whole, exported = Path(self.folder.name, "whole"), Path(self.folder.name, "exported")
        base = build_base(shape)
        base.save_pretrained(whole)
        build_processor(shape).save_pretrained(whole)
        save_embedding(objective().embedding, whole)
        export_sentence_transformers(whole, exported, dtype="float32")
        self.encoder = SentenceTransformer(str(exported), device=shape.device)
        # The same LoRA; here the model is the one without a vocabulary head.
        inner: Any = self.encoder[0].auto_model
        inner.requires_grad_(False)
        settings = lora(shape, base)
        names = {name.removeprefix("model.") for name in settings.target_modules or ()}
        settings.task_type, settings.target_modules = None, names
        fill_adapters(get_peft_model(inner, settings))
        self.model: Any = self.encoder.train()
        self.loss = CachedMultipleNegativesRankingLoss(
            self.encoder,
            scale=1 / TEMPERATURE,
            mini_batch_size=AT_ONCE,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )

    def prepare(self, case: Pairs) -> list[dict[str, Any]]:
        """Both columns as its trainer's collator makes them."""
        rows = pair_rows(self.shape, case.count)
        return [self.encoder.preprocess([row[column] for row in rows]) for column in ("image", "caption")]

    def step(self, data: list[dict[str, Any]]) -> float:
        """Loss and backward pass."""
        loss = self.loss(data, None)
        loss.backward()
        return loss.item()


def gradients(side: Any) -> dict[str, torch.Tensor]:
    """Of LoRA after a step, by the name of the layer in the language model."""
    side.model.zero_grad(set_to_none=True)
    side.step(side.prepare(COMPARED))
    named = side.model.named_parameters()
    return {name[name.index("layers.") :]: p.grad for name, p in named if p.grad is not None}


def gradient_distance(shape: Shape) -> float:
    """How far the gradients of both sides are from each other, as a share of the peer's.

    Raises:
        SystemExit: If they have unlike parameters.
    """
    ours, peer = (gradients(build(shape)) for build in (Ours, Peer))
    if ours.keys() != peer.keys():
        raise SystemExit(f"the sides train unlike parameters: {sorted(ours.keys() ^ peer.keys())[:3]}")
    parts = [torch.cat([each[name].flatten() for name in sorted(ours)]) for each in (ours, peer)]
    return (torch.linalg.norm(parts[0] - parts[1]) / torch.linalg.norm(parts[1])).item()


def compare(shape: Shape, counts: Sequence[int], rounds: int, threads: int) -> dict[str, Any]:
    """Time, operations and memory of both by number of pairs.

    Raises:
        SystemExit: If the sides do not agree on the loss.
    """
    result: dict[str, Any] = {"gradient_distance": gradient_distance(shape)}

    def put(key: str, count: int, value: Any) -> None:
        result.setdefault(key, {})[str(count)] = value

    with Process(Ours, shape, threads) as own, Process(Peer, shape, threads) as other:
        for count in counts:
            arms = {"ours": (own, Pairs(count)), "peer": (other, Pairs(count))}
            timed = in_turn(arms, rounds)
            check_losses({name: steps[-1].loss for name, steps in timed.items()}, shape.tolerance)
            flops = {name: process.flops(case) for name, (process, case) in arms.items()}
            pairs = zip(timed["peer"], timed["ours"], strict=True)
            put("speedup", count, statistics.median(theirs.seconds / mine.seconds for theirs, mine in pairs))
            put("limit", count, flops["peer"] / flops["ours"])
            put("seconds", count, {name: statistics.median(s.seconds for s in each) for name, each in timed.items()})
            put("gigaflop", count, {name: each / 1e9 for name, each in flops.items()})
            put("loss", count, {name: steps[-1].loss for name, steps in timed.items()})
    cases = [Pairs(count) for count in counts]
    peaks = {name: peaks_of(build, shape, threads, cases, steps=1) for name, build in (("ours", Ours), ("peer", Peer))}
    for case in cases:
        put("memory_ratio", case.count, peaks["ours"][case] / peaks["peer"][case])
        put("peak_mb", case.count, {name: found[case] / 2**20 for name, found in peaks.items()})
    return result


def main() -> None:
    """Runs both sides and prints a table; see the module's text."""
    parser = parser_of(__doc__, rounds=3)
    parser.set_defaults(preset="tiny")
    parser.add_argument("--pairs", type=int, nargs="+", default=COUNTS, help="numbers of pairs (default: 256 512)")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    shape = pair_shape(arguments.preset)
    result = compare(shape, arguments.pairs, arguments.rounds, arguments.threads)
    lines = []
    for count, speedup in result["speedup"].items():
        seconds, peaks = result["seconds"][count], result["peak_mb"][count]
        cells = [f"{seconds['ours']:.2f}", f"{seconds['peer']:.2f}", f"{speedup:.2f}", f"{result['limit'][count]:.2f}"]
        cells += [f"{peaks['ours']:.0f}", f"{peaks['peer']:.0f}", f"{result['memory_ratio'][count]:.2f}"]
        lines.append([count, *cells])
    print_table(["pairs", "ours s", "peer s", "times", "limit", "ours MB", "peer MB", "ratio"], lines)
    print(f"Gradients differ by {result['gradient_distance']:.1e} of theirs")
    settings = {
        "image_tokens": shape.image_tokens,
        "tokens_per_forward": tokens_at_once(shape),
        "peer_mini_batch": AT_ONCE,
    }
    peer = {"sentence-transformers": metadata.version("sentence-transformers")}
    finish({**settings, **result, "peer": peer, "load_at_start": load}, arguments)


if __name__ == "__main__":
    main()
