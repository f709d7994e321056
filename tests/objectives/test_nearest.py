"""What is nearest, against loops; vectors that are all alike find nothing."""

from __future__ import annotations

import pytest
import torch

from mllm_align.objectives.identity import Ids
from mllm_align.objectives.nearest import nearer_than_false, nearest, tolerance


@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_loops_find(seed: int) -> None:
    torch.manual_seed(seed)
    cosines = (2 * torch.rand(6, 6, dtype=torch.float64) - 1).mul(4).round() / 4
    present = torch.tensor([True, True, False, True, True, True])
    there = [n for n in range(6) if present[n]]
    found = nearest(cosines, present)
    told = found.metrics(torch.tensor(there))
    for place, n in enumerate(there):
        own = cosines[n, n].item()
        texts = [cosines[n, m].item() for m in there if m != n]
        images = [cosines[m, n].item() for m in there if m != n]
        assert (found.text[n].item(), found.image[n].item()) == (max(texts), max(images))
        assert told["accuracy/image_to_text"][place] == (own > max(texts))
        assert told["accuracy/text_to_image"][place] == (own > max(images))
        assert told["ties"][place] == texts.count(own) + images.count(own)
    assert told["ties"].sum() > 0


def test_what_was_read_twice_is_no_competitor() -> None:
    cosines = torch.tensor([[0.5, 0.9, 0.1], [0.5, 0.4, 0.0], [0.2, 0.7, 0.6]])
    present = torch.ones(3, dtype=torch.bool)
    found = nearest(cosines, present, Ids.of([1, 1, 0], [3, 4, 5], [], "cpu"))
    assert found.text.tolist() == pytest.approx([0.1, 0.0, 0.7])
    assert found.image.tolist() == pytest.approx([0.2, 0.7, 0.1])
    assert found.ties.tolist() == [0, 0, 0]
    assert nearest(cosines, present).ties.tolist() == [1, 0, 0]


@pytest.mark.parametrize("count", [2, 5])
def test_vectors_that_are_all_alike_find_nothing(count: int) -> None:
    """Rounded in whatever order: a difference in the last place is none."""
    cosines = torch.ones(count, count) + (torch.rand(count, count) - 0.5) * torch.finfo(torch.float32).eps * 4
    cosines.fill_diagonal_(1 + 1e-7)
    told = nearest(cosines, torch.ones(count, dtype=torch.bool)).metrics(torch.arange(count))
    assert told["accuracy/image_to_text"].tolist() == [0] * count
    assert told["accuracy/text_to_image"].tolist() == [0] * count
    assert told["ties"].tolist() == [2 * (count - 1)] * count


def test_a_difference_that_is_one_counts() -> None:
    for dtype in (torch.float32, torch.float64):
        step = 3 * tolerance(dtype)
        cosines = torch.tensor([[0.5, 0.5 - step], [0.5 + step, 0.5]], dtype=dtype)
        told = nearest(cosines, torch.ones(2, dtype=torch.bool)).metrics(torch.arange(2))
        assert told["accuracy/image_to_text"].tolist() == [1, 0]
        assert told["accuracy/text_to_image"].tolist() == [0, 1]
        assert told["ties"].tolist() == [0, 0]


def test_texts_that_are_false() -> None:
    own, cosines = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.4, 0.6, 0.5, 0.3, 0.1])
    owner = torch.tensor([0, 0, 1, 3, 3])
    assert nearer_than_false(own, cosines, owner, [0, 1, 3]).tolist() == [0, 0, 1]
    assert nearer_than_false(own, cosines[:0], owner[:0], []).numel() == 0
