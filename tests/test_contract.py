from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mllm_align.contract import (
    Batch,
    Branch,
    Feature,
    Needs,
    Objective,
    Outcome,
    Prefix,
    Ragged,
    Signals,
    Term,
    View,
    needs_for,
)

OWN, NONE, OTHER = (View(image, "chosen") for image in ("image", None, "contrast_image"))


@pytest.fixture
def batch() -> Batch:
    """Two rows: the first has two views, the second one."""
    return Batch(
        sources=("pairs", "text"),
        row_ids=("a", "b"),
        images=({"pixel_values": torch.ones(1, 3, 2, 2)},),
        prefixes=(
            Prefix(torch.tensor([1, 2, 3]), (0,), {"mm_token_type_ids": torch.tensor([0, 1, 0])}),
            Prefix(torch.tensor([1, 3]), (), {}),
        ),
        branches=(
            Branch(0, 0, OWN, torch.tensor([5, 6])),
            Branch(1, 0, NONE, torch.tensor([5, 6])),
            Branch(1, 1, NONE, torch.tensor([7, 8, 9])),
        ),
        reference_rows=(True, False),
    )


def test_view_reads_as_response_given_image() -> None:
    assert [str(view) for view in (OWN, NONE)] == ["chosen|image", "chosen|no_image"]


def test_union_of_needs_has_each_thing_once_and_required_wins_over_optional() -> None:
    feature = Feature("patches", "tower", "image")
    left = Needs(views=(OWN,), optional=(NONE, OTHER), features=(feature,))
    right = Needs(views=(NONE, OWN), reference=True, features=(feature,), tokens=True)
    wanted = Needs(views=(OWN, NONE), optional=(OTHER,), features=(feature,), reference=True, tokens=True)
    assert left | right == wanted
    assert Needs() | left == left
    assert set((right | left).views) == {OWN, NONE}


def test_signals_know_which_rows_have_a_view() -> None:
    signals = Signals({OWN: torch.zeros(3)}, {OWN: torch.tensor([2, 0, 1])})
    assert signals.has(OWN).tolist() == [True, False, True]


def test_select_takes_rows_in_the_order_given_ragged_ones_too() -> None:
    signals = Signals(
        logps={OWN: torch.tensor([-1.0, -2.0, -3.0])},
        num_tokens={OWN: torch.tensor([1, 2, 3])},
        token_logps={OWN: Ragged(torch.arange(6.0), torch.tensor([0, 1, 1, 2, 2, 2]))},
        features={"boxes": Ragged(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0, 2]))},
        sources=("a", "b", "c"),
        host_token_ids={OWN: ((7,), (), (8, 9, 8))},
    )
    picked = signals.select([2, 0])
    assert picked.host_token_ids == {OWN: ((8, 9, 8), (7,))}
    assert picked.logps[OWN].tolist() == [-3.0, -1.0]
    assert picked.num_tokens[OWN].tolist() == [3, 1]
    assert picked.token_logps[OWN].values.tolist() == [3.0, 4.0, 5.0, 0.0]
    assert picked.token_logps[OWN].row.tolist() == [0, 0, 0, 1]
    assert picked.features["boxes"].values.tolist() == [[1.0], [3.0], [2.0]]
    assert picked.features["boxes"].row.tolist() == [0, 0, 1]
    assert picked.sources == ("c", "a")


def test_select_of_no_rows_is_empty_and_keeps_the_graph() -> None:
    logps = torch.zeros(2, requires_grad=True)
    ragged = Ragged(torch.zeros(3, 4), torch.tensor([0, 0, 1]))
    none = Signals({OWN: logps}, {OWN: torch.tensor([1, 1])}, features={"f": ragged}, sources=("a", "b")).select([])
    assert none.logps[OWN].shape == (0,)
    assert none.features["f"].values.shape == (0, 4)
    assert none.sources == ()
    none.logps[OWN].sum().backward()
    assert logps.grad.tolist() == [0.0, 0.0]


def test_loss_is_the_weighted_sum_of_means_and_a_term_without_rows_is_zero() -> None:
    value = torch.tensor(6.0, requires_grad=True)
    terms = (
        Term("a", 2.0, value, torch.tensor(3)),
        Term("b", 0.5, torch.tensor(8.0), torch.tensor(4)),
        Term("c", 1.0, torch.tensor(0.0), torch.tensor(0)),
    )
    loss = Outcome(terms).loss
    assert loss.item() == pytest.approx(2.0 * 6 / 3 + 0.5 * 8 / 4)
    loss.backward()
    assert value.grad.item() == pytest.approx(2 / 3)


def test_needs_for_asks_an_objective_that_tells_sources_apart() -> None:
    class Plain:
        needs = Needs(views=(OWN,))

        def __call__(self, policy: Signals, reference: Signals | None) -> Outcome:
            return Outcome(())

    class Telling(Plain):
        def needs_for(self, source: str) -> Needs:
            return Needs(views=(NONE,)) if source == "text" else self.needs

    assert isinstance(Plain(), Objective)
    assert not isinstance(lambda policy, reference: None, Objective)
    assert needs_for(Plain(), "text").views == (OWN,)
    assert needs_for(Telling(), "text").views == (NONE,)
    assert needs_for(Telling(), "pairs").views == (OWN,)


