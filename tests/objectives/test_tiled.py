"""Tiles against the whole matrix: losses, gradients, what is nearest, and that no whole matrix is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from live_memory import Largest
from mllm_align.objectives.contrast_rules import Rule
from mllm_align.objectives.identity import Ids, true_pairs
from mllm_align.objectives.nearest import nearest
from mllm_align.objectives.tiled import tiled_info_nce
from mllm_align.objectives.two_sided import info_nce


def drawn(rows: int, dtype: torch.dtype, false: int = 0, seed: int = 0) -> dict[str, Any]:
    """Unit vectors of rows, some of which take no part, and of further texts, some of which do not count."""
    generator = torch.Generator().manual_seed(seed)

    def unit(count: int) -> Tensor:
        return F.normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=1).to(dtype)

    present = torch.rand(rows, generator=generator) < 0.8
    present[:2] = True
    return {
        "images": unit(rows).requires_grad_(),
        "texts": unit(rows).requires_grad_(),
        "present": present,
        "scale": torch.tensor(9.0, dtype=dtype, requires_grad=True),
        "negatives": (unit(false).requires_grad_(), torch.rand(false, generator=generator) < 0.7) if false else None,
    }


def repeated(rows: int, false: int) -> Ids:
    """Some rows share an image, others a text, which some of the further texts are."""
    images, texts = [1 + row % 4 for row in range(rows)], [11 + row % 5 for row in range(rows)]
    return Ids.of(images, texts, true_pairs(images, list(enumerate(texts)), [11 + 2 * k for k in range(false)]), "cpu")


def leaves(given: dict[str, Any]) -> list[Tensor]:
    false = [] if given["negatives"] is None else [given["negatives"][0]]
    return [given["images"], given["texts"], given["scale"], *false]


def whole(given: dict[str, Any], weight: float, sides: str, ids: Ids | None = None) -> tuple[Tensor, Tensor]:
    rule = Rule(positive_weight=weight)
    pair = given["images"], given["texts"], given["present"], given["scale"]
    return info_nce(*pair, rule=rule, sides=sides, negatives=given["negatives"], ids=ids)


@pytest.mark.parametrize("sides", ["both", "image_to_text", "text_to_image"])
@pytest.mark.parametrize("weight", [1.0, 0.0, 0.4])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("rows", "false", "tile"), [(7, 0, 3), (7, 5, 2), (6, 4, 6), (5, 9, 100), (9, 2, 1)])
def test_tiles_are_the_whole(rows: int, false: int, tile: int, twice: bool, weight: float, sides: str) -> None:
    ids = repeated(rows, false) if twice else None
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        given = drawn(rows, dtype, false)
        expected, cosines = whole(given, weight, sides, ids)
        got, near = tiled_info_nce(**given, tile=tile, positive_weight=weight, sides=sides, ids=ids)
        torch.testing.assert_close(got, expected, atol=close, rtol=0)
        arriving = torch.randn(rows, dtype=dtype)
        wanted = torch.autograd.grad((expected * arriving).sum(), leaves(given), materialize_grads=True)
        found = torch.autograd.grad((got * arriving).sum(), leaves(given))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=10 * close, rtol=0)
        cosine = cosines.detach() / given["scale"].detach()
        there = given["present"]
        for one, other in zip(near, nearest(cosine, there, ids), strict=True):
            torch.testing.assert_close(one[there], other[there].to(dtype), atol=close, rtol=0)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_gradients(weight: float, twice: bool) -> None:
    given = drawn(5, torch.float64, 3)
    ids = repeated(5, 3) if twice else None

    def losses(images: Tensor, texts: Tensor, log_scale: Tensor, false: Tensor) -> Tensor:
        counts = given["negatives"][1]
        pair = images, texts, given["present"], log_scale.exp()
        return tiled_info_nce(*pair, 2, negatives=(false, counts), positive_weight=weight, ids=ids)[0]

    log_scale = given["scale"].detach().log().requires_grad_()
    assert torch.autograd.gradcheck(losses, (given["images"], given["texts"], log_scale, given["negatives"][0]))


@pytest.mark.parametrize("twice", [False, True])
def test_no_matrix_of_all_pairs_is_made(twice: bool) -> None:
    """What is made is no larger than a tile or the vectors themselves; of the whole matrix it is."""
    given = drawn(64, torch.float32, 48)
    ids = Ids.of([1 + row // 2 for row in range(64)], range(100, 164), [(3, 5)], "cpu") if twice else None
    with Largest() as tiles:
        tiled_info_nce(**given, tile=16, ids=ids)[0].sum().backward()
    assert tiles.numbers == 64 * 6
    with Largest() as matrix:
        whole(given, 1.0, "both")[0].sum().backward()
    assert matrix.numbers >= 64 * (64 + 48)


def test_what_is_kept_for_the_backward_pass_is_linear_in_rows() -> None:
    kept: list[int] = []

    def packed(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    given = drawn(64, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        tiled_info_nce(**given, tile=16)
    assert sum(kept) <= 64 * (2 * 6 + 2 + 3) + 1
    assert sum(kept) < 64 * 64


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_rows_that_are_all_alike_have_no_negative(weight: float) -> None:
    given = drawn(4, torch.float32, 2)
    given["scale"] = torch.tensor(100.0, requires_grad=True)
    ids = Ids.of([7] * 4, [1, 2, 3, 4], [(row, place) for row in range(4) for place in range(2)], "cpu")
    losses, near = tiled_info_nce(**given, tile=3, positive_weight=weight, ids=ids)
    losses.sum().backward()
    assert losses.tolist() == [0] * 4
    assert not any(leaf.grad.any() for leaf in leaves(given))
    assert torch.isneginf(near.text).all()


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_rows_without_a_negative_and_none_at_all(weight: float) -> None:
    for present in ([False, True, False], [False] * 3):
        given = drawn(3, torch.float32) | {"present": torch.tensor(present)}
        given["scale"] = torch.tensor(100.0, requires_grad=True)
        losses, near = tiled_info_nce(**given, tile=2, positive_weight=weight)
        losses.sum().backward()
        assert losses.tolist() == [0, 0, 0]
        for leaf in leaves(given):
            assert leaf.grad is not None
            assert not leaf.grad.any()
        assert torch.isneginf(near.text[given["present"]]).all()


def test_extreme_similarities_are_numbers() -> None:
    """A difference of 200 between logits, in float32."""
    given = drawn(4, torch.float32)
    ends = torch.tensor([[1.0, 0], [-1.0, 0], [1.0, 0], [-1.0, 0]])
    given |= {"images": ends.clone().requires_grad_(), "texts": ends.flip(0).clone().requires_grad_()}
    given |= {"scale": torch.tensor(100.0, requires_grad=True), "present": torch.ones(4, dtype=torch.bool)}
    for weight in (1.0, 0.0):
        losses = tiled_info_nce(**given, tile=3, positive_weight=weight)[0]
        torch.testing.assert_close(losses, whole(given, weight, "both")[0])
        assert all(torch.isfinite(each).all() for each in torch.autograd.grad(losses.sum(), leaves(given)))


def test_half_precision_is_summed_in_float32() -> None:
    given = drawn(40, torch.bfloat16)
    losses, _ = tiled_info_nce(**given, tile=16)
    exact = {name: value.double() if name in ("images", "texts", "scale") else value for name, value in given.items()}
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), whole(exact, 1.0, "both")[0], atol=1e-5, rtol=0)
    losses.sum().backward()
    assert given["images"].grad.dtype == torch.bfloat16


def test_autocast_changes_nothing() -> None:
    given = drawn(8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = tiled_info_nce(**given, tile=3)
    torch.testing.assert_close(inside, tiled_info_nce(**given, tile=3)[0], atol=0, rtol=0)
