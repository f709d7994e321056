"""Both ways at once, with every kind of further key, against loops; and which options go together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mllm_align.objectives import two_sided
from mllm_align.objectives.contrast_rules import INFO_NCE, Rule
from mllm_align.objectives.identity import Ids, true_pairs
from mllm_align.objectives.mochi import Mixing, drawn, generator_of, synthetic
from mllm_align.objectives.pairs import Compared
from mllm_align.objectives.two_sided import TwoSided, info_nce

SCALE = torch.tensor(4.0, dtype=torch.float64)
PLAIN: dict[str, Any] = {
    "rule": INFO_NCE,
    "sides": "both",
    "soft_targets": 0.0,
    "mixing": None,
    "tile": None,
    "continuous": False,
    "keys": False,
    "memory": False,
}


def unit(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 5, dtype=torch.float64), dim=1)


def cross_entropy(own: float, others: list[float]) -> float:
    return math.log(math.exp(own) + sum(map(math.exp, others))) - own


@pytest.mark.parametrize("sides", ["both", "image_to_text", "text_to_image"])
def test_images_see_false_texts_and_texts_see_images_alone(sides: str) -> None:
    images, texts, false = unit(4), unit(4), unit(5)
    present, counts = torch.tensor([True, True, False, True]), torch.tensor([True, False, True, True, True])
    losses, cosines = info_nce(images, texts, present, SCALE, sides=sides, negatives=(false, counts))
    torch.testing.assert_close(cosines, SCALE * images @ texts.T)
    rows = [0, 1, 3]
    for n in range(4):
        if n not in rows:
            assert losses[n] == 0
            continue
        others = [4 * float(images[n] @ texts[m]) for m in rows if m != n]
        others += [4 * float(images[n] @ false[m]) for m in range(5) if counts[m]]
        own = 4 * float(images[n] @ texts[n])
        seen = cross_entropy(own, others)
        read = cross_entropy(own, [4 * float(images[m] @ texts[n]) for m in rows if m != n])
        expected = {"both": (seen + read) / 2, "image_to_text": seen, "text_to_image": read}[sides]
        assert losses[n].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_what_was_read_twice_is_left_out(weight: float) -> None:
    """Rows 0 and 3 have one image, 1 and 4 one text, 5 is unlike all; rows 0 and 5 list texts of others."""
    read, said, listed = [1, 2, 3, 1, 4, 0], [11, 12, 13, 14, 12, 0], [14, 12, 19, 0]
    images, texts, false = unit(6), unit(6), unit(4)
    present, counts = torch.tensor([True, True, False, True, True, True]), torch.ones(4, dtype=torch.bool)
    ids = Ids.of(read, said, true_pairs(read, list(enumerate(said)), listed), "cpu")
    rule = Rule(positive_weight=weight)
    losses, _ = info_nce(images, texts, present, SCALE, rule=rule, negatives=(false, counts), ids=ids)
    rows = [0, 1, 3, 4, 5]
    alike, true = {(0, 3), (3, 0), (1, 4), (4, 1)}, {(0, 0), (3, 0), (1, 1), (4, 1)}

    def loss(own: float, others: list[float]) -> float:
        return math.log(weight * math.exp(own) + sum(map(math.exp, others))) - own

    for n in rows:
        own = 4 * float(images[n] @ texts[n])
        apart = [m for m in rows if m != n and (n, m) not in alike]
        others = [4 * float(images[n] @ texts[m]) for m in apart]
        others += [4 * float(images[n] @ false[m]) for m in range(4) if (n, m) not in true]
        back = [4 * float(images[m] @ texts[n]) for m in apart]
        assert losses[n].item() == pytest.approx((loss(own, others) + loss(own, back)) / 2, abs=1e-12)
    assert losses[2] == 0


def test_a_worked_number() -> None:
    cosines = torch.tensor([[0.8, 0.2], [0.1, 0.6]], dtype=torch.float64)
    losses, _ = info_nce(cosines, torch.eye(2).double(), torch.ones(2, dtype=torch.bool), 2.5 * SCALE)
    assert losses.mean().item() == pytest.approx(0.0070631070, abs=1e-10)


def test_swapped_sides_swap_the_ways() -> None:
    images, texts, present = unit(4), unit(4), torch.ones(4, dtype=torch.bool)
    for rule in (INFO_NCE, Rule(positive_weight=0.0, sigma=0.5), Rule(beta=1.0, tau_plus=0.1)):
        one, other = (
            info_nce(*pair, present, SCALE, rule=rule, sides=sides)[0]
            for pair, sides in (((images, texts), "image_to_text"), ((texts, images), "text_to_image"))
        )
        torch.testing.assert_close(one, other)


def test_permuted_rows_permute_the_losses() -> None:
    images, texts, false = unit(5), unit(5), (unit(2), torch.ones(2, dtype=torch.bool))
    present, order = torch.tensor([True, True, True, False, True]), torch.tensor([3, 1, 0, 4, 2])
    before, _ = info_nce(images, texts, present, SCALE, negatives=false)
    after, _ = info_nce(images[order], texts[order], present[order], SCALE, negatives=false)
    torch.testing.assert_close(after, before[order])


def test_what_is_listed_is_told_from_what_is_in_the_batch() -> None:
    """The hardness of one kind of negative; those of a memory are of the batch."""
    images, texts, false, earlier = unit(3), unit(3), unit(2), unit(2)
    present, every = torch.ones(3, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)
    for on, of_batch, of_listed in (("in_batch", 2.0, 0.0), ("explicit", 0.0, 2.0), ("all", 2.0, 2.0)):
        losses, _ = info_nce(
            images,
            texts,
            present,
            SCALE,
            ((earlier, every), (earlier, every)),
            rule=Rule(hardness=2.0, hardness_on=on),
            sides="image_to_text",
            negatives=(false, every[0]),
        )
        for n in range(3):
            others = [
                (4 + of_batch) * float(images[n] @ v) for v in (*(texts[m] for m in range(3) if m != n), *earlier)
            ]
            others += [(4 + of_listed) * float(images[n] @ v) for v in false]
            assert losses[n].item() == pytest.approx(cross_entropy(4 * float(images[n] @ texts[n]), others), abs=1e-12)


def test_rows_that_take_no_part_are_no_positives_either() -> None:
    images, texts = unit(3), unit(3)
    weights = torch.rand(3, 3, dtype=torch.float64)
    present = torch.tensor([True, False, True])
    kept = present.nonzero().flatten()
    losses, _ = info_nce(images, texts, present, SCALE, weights=(weights, None))
    fewer, _ = info_nce(images[kept], texts[kept], present[kept], SCALE, weights=(weights[kept][:, kept], None))
    torch.testing.assert_close(losses[kept], fewer)
    both, _ = info_nce(images, texts, present, SCALE, weights=(weights, weights), sides="text_to_image")
    assert not torch.allclose(both, info_nce(images, texts, present, SCALE, sides="text_to_image")[0])


def test_synthetic_negatives_are_further_keys() -> None:
    images, texts, present = unit(4), unit(4), torch.ones(4, dtype=torch.bool)
    mixing = Mixing(hardest=2, of_keys=3, of_anchor=2)
    losses, _ = info_nce(images, texts, present, SCALE, mixing=(mixing, generator_of(("a",), 0)))
    generator, apart = generator_of(("a",), 0), ~torch.eye(4, dtype=torch.bool)
    total = torch.zeros(4, dtype=torch.float64)
    for anchors, keys in ((images, texts), (texts, images)):
        made, _ = synthetic(anchors, keys, apart, 2, drawn(4, mixing, generator, anchors))
        for n in range(4):
            others = [4 * float(anchors[n] @ keys[m]) for m in range(4) if m != n] + (4 * made[n]).tolist()
            total[n] += 0.5 * cross_entropy(4 * float(anchors[n] @ keys[n]), others)
    torch.testing.assert_close(losses, total)
    again, _ = info_nce(images, texts, present, SCALE, mixing=(mixing, generator_of(("a",), 0)))
    assert torch.equal(losses, again)


def compared(count: int) -> Compared:
    present = torch.ones(count, dtype=torch.bool)
    none = torch.zeros(0, 5, dtype=torch.float64)
    return Compared(unit(count), unit(count), present, torch.arange(count), none, torch.zeros(0, dtype=torch.long))


def test_many_rows_are_tiled_where_nothing_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles: list[int] = []
    real = two_sided.tiled_info_nce
    monkeypatch.setattr(two_sided, "tiled_info_nce", lambda *a, **k: tiles.append(a[4]) or real(*a, **k))
    monkeypatch.setattr(two_sided, "TILE", 6)

    def losses(found: Compared, **options: Any) -> torch.Tensor:
        return TwoSided(**{**PLAIN, **options}).losses(found, found, SCALE, None, None, (None, None), ())[0]

    few, many = compared(6), compared(7)
    losses(few)
    losses(many, rule=Rule(beta=1.0))
    assert tiles == []
    whole, _ = info_nce(many.images, many.texts, many.present, SCALE)
    torch.testing.assert_close(losses(many), whole)
    torch.testing.assert_close(losses(many, tile=3), whole)
    decoupled, _ = info_nce(many.images, many.texts, many.present, SCALE, rule=Rule(positive_weight=0.0))
    torch.testing.assert_close(losses(many, rule=Rule(positive_weight=0.0)), decoupled)
    assert tiles == [6, 3, 6]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sides": "image"}, "sides must be one of both, image_to_text, text_to_image, got 'image'"),
        ({"continuous": True, "sides": "text_to_image"}, "continuous weighs the positives of images"),
        ({"continuous": True, "rule": Rule(sigma=0.5)}, "leave sides and sigma of rule out"),
        ({"soft_targets": 0.4, "rule": Rule(beta=1.0)}, "soft_targets are a rule of their own: leave rule out"),
        ({"soft_targets": 0.4, "continuous": True, "mixing": Mixing()}, "leave continuous, mixing out"),
        ({"tile": 0}, "tile must be a whole number above 0, or nothing, got 0"),
        ({"tile": True}, "tile must be a whole number above 0, or nothing, got True"),
        ({"tile": 4, "memory": True}, "memory needs all similarities at once: leave tile out"),
        ({"tile": 4, "rule": Rule(hardness=1.0), "keys": True}, "momentum, rule needs all similarities at once"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"InfoNCE: .*{told}|InfoNCE: {told}"):
        TwoSided(**{**PLAIN, **options})
