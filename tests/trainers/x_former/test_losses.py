"""Each loss against loops in float64, and which partners are drawn."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mllm_align.trainers.x_former.losses import (
    contrast_loss,
    generation_loss,
    hard_negatives,
    matching_loss,
    reconstruction_loss,
    similarities,
)

# Rows 1 and 3 share a text, rows 0 and 4 a picture.
SHARED = ((1, 3), (0, 4))
COUNT = 5


def same() -> torch.Tensor:
    found = torch.eye(COUNT, dtype=torch.bool)
    for one, other in SHARED:
        found[one, other] = found[other, one] = True
    return found


def unit(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def cross_entropy(scores: list[float], own: int, smoothing: float) -> float:
    total = sum(math.exp(score) for score in scores)
    logs = [score - math.log(total) for score in scores]
    return -((1 - smoothing) * logs[own] + smoothing * sum(logs) / len(logs))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_contrast_is_that_of_the_loops(smoothing: float) -> None:
    queries, texts, temperature = unit(COUNT, 3, 4, seed=0), unit(COUNT, 4, seed=1), 0.2
    total, shared = 0.0, same()
    for row in range(COUNT):
        candidates = [other for other in range(COUNT) if other == row or not shared[row, other]]
        image_to_text, text_to_image = [], []
        for other in candidates:
            image_to_text.append(max(float(query @ texts[other]) for query in queries[row]) / temperature)
            text_to_image.append(max(float(query @ texts[row]) for query in queries[other]) / temperature)
        own = candidates.index(row)
        total += cross_entropy(image_to_text, own, smoothing) + cross_entropy(text_to_image, own, smoothing)
    found = contrast_loss(
        similarities(queries, texts, torch.tensor(temperature, dtype=torch.float64)), shared, smoothing
    )
    assert found.item() == pytest.approx(total / COUNT / 2, abs=1e-12)


def test_contrast_without_sharing_is_cross_entropy() -> None:
    scores = unit(COUNT, COUNT, seed=2) * 3
    own = torch.arange(COUNT)
    plain = [F.cross_entropy(each, own, label_smoothing=0.1) for each in (scores, scores.T)]
    found = contrast_loss(scores, torch.eye(COUNT, dtype=torch.bool), 0.1)
    torch.testing.assert_close(found, sum(plain) / 2)


def test_gradient_of_contrast() -> None:
    raw, texts = (each.requires_grad_() for each in (unit(COUNT, 2, 3, seed=3), unit(COUNT, 3, seed=4)))
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(queries: torch.Tensor, texts: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        return contrast_loss(similarities(queries, texts, temperature), same(), 0.1)

    assert torch.autograd.gradcheck(loss, (raw, texts, temperature))


def test_wrong_partners_share_nothing_and_are_drawn_by_similarity() -> None:
    scores = unit(COUNT, COUNT, seed=5) * 4
    generator, drawn, shared, rounds = torch.Generator().manual_seed(0), Counter(), same(), 3000
    for _ in range(rounds):
        found = hard_negatives(scores, shared, generator)
        assert found.there.all()
        for row in range(COUNT):
            assert not shared[row, found.image[row]]
            assert not shared[row, found.text[row]]
            drawn["image", row, int(found.image[row])] += 1
            drawn["text", row, int(found.text[row])] += 1
    for row in range(COUNT):
        for kind, of_row in (("image", scores[:, row]), ("text", scores[row])):
            weights = [0 if shared[row, other] else math.exp(of_row[other]) for other in range(COUNT)]
            for other, weight in enumerate(weights):
                assert drawn[kind, row, other] / rounds == pytest.approx(weight / sum(weights), abs=0.04)


def test_a_pair_that_shares_with_all_has_no_wrong_partner() -> None:
    shared = torch.eye(3, dtype=torch.bool)
    shared[0] = shared[:, 0] = True
    found = hard_negatives(torch.zeros(3, 3), shared)
    assert found.there.tolist() == [False, True, True]
    assert found.image[1:].tolist() == found.text[1:].tolist() == [2, 1]


def test_matching_decides_over_the_mean_of_queries() -> None:
    logits, labels = unit(4, 3, 2, seed=6), torch.tensor([1, 0, 0, 1])
    total = 0.0
    for row, label in enumerate(labels.tolist()):
        mean = [float(logits[row, :, side].sum()) / 3 for side in range(2)]
        total += cross_entropy(mean, label, 0)
    assert matching_loss(logits, labels).item() == pytest.approx(total / 4, abs=1e-6)


def test_generation_is_the_mean_over_tokens_that_are_there() -> None:
    logits, targets = unit(2, 3, 5, seed=7), torch.tensor([[1, 4, -100], [2, -100, -100]])
    terms = [
        cross_entropy(logits[row, place].tolist(), target, 0)
        for row in range(2)
        for place, target in enumerate(targets[row].tolist())
        if target >= 0
    ]
    assert generation_loss(logits, targets).item() == pytest.approx(sum(terms) / len(terms), abs=1e-6)


@pytest.mark.parametrize("normalise", [False, True])
def test_reconstruction_is_that_of_the_autoencoder_itself(normalise: bool) -> None:
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        decoder_hidden_size=32,
        decoder_intermediate_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        image_size=32,
        patch_size=8,
        mask_ratio=0.5,
        norm_pix_loss=normalise,
    )
    model = ViTMAEForPreTraining(config).eval()
    pixels, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    whole = model(pixels, noise=noise)
    seen = model.vit(pixels, noise=noise)
    predicted = model.decoder(seen.last_hidden_state, seen.ids_restore).logits
    found = reconstruction_loss(predicted, model.patchify(pixels), seen.mask, normalise=normalise)
    torch.testing.assert_close(found, whole.loss)
