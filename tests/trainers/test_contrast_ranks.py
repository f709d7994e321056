"""Embeddings of images and texts over two and four processes: the gradients are those of one with all rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback

from mllm_align.contract.embedding import IMAGE_PROMPT, TEXT_PROMPT
from mllm_align.objectives import InfoNCE, NextToken, Weighted
from mllm_align.objectives.discriminative import Discriminative
from mllm_align.objectives.siglip import SigLIP
from mllm_align.signals import replay
from runs import gradients, make_trainer, picture, start_ranks, wait_for_ranks

CAPTIONS = ("a red circle", "two small blue stars", "a green square left of it", "a star", "no star", "a large circle")
# Texts that are false of each picture: unequal numbers, and none at all.
FALSE = (("a blue circle", "a red star"), (), ("a green square right of it",), (), ("two stars",), ("a small circle",))
ANSWERS = ("It is red.", "Two stars, which are small.", "A green one.", "A star.", "None.", "A circle, a large one.")
PROMPTS = {"image_prompt": IMAGE_PROMPT, "text_prompt": TEXT_PROMPT, "text": "caption", "negatives": True}


def seen() -> list[dict[str, Any]]:
    """Six rows with a picture, a caption, false ones, and an answer behind the instruction of the summary."""
    return [
        {
            "image": picture(number),
            "caption": caption,
            "negatives": list(false),
            "prompt": IMAGE_PROMPT,
            "chosen": answer,
        }
        for number, (caption, false, answer) in enumerate(zip(CAPTIONS, FALSE, ANSWERS, strict=True))
    ]


def without_caption() -> list[dict[str, Any]]:
    """Two rows, which are the last process's where there are four."""
    return [{"image": picture(50 + number), "caption": [], "negatives": []} for number in range(2)]


def without_image() -> list[dict[str, Any]]:
    """Likewise, for the prediction of responses alone."""
    return [{"prompt": "How many are two and two?", "chosen": answer} for answer in ("Four.", "It is four.")]


def beside_next_token() -> Weighted:
    contrasts = (InfoNCE(**PROMPTS, temperature=0.2), 1.0, "seen"), (SigLIP(**PROMPTS, bias=-2.0), 0.5, "seen")
    return Weighted(*contrasts, (NextToken(matched=False), 0.5))


# Of each case its objective, and its rows.
CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "alone": (
        lambda: InfoNCE(**PROMPTS, dim=16, dimensions=(4,), tile=3),
        lambda: (
            [{name: row[name] for name in ("image", "caption", "negatives")} for row in seen()] + without_caption()
        ),
    ),
    "beside next token": (beside_next_token, lambda: {"seen": seen(), "text": without_image()}),
    "discriminative": (lambda: Discriminative(negatives=True), lambda: seen()[::-1] + without_caption()),
}
CACHED = {"cache_gradients": True, "max_tokens_per_forward": 90}
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "cached": CACHED}
DROPOUT = {"adapter": {"lora_dropout": 0.3}, "disable_dropout": False, "max_tokens_per_forward": 90}


class Reduced(TrainerCallback):
    """Counts how often the gradients of the model are sent from process to process."""

    def __init__(self) -> None:
        self.count = 0
        self.trainer: Any = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.trainer.args.world_size > 1:
            self.trainer.model_wrapped.register_comm_hook(None, lambda state, bucket: self.reduce(state, bucket))

    def reduce(self, state: Any, bucket: Any) -> Any:
        self.count += bucket.is_last()
        return allreduce_hook(state, bucket)


def measure_run(folder: Path, processes: int, case: str, **changes: Any) -> dict[str, Any]:
    """Gradients of the first step over the same eight rows, its log, and how often gradients were sent and kept."""
    objective, rows = CASES[case]
    reduced = Reduced()
    trainer = make_trainer(
        folder,
        objective(),
        rows(),
        callbacks=[reduced],
        per_device_train_batch_size=8 // processes,
        train_sampling_strategy="sequential",
        max_steps=1,
        ddp_backend="gloo" if processes > 1 else None,
        **changes,
    )
    reduced.trainer = trainer
    kept_back, no_sync = [], trainer.accelerator.no_sync
    trainer.accelerator.no_sync = lambda model: kept_back.append(model) or no_sync(model)
    assert trainer.together == (processes > 1)
    found = gradients(trainer)
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    told = {name: value for name, value in log.items() if name == "loss" or name.startswith("loss/")}
    return {"gradients": found, "log": told, "reduced": reduced.count, "kept_back": len(kept_back)}


