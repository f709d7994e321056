from __future__ import annotations

from typing import Any

import pytest

from mllm_align.contract import Batch, Feature, Needs
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.lengths import LengthRecorder, PackedLengths
from mllm_align.data.mixing import mix_sources
from mllm_align.data.schema import DataError
from mllm_align.families import family_of
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.svco import SVCO
from mllm_align.objectives.weighted import Weighted
from mllm_align.trainers.setup import NeedsOfSources
from runs import pair_rows
from tiny import tiny


def collator_of(family: str, objective: Any, **settings: Any) -> AlignCollator:
    model, processor = tiny(family)
    found = family_of(model)
    return AlignCollator(processor, NeedsOfSources(objective), found.image_keys, found.token_keys, **settings)


def lengths_of(rows: Any, collator: AlignCollator) -> PackedLengths:
    recorder = LengthRecorder(collator)
    check_dataset(rows, collator, progress=False, observe=recorder.add)
    return recorder.lengths()


def from_batch(batch: Batch) -> list[tuple[int, int]]:
    """Prompt tokens and tail of every branch, read off a collated batch."""
    return [(batch.prefixes[b.prefix].input_ids.numel(), b.token_ids.numel() - 1) for b in batch.branches]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("objective", [SVCO(), DPO(), NextToken()])
def test_lengths_are_those_of_collated_rows(family: str, objective: Any) -> None:
    rows, collator = pair_rows(3), collator_of(family, objective)
    lengths = lengths_of(rows, collator)
    assert len(lengths) == 3
    for number, row in enumerate(rows):
        batch = collator([row])["batch"]
        own = lengths.of(number)
        assert [(branch.prefix_tokens, branch.tail) for branch in own] == from_batch(batch)
        same = [[left.prefix == right.prefix for left in own] for right in own]
        assert same == [[left.prefix == right.prefix for left in batch.branches] for right in batch.branches]


def test_equal_prompts_of_two_rows_have_one_number() -> None:
    first, second = pair_rows(2)
    twin = {**first, "chosen": "something else"}
    lengths = lengths_of([first, twin, second], collator_of("llava", DPO()))
    numbers = [{branch.prefix for branch in lengths.of(row)} for row in range(3)]
    assert numbers[0] == numbers[1]
    assert not numbers[0] & numbers[2]


def test_which_rows_have_a_reference() -> None:
    objective = Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions"))
    rows = mix_sources({"instructions": pair_rows(1, images=False), "pairs": pair_rows(2)})
    lengths = lengths_of(rows, collator_of("llava", objective))
    assert lengths.referenced.tolist() == [False, True, True]
    assert [len(lengths.of(row)) for row in range(3)] == [1, 6, 6]


def test_long_rows_count_as_the_collator_leaves_them() -> None:
    rows = pair_rows(2)
    rows[1] = {**rows[1], "chosen": "red " * 200}
    for overflow in ("drop", "truncate"):
        collator = collator_of("llava", NextToken(matched=False), max_length=80, on_overflow=overflow)
        lengths = lengths_of(rows, collator)
        assert collator.num_dropped == 0
        assert lengths.used() == ([0] if overflow == "drop" else [0, 1])
        assert [(b.prefix_tokens, b.tail) for b in lengths.of(1)] == from_batch(collator([rows[1]])["batch"])


def test_rows_of_which_only_images_are_read_have_no_length() -> None:
    class Pictures:
        needs = Needs(features=(Feature("a", "projector", "image"),))

    with pytest.raises(DataError, match=r"row.*has images and no text.*per_device_train_batch_size"):
        lengths_of(pair_rows(2), collator_of("llava", Pictures()))
