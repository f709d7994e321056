"""Losses of dual encoders: against transformers' own, and against plain loops where clusters decide."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from mllm_align.objectives.pair_losses import sigmoid_pairs, softmax_pairs
from tiny_duals import dual

LOSSES = {"clip": softmax_pairs, "siglip": sigmoid_pairs}


@pytest.mark.parametrize("name", LOSSES)
def test_with_all_negatives_it_is_the_models_own_loss(name: str) -> None:
    torch.manual_seed(0)
    model = dual(name)[0].eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.3)
    size = model.config.vision_config.image_size
    words = torch.randint(3, 12, (5, 8))
    words[:, -1] = 2
    output = model(input_ids=words, pixel_values=torch.randn(5, 3, size, size), return_loss=True)
    images, texts = normalize(output.image_embeds, dim=1), normalize(output.text_embeds, dim=1)
    bias = getattr(model, "logit_bias", None)
    losses = LOSSES[name](images, texts, ~torch.eye(5, dtype=torch.bool), model.logit_scale.exp(), bias)
    torch.testing.assert_close(losses.mean(), output.loss)


def drawn(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    images, texts = (normalize(torch.randn(6, 4, dtype=dtype), dim=1) for _ in range(2))
    cluster = torch.tensor([0, 0, 1, 0, 1, 2])
    negative = (cluster[:, None] == cluster) & ~torch.eye(6, dtype=torch.bool)
    negative[0, 3] = negative[3, 0] = False  # they have one caption
    return images, texts, negative


def test_negatives_alone_count() -> None:
    images, texts, negative = drawn()
    scale, bias = torch.tensor(5.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    softmax, sigmoid = [], []
    for i in range(6):
        others = [j for j in range(6) if negative[i, j]]
        score = [[5.0 * float(images[a] @ texts[b]) for b in range(6)] for a in range(6)]
        first = math.log(sum(math.exp(score[i][j]) for j in [i, *others])) - score[i][i]
        second = math.log(sum(math.exp(score[j][i]) for j in [i, *others])) - score[i][i]
        softmax.append((first + second) / 2)
        own = math.log1p(math.exp(-(score[i][i] - 1.0)))
        sigmoid.append(own + sum(math.log1p(math.exp(score[i][j] - 1.0)) for j in others))
    wanted = torch.tensor(softmax, dtype=torch.float64)
    found = softmax_pairs(images, texts, negative, scale, bias)
    torch.testing.assert_close(found, wanted)
    assert found[5] == 0  # alone in its cluster
    wanted = torch.tensor(sigmoid, dtype=torch.float64)
    torch.testing.assert_close(sigmoid_pairs(images, texts, negative, scale, bias), wanted)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_gradients(loss) -> None:
    images, texts, negative = drawn()
    scale, bias = torch.tensor(2.0, dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
    leaves = [each.requires_grad_() for each in (images, texts, scale, bias)]
    assert torch.autograd.gradcheck(lambda a, b, s, c: loss(a, b, negative, s, c), leaves)