def forgetful(folder: Path, processes: int) -> dict[str, Any]:
    """Passes that do not draw as what was measured did."""
    again = replay._Random.again
    replay._Random.again = lambda self: nullcontext()
    try:
        return measure_run(folder, processes, "alone", **DROPOUT, cache_gradients=True)
    finally:
        replay._Random.again = again


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """By parameter how far its gradient is from what is expected, as a share of it."""
    assert found.keys() == expected.keys()
    floor = 1e-3 * max(torch.linalg.norm(each).item() for each in expected.values())
    return {
        name: (torch.linalg.norm(found[name] - each) / torch.linalg.norm(each).clamp(min=floor)).item()
        for name, each in expected.items()
    }


def every_case(folder: Path, processes: int) -> dict[tuple[str, str], dict[str, Any]]:
    """What every case gives, plain and with cached gradients."""
    return {
        (case, way): measure_run(folder / f"{case} {way}", processes, case, **changes)
        for case in CASES
        for way, changes in WAYS.items()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """Of one process with all rows."""
    return every_case(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.ddp
@pytest.mark.parametrize("count", [2, 4])
def test_gradients_are_those_of_one_process(count: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    ranks = start_ranks(__file__, tmp_path, count=count)
    expected = request.getfixturevalue("alone")  # while they run
    wait_for_ranks(ranks)
    each_rank = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(count)]
    for saved in each_rank:
        for key, one in expected.items():
            found = saved[key]
            assert any("lora_B" in name for name in found["gradients"])
            assert any("log_scale" in name for name in found["gradients"])
            far = distance(found["gradients"], one["gradients"])
            assert max(far.values()) < 1e-4, f"{key}: {max(far, key=far.__getitem__)} {max(far.values())}"
            assert found["log"] == pytest.approx(one["log"], rel=1e-4)
            assert found["reduced"] == 1
        if count == 2:
            check_draws(saved, expected["alone", "plain"]["gradients"])
    learnt = {"modules_of_parts.0.log_scale", "modules_of_parts.1.log_scale", "modules_of_parts.1.bias"}
    assert learnt <= expected["beside next token", "plain"]["gradients"].keys()
    # The rank without captions has fewer passes than the others, which do not wait for it before the last.
    for case in CASES:
        assert max(saved[case, "cached"]["kept_back"] for saved in each_rank) > 2
    if count == 4:
        assert each_rank[3]["alone", "cached"]["kept_back"] < each_rank[0]["alone", "cached"]["kept_back"]


def check_draws(saved: dict[Any, Any], without: dict[str, torch.Tensor]) -> None:
    """What is dropped is dropped again in the passes of a cached step."""
    drawn = {way: saved[f"dropout {way}"]["gradients"] for way in ("plain", "cached", "forgetful")}
    assert max(distance(drawn["cached"], drawn["plain"]).values()) < 1e-4
    assert max(distance(drawn["forgetful"], drawn["plain"]).values()) > 0.1
    assert max(distance(drawn["plain"], without).values()) > 0.1


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, rank_here = Path(sys.argv[1]), int(sys.argv[2])
    size = int(os.environ["WORLD_SIZE"])
    results: dict[Any, Any] = dict(every_case(root, size))
    if size == 2:
        results["dropout plain"] = measure_run(root / "drawn", size, "alone", **DROPOUT)
        results["dropout cached"] = measure_run(root / "drawn again", size, "alone", **DROPOUT, cache_gradients=True)
        results["dropout forgetful"] = forgetful(root / "forgetful", size)
    torch.save(results, root / f"{rank_here}.pt")
    torch.distributed.destroy_process_group()
