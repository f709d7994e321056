"""What is planned for a micro-batch against what the engine makes of the same rows: texts of regions, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from live_memory import kept_for_backward, storages_of
from mllm_align.families import family_of, unwrap
from mllm_align.objectives import FILIP, SVLC, NextToken, RegionText, Weighted
from mllm_align.signals import measure
from mllm_align.signals.plan import plan_groups
from mllm_align.trainers.memory import Switches, run_of
from mllm_align.trainers.plain_step import wanted_of
from runs import make_trainer, picture
from wide import wide_llava

BOXES = ([0.05, 0.05, 0.45, 0.5], [0.5, 0.4, 0.95, 0.9], [0.1, 0.6, 0.4, 0.9])
LONG = "a large white disc that lies to the left of two small blue stars and above a green square"
# Of each row what its objects are called, and what they are not: some texts come twice, one object has none.
ROWS = (
    (("a disc", ("no disc",)), ("a small blue star", ())),
    (("a disc", ("two discs", "no disc")), ("", ())),
    ((LONG, ()), ("the star", ("the disc",)), ("two cups", ())),
    (),
)


def rows() -> list[dict[str, Any]]:
    return [
        {
            "image": picture(number),
            "prompt": f"What is in picture {number}?",
            "chosen": "A disc." if number else "Two large stars, and nothing else.",
            "objects": [
                {"box": box, "text": text, "negatives": list(false)}
                for box, (text, false) in zip(BOXES, objects, strict=False)
            ],
        }
        for number, objects in enumerate(ROWS)
    ]


def run_and_trainer(folder: Path, objective: Any, **changes: Any) -> tuple[Any, Any]:
    model, processor = wide_llava()
    whole = Weighted((objective, 1.0), (NextToken(matched=False), 1.0))
    given = {"model": model, "processing_class": processor, "adapter": {"train_projector": True}}
    trainer = make_trainer(folder, whole, rows(), **given, **changes)
    trainer.model.train()
    parts = (trainer.reference, trainer.data_collator, trainer.train_dataset)
    return run_of(trainer.args, trainer.model, trainer.objective, *parts), trainer


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        (SVLC(dim=8), {}),
        (SVLC(dim=8), {"packing": "off"}),
        (SVLC(dim=8), {"max_tokens_per_forward": 60}),
        (FILIP(dim=8, regions=True), {}),
    ],
    ids=["shared", "off", "in parts", "word by word"],
)
def test_groups_are_those_of_the_engine(tmp_path: Path, objective: Any, changes: dict[str, Any]) -> None:
    run, trainer = run_and_trainer(tmp_path, objective, per_device_train_batch_size=len(ROWS), **changes)
    batch = trainer.data_collator(rows())["batch"]
    hf, features = unwrap(trainer.model), wanted_of(trainer)["features"]
    engine = plan_groups(family_of(hf), hf, batch, trainer.options, reference=False, features=features)
    real = [(tuple(group.inputs.input_ids.shape), bool(group.inputs.images)) for group in engine]
    planned = [((group.packs, group.length), group.reads_images) for group in run.groups(Switches.of(trainer.args))]
    assert sorted(planned) == sorted(real)
    assert any(not reads for _, reads in planned)
    pools = sum(len(pool.rows) for group in engine for pool in group.pools)
    assert sum(group.pooled for group in run.groups(Switches.of(trainer.args))) == pools > 0


def test_rows_with_more_to_read_are_the_longest_and_repetitions_bring_texts_of_their_own(tmp_path: Path) -> None:
    run, _ = run_and_trainer(tmp_path, SVLC(dim=8))
    longest = run.work.rows[0]
    assert len(longest.phrases) == 4
    tokens = sum(run.work.batch.phrases[n].token_ids.numel() - 1 for n in longest.phrases)
    prefix = run.work.batch.prefixes[run.work.batch.phrases[0].prefix].input_ids.numel()
    for copies in (1, 2, 3):
        (group,) = (each for each in run.work.groups([longest] * copies, None) if not each.reads_images)
        assert (group.packs, group.length) == (1, prefix + copies * tokens)


@pytest.mark.parametrize(
    "objective", [RegionText(dim=8), FILIP(dim=8, regions=True)], ids=lambda each: type(each).__name__
)
def test_what_autograd_keeps(tmp_path: Path, objective: Any) -> None:
    run, trainer = run_and_trainer(tmp_path, objective, per_device_train_batch_size=len(ROWS))
    batch = trainer.data_collator(rows())["batch"]
    real = kept_for_backward(lambda: measure(trainer.model, batch, **wanted_of(trainer)), storages_of(trainer.model))
    found = run.estimate(Switches.of(trainer.args)).lasting
    purposes = ("activations", "attention masks", "vision activations", "signals")
    assert sum(found[purpose] for purpose in purposes) == pytest.approx(real, rel=0.04)
