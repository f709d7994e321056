"""What is read from disk against what the live reference measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from batches import make_batch
from mllm_align.contract import Batch, Branch, Signals
from mllm_align.data.tensor_files import TensorFiles
from mllm_align.families import family_of
from mllm_align.signals import AdaptersOff, measure
from mllm_align.signals.cached_reference import CachedReference, branch_keys
from mllm_align.signals.store import LogpStore
from tiny import tiny

# Ragged rows; two images in one prompt, a prompt without an image.
LAYOUTS = [((0,), (3, 6, 1)), ((1,), (5, 2)), ((2, 0), (4, 4)), ((), (7, 3))]


def cached_in(folder: Path) -> CachedReference:
    return CachedReference(LogpStore(TensorFiles(folder, {})))


def identified(batch: Batch) -> Batch:
    return replace(batch, image_ids=tuple(f"image {number}" for number in range(len(batch.images))))


def peft_and_batch(family: str, pictures: list[Any], **kwargs: Any) -> tuple[Any, Batch]:
    model, processor = tiny(family)
    targets = family_of(model).lora_targets(model, ["language"])
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    return peft, identified(make_batch(model, processor, pictures[:3], LAYOUTS, **kwargs))


def fill(cached: CachedReference, batch: Batch, reference: Signals) -> None:
    """Stores what the live reference said of each branch."""
    entries = {}
    for branch, key in zip(batch.branches, branch_keys(batch), strict=True):
        ragged = reference.token_logps[branch.view]
        entries[key] = ragged.values[ragged.row == branch.row]
    cached.store.add({key: values for key, values in entries.items() if len(values)})


def assert_equal(ours: Signals, theirs: Signals) -> None:
    assert ours.logps.keys() == ours.num_tokens.keys() == theirs.logps.keys()
    assert ours.token_logps.keys() == theirs.token_logps.keys()
    assert ours.sources == theirs.sources
    assert ours.host_token_ids == theirs.host_token_ids
    for view in theirs.logps:
        torch.testing.assert_close(ours.logps[view], theirs.logps[view], atol=1e-5, rtol=0)
        assert torch.equal(ours.num_tokens[view], theirs.num_tokens[view])
        assert ours.logps[view].dtype == torch.float32
    for view, ragged in theirs.token_logps.items():
        torch.testing.assert_close(ours.token_logps[view].values, ragged.values, atol=1e-5, rtol=0)
        assert torch.equal(ours.token_logps[view].row, ragged.row)


@pytest.mark.parametrize("reference_rows", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_disk_says_what_the_live_reference_says(
    family: str, reference_rows: tuple[bool, bool], tmp_path: Path, pictures: list[Any]
) -> None:
    peft, batch = peft_and_batch(family, pictures, reference_rows=reference_rows)
    with torch.no_grad():
        policy, live = measure(peft, batch, reference=AdaptersOff(), tokens=True)
    fill(cached_in(tmp_path), batch, live)
    cached = cached_in(tmp_path)
    assert len(cached.store) == sum(reference_rows[branch.row] for branch in batch.branches)
    assert cached.missing(batch) == {}
    assert_equal(cached.signals(batch, tokens=True, device="cpu"), live)
    without = cached.signals(batch, tokens=False, device="cpu")
    assert (without.token_logps, without.host_token_ids) == ({}, {})
    with torch.no_grad():
        again, from_disk = measure(peft, batch, reference=cached, tokens=True)
    assert_equal(again, policy)
    assert_equal(from_disk, live)


def test_rows_in_another_order_and_several_branches_of_a_view(tmp_path: Path, pictures: list[Any]) -> None:
    peft, batch = peft_and_batch("llava", pictures, rows=4)
    one_view = tuple(b._replace(view=batch.branches[0].view) for b in batch.branches if b.view.response == "0")
    batch = replace(batch, branches=one_view[::-1])
    assert [branch.row for branch in batch.branches] == [3, 2, 1, 0]
    with torch.no_grad():
        _, live = measure(peft, batch, reference=AdaptersOff(), tokens=True)
    cached = cached_in(tmp_path)
    fill(cached, batch, live)
    assert_equal(cached.signals(batch, tokens=True, device="cpu"), live)


def test_no_forward_pass_of_the_reference(tmp_path: Path, pictures: list[Any]) -> None:
    peft, batch = peft_and_batch("llava", pictures)
    _, live = measure(peft, batch, reference=AdaptersOff(), tokens=True)
    cached = cached_in(tmp_path)
    fill(cached, batch, live)
    calls: list[int] = []
    peft.get_base_model().model.language_model.register_forward_hook(lambda *_: calls.append(1))
    measure(peft, batch)
    alone = len(calls)
    measure(peft, batch, reference=cached)
    assert len(calls) == 2 * alone


def test_a_missing_response_names_its_row_and_the_mend(tmp_path: Path, pictures: list[Any]) -> None:
    _, batch = peft_and_batch("llava", pictures, reference_rows=(True, False))
    batch = replace(batch, row_ids=("blue-7", "red-3"))
    cached = cached_in(tmp_path)
    with pytest.raises(ValueError, match=r"row 'blue-7', view 0\|0.*draw it once.*eval_dataset.*=False"):
        cached.signals(batch, tokens=False, device="cpu")
    wanted = [index for index, branch in enumerate(batch.branches) if branch.row == 0]
    keys = branch_keys(batch)
    assert cached.missing(batch) == {index: keys[index] for index in wanted}
    with pytest.raises(ValueError, match="3 images and 0 image_ids"):
        cached.missing(replace(batch, image_ids=()))


def test_keys_hold_prompt_images_and_response_and_nothing_else(pictures: list[Any]) -> None:
    model, processor = tiny("qwen2_5_vl")
    batch = identified(make_batch(model, processor, pictures[:2], [((0, 1), (3,)), ((0, 1), (3,))]))
    branch = batch.branches[0]
    prefix = batch.prefixes[0]

    def key(**changes: Any) -> bytes:
        own = {"prefix": prefix, "branch": branch, "ids": batch.image_ids} | changes
        return branch_keys(replace(batch, prefixes=(own["prefix"],), branches=(own["branch"],), image_ids=own["ids"]))[
            0
        ]

    flipped = prefix.input_ids.clone()
    flipped[2] += 1
    extras = {name: 1 - values for name, values in prefix.extras.items()}
    assert extras
    bare = prefix._replace(images=(), extras={})
    different = [
        key(),
        key(prefix=prefix._replace(input_ids=flipped)),
        key(prefix=prefix._replace(images=(1, 0))),
        key(prefix=prefix._replace(images=(0,))),
        key(prefix=prefix._replace(extras=extras)),
        key(prefix=prefix._replace(extras={})),
        key(ids=("image 0", "redrawn")),
        key(branch=branch._replace(token_ids=branch.token_ids[:-1])),
        # A token that moves from a prompt without images into the response.
        key(prefix=bare),
        key(
            prefix=bare._replace(input_ids=bare.input_ids[:-1]),
            branch=branch._replace(token_ids=torch.cat([bare.input_ids[-1:], branch.token_ids])),
        ),
    ]
    assert len(set(different)) == len(different)
    other = Branch(0, 1, batch.branches[1].view, branch.token_ids)
    assert key(branch=other) == key()


def test_responses_that_are_read_for_a_feature_alone_are_not_looked_for(tmp_path: Path, pictures: list[Any]) -> None:
    peft, batch = peft_and_batch("llava", pictures)
    scored = batch.views[:3]
    with torch.no_grad():
        _, live = measure(peft, batch, reference=AdaptersOff(), tokens=True, scored=scored)
    fill(cached_in(tmp_path), batch, live)
    cached = cached_in(tmp_path)
    assert cached.missing(batch, scored) == {}
    assert len(cached.missing(batch)) == len(batch.branches) - 3
    assert_equal(cached.signals(batch, tokens=True, device="cpu", scored=scored), live)
