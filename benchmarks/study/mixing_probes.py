"""What a frozen tower's patch tokens tell of an object: probes that are trained on them and asked on other scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixing_towers import Pictures, cells

ATTRIBUTES = ("colour", "shape", "size")
DECAYS = (1e-4, 1e-2)
HIDDEN, STEPS = 128, 300


def object_tokens(tokens: Tensor, shown: Pictures) -> Tensor:
    """(O, d): of (N, cells, d) the token of every object's patch."""
    rows = [row for row, scene in enumerate(shown.scenes) for _ in scene.items]
    return tokens[rows, [cell for scene in shown.scenes for cell in cells(scene)]]


def probe(read: Callable[[Pictures], Tensor], train: Pictures, test: Pictures, hidden: int = 0) -> dict[str, float]:
    """By attribute the accuracy on `test` of a probe trained on `train`.

    Args:
        read: Pictures to the (N, cells, d) tokens of a tower.
        train: Whose objects' tokens and attributes train it.
        test: Pictures with other scenes.
        hidden: Width of a hidden layer; without one the probe is linear.

    Returns:
        The better of two weight decays, so that what is there is found rather than missed.
    """
    own, other = (object_tokens(read(shown), shown).double() for shown in (train, test))
    mean, std = own.mean(dim=0), own.std(dim=0).clamp(min=1e-12)
    own, other = ((tokens - mean) / std for tokens in (own, other))
    found = {}
    for attribute in ATTRIBUTES:
        names = sorted({getattr(item, attribute) for scene in train.scenes for item in scene.items})
        labels, wanted = (_labels(shown, attribute, names) for shown in (train, test))
        found[attribute] = max(
            _trained(own, labels, len(names), decay, hidden)(other).argmax(dim=-1).eq(wanted).double().mean().item()
            for decay in DECAYS
        )
    return found


def _labels(shown: Pictures, attribute: str, names: Sequence[str]) -> Tensor:
    return torch.tensor([names.index(getattr(item, attribute)) for scene in shown.scenes for item in scene.items])


def _trained(tokens: Tensor, labels: Tensor, classes: int, decay: float, hidden: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = tokens.shape[1]
        layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, classes)] if hidden else []
        head = nn.Sequential(*(layers or [nn.Linear(width, classes)])).double()
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        penalty = sum(weight.square().sum() for weight in head.parameters())
        loss = F.cross_entropy(head(tokens), labels) + decay * penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return head