def test_batch_counts_the_tokens_of_each_view(batch: Batch) -> None:
    assert len(batch) == 2
    assert batch.views == (OWN, NONE)
    assert batch.num_tokens(OWN).tolist() == [2, 0]
    assert batch.num_tokens(NONE).tolist() == [2, 3]
    assert batch.num_tokens(OTHER).tolist() == [0, 0]


def test_batch_tells_the_token_ids_of_the_responses_that_were_scored(batch: Batch) -> None:
    assert batch.token_ids({OWN: (2, 0), NONE: (2, 3)}) == {OWN: ((5, 6), ()), NONE: ((5, 6), (7, 8, 9))}
    assert batch.token_ids({NONE: (0, 3)}) == {NONE: ((), (7, 8, 9))}
    assert batch.token_ids({OTHER: (0, 0)}) == {OTHER: ((), ())}


def test_batch_map_reaches_every_tensor_and_leaves_the_batch_alone(batch: Batch) -> None:
    seen: list[torch.Tensor] = []

    def change(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor + 1

    moved = batch.map(change)
    assert len(seen) == 1 + 3 + 3
    assert moved.images[0]["pixel_values"].unique().tolist() == [2.0]
    assert moved.prefixes[0].extras["mm_token_type_ids"].tolist() == [1, 2, 1]
    assert moved.branches[2].token_ids.tolist() == [8, 9, 10]
    assert batch.branches[2].token_ids.tolist() == [7, 8, 9]
    assert (moved.sources, moved.row_ids, moved.reference_rows) == (batch.sources, batch.row_ids, batch.reference_rows)


def test_batch_moves_its_pixels_and_keeps_ids_on_the_host(batch: Batch) -> None:
    moved = batch.to("meta")
    assert moved.images[0]["pixel_values"].device.type == "meta"
    assert {branch.token_ids.device.type for branch in moved.branches} == {"cpu"}
    assert {prefix.input_ids.device.type for prefix in moved.prefixes} == {"cpu"}


def test_rows_are_known_on_the_host_or_read_off_the_device() -> None:
    counts = {OWN: (2, 0, 3, 1), NONE: (0, 0, 1, 4)}
    tensors = {view: torch.tensor(own) for view, own in counts.items()}
    values = {view: torch.arange(sum(own), dtype=torch.float) for view, own in counts.items()}
    tokens = {view: Ragged(values[view], torch.arange(4).repeat_interleave(tensors[view])) for view in counts}
    logps = {view: torch.randn(4) for view in counts}
    sides = [Signals(logps, tensors, tokens, sources=tuple("abcd"), host_num_tokens=host) for host in (counts, {})]
    for views, any_of, rows in (
        ((OWN,), False, [0, 2, 3]),
        ((OWN, NONE), False, [2, 3]),
        ((NONE, OWN), True, [0, 2, 3]),
    ):
        assert [side.rows_with(views, any_of=any_of).tolist() for side in sides] == [rows, rows]
    for rows in ([3, 0], [1], [], [0, 1, 2, 3]):
        known, read = (side.select(rows) for side in sides)
        assert known.host_num_tokens == {view: tuple(own[row] for row in rows) for view, own in counts.items()}
        for view in counts:
            assert torch.equal(known.num_tokens[view], tensors[view][rows])
            assert torch.equal(known.logps[view], read.logps[view])
            for ours, theirs in zip(known.token_logps[view], read.token_logps[view], strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [[2, 0], [1], [], [0, 1, 2]])
def test_features_are_selected_alike_whether_the_host_knows_their_rows(rows: list[int]) -> None:
    ragged = Ragged(torch.arange(8.0).reshape(4, 2), torch.tensor([2, 0, 2, 1]))
    known = Signals({}, {}, features={"f": ragged}, sources=("a", "b", "c"), host_feature_rows={"f": (2, 0, 2, 1)})
    unknown = Signals({}, {}, features={"f": ragged}, sources=("a", "b", "c"))
    known = replace(known, host_feature_ids={"f": (20, 0, 21, 10)})
    found, expected = known.select(rows), unknown.select(rows)
    of_row = {0: [0], 1: [10], 2: [20, 21]}
    assert list(found.host_feature_ids["f"]) == [number for row in rows for number in of_row[row]]
    assert torch.equal(found.features["f"].values, expected.features["f"].values)
    assert torch.equal(found.features["f"].row, expected.features["f"].row)
    assert list(found.host_feature_rows["f"]) == found.features["f"].row.tolist()
    assert found.sources == expected.sources


def test_a_batch_is_idle_without_responses_and_without_images_of_features(batch: Batch) -> None:
    assert not batch.is_idle
    bare = replace(batch, branches=(), prefixes=())
    assert bare.is_idle
    assert replace(bare, row_images={"image": ((), ())}).is_idle
    assert not replace(bare, row_images={"image": ((), (0,))}).is_idle
