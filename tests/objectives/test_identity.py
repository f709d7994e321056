"""What was read twice is no negative: the numbers themselves, and every contrast of images and texts with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mllm_align.contract import Ragged, Signals
from mllm_align.objectives import TSVLC, AmclLike, CacrLike, InfoNCE, SigLIP, Symile
from mllm_align.objectives.identity import Ids, first_places, marked, true_pairs
from mllm_align.objectives.pairs import Pairs

SIZE, WIDTH, PRIVATE = 5, 12, 11
ASK: dict[str, Any] = {"image_prompt": "See:", "text_prompt": "Read:"}
LISTED = {**ASK, "negatives": True}
ROWS = {"negatives": [1, 2, 2, 4], "positives": [0, 1, 3]}


def test_true_pairs_are_those_of_a_loop() -> None:
    images, texts, listed = [7, 7, 0, 0, 9], [1, 2, 3, 3, 0], [2, 0, 3, 4, 1, 3]
    found = true_pairs(images, list(enumerate(texts)), listed)
    expected = []
    for place, number in enumerate(listed):
        for row in range(5):
            of_image = [other for other in range(5) if other == row or images[row] == images[other] != 0]
            if number and number in [texts[other] for other in of_image]:
                expected.append((row, place))
    assert found == expected
    assert len(found) == 8


def test_rows_are_alike_that_share_an_image_or_a_text() -> None:
    images, texts = [7, 7, 0, 0, 9], [1, 2, 3, 3, 2]
    ids = Ids.of(images, texts, [], "cpu")
    alike = ids.alike()
    for i in range(5):
        for j in range(5):
            shared = images[i] == images[j] != 0 or texts[i] == texts[j] != 0
            assert alike[i, j] == (shared and i != j)
    assert torch.equal(ids.alike(slice(1, 3), slice(0, 4)), alike[1:3, :4])
    places = torch.tensor([4, 0, 1])
    assert torch.equal(ids.alike(places, places), alike[places][:, places])
    assert ids.repeated
    assert not Ids.of([1, 0, 0], [2, 3, 0], [], "cpu").repeated
    assert Ids.of([0, 0, 0], [2, 3, 0], [(1, 0)], "cpu").repeated


def test_parts_of_a_table_are_marked() -> None:
    pairs = torch.tensor([[0, 2, 2, 3, 3], [1, 0, 2, 4, 4]])
    whole = torch.zeros(4, 5, dtype=torch.bool)
    whole[pairs[0], pairs[1]] = True
    for rows in (slice(0, 4), slice(1, 3), slice(3, 4)):
        for columns in (slice(0, 5), slice(0, 2), slice(2, 5)):
            assert torch.equal(marked(pairs, rows, columns), whole[rows, columns])
    assert not marked(pairs[:, :0], slice(0, 2), slice(0, 2)).any()


def test_first_places() -> None:
    assert first_places([5, 0, 5, 6, 0, 6, 5]) == [0, 1, 0, 3, 4, 3, 0]


def kind_of(name: str) -> str:
    return next((kind for kind in ("image:", "negatives", "positives", "third") if kind in name), "text")


def signals(objective: Any, values: dict[str, torch.Tensor], ids: dict[str, list[int]] | None) -> Signals:
    """Each kind of feature by its values; a slower model's are the same."""
    rows = {kind: ROWS.get(kind, list(range(SIZE))) for kind in values}
    kinds = {feature.name: kind_of(feature.name) for feature in objective.needs.features}
    return Signals(
        {},
        {},
        features={name: Ragged(values[kind], torch.tensor(rows[kind])) for name, kind in kinds.items()},
        sources=("a",) * SIZE,
        host_feature_rows={name: tuple(rows[kind]) for name, kind in kinds.items()},
        host_feature_ids={} if ids is None else {name: tuple(ids[kind]) for name, kind in kinds.items()},
    )


def table_of(case: str, sign: float) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    """Vectors with a dimension that a pair which is no negative has to itself; the sign there is that pair's part."""
    generator = torch.Generator().manual_seed(1)
    kinds = {"image:": SIZE, "text": SIZE, "third": SIZE, "negatives": 4, "positives": 3}
    values = {
        kind: torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) for kind, count in kinds.items()
    }
    ids = {kind: [100 * place + row + 1 for row in range(kinds[kind])] for place, kind in enumerate(kinds)}
    for value in values.values():
        value[:, PRIVATE] = 0
    values["image:"][0, PRIVATE] = 2
    if case == "image":
        ids["image:"][1] = ids["image:"][0]
        values["text"][1, PRIVATE], values["third"][1, PRIVATE] = 2 * sign, 1
    elif case == "text":
        ids["text"][1] = ids["text"][0]
        values["text"][1, PRIVATE], values["third"][0, PRIVATE] = 2 * sign, 1
    elif case == "listed":
        # By row 2, and it is the text of row 0; row 1 has the same image as this.
        ids["negatives"][1], ids["image:"][1] = ids["text"][0], ids["image:"][0]
        values["negatives"][1, PRIVATE], values["image:"][1, PRIVATE] = 2 * sign, 2
    elif case == "listed by its own row":
        ids["negatives"][3] = ids["text"][4]
        values["image:"][0, PRIVATE] = 0
        values["negatives"][3, PRIVATE], values["image:"][4, PRIVATE] = 2 * sign, 2
    elif case == "paraphrase":
        ids["positives"][1] = ids["text"][0]
        values["positives"][1, PRIVATE] = 2 * sign
    return values, ids


def heads() -> AmclLike:
    """One head, which leaves vectors as they are."""
    objective = AmclLike(heads=1, dim=WIDTH)
    objective.set_widths({feature.name: WIDTH for feature in objective.needs.features})
    for side in ("image", "text"):
        torch.nn.init.eye_(objective.pairs.heads[side].projection.weight)
    return objective.double()


BOTH = ("image", "text")
FALSE = ("listed", "listed by its own row")
OBJECTIVES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "info_nce": (lambda: InfoNCE(**LISTED), BOTH + FALSE),
    "tiled": (lambda: InfoNCE(**LISTED, tile=2), BOTH + FALSE),
    "of dimensions": (lambda: InfoNCE(**LISTED, dimensions=(6,)), BOTH + FALSE),
    "dcl": (lambda: InfoNCE.dcl(**LISTED), BOTH + FALSE),
    "dclw": (lambda: InfoNCE.dclw(**LISTED), BOTH + FALSE),
    "hcl": (lambda: InfoNCE.hcl(**LISTED), BOTH + FALSE),
    "hn_nce": (lambda: InfoNCE.hn_nce_like(**LISTED), BOTH + FALSE),
    "llave": (lambda: InfoNCE.llave(**LISTED), BOTH + FALSE),
    "uni_me": (lambda: InfoNCE.uni_me(**LISTED, margin=2.0), BOTH + FALSE),
    "cwcl": (lambda: InfoNCE.cwcl(None, **LISTED), BOTH + FALSE),
    "mochi": (lambda: InfoNCE.mochi_like(2, 3, 3, **LISTED), BOTH + FALSE),
    "soft targets": (lambda: InfoNCE(momentum=0.9, soft_targets=0.4, **ASK), BOTH),
    "siglip in tiles": (lambda: SigLIP(bias=0.0, tile=2, **LISTED), BOTH + FALSE),
    "siglip": (lambda: SigLIP(bias=0.0, **LISTED), BOTH + FALSE),
    "cacr": (CacrLike, (*BOTH, "paraphrase")),
    "amcl": (heads, BOTH),
    "tsvlc": (TSVLC, (*BOTH, *FALSE, "paraphrase")),
    "symile": (Symile, BOTH),
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, (_, cases) in OBJECTIVES.items() for case in cases])
def test_such_a_pair_has_no_part_in_any_contrast(name: str, case: str) -> None:
    """Without numbers it has."""
    told, untold = [], []
    for sign in (1.0, -1.0):
        values, ids = table_of(case, sign)
        objective = OBJECTIVES[name][0]()
        told.append(objective(signals(objective, values, ids), None))
        untold.append(objective(signals(objective, values, None), None))
    torch.testing.assert_close(told[0].loss, told[1].loss, atol=1e-9, rtol=0)
    assert abs(untold[0].loss - untold[1].loss).item() > 1e-4
    assert told[0].metrics.keys() == told[1].metrics.keys()
    for key, metric in told[0].metrics.items():
        torch.testing.assert_close(metric, told[1].metrics[key], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_numbers_that_all_differ_change_nothing(name: str) -> None:
    values, ids = table_of("none", 1.0)
    objective = OBJECTIVES[name][0]()
    one, other = (objective(signals(objective, values, known), None) for known in (ids, None))
    assert [(term.name, int(term.count)) for term in one.terms] == [
        (term.name, int(term.count)) for term in other.terms
    ]
    for term, same in zip(one.terms, other.terms, strict=True):
        assert torch.equal(term.sum, same.sum)
    for key, metric in one.metrics.items():
        assert torch.equal(metric, other.metrics[key])


def test_a_row_whose_listed_texts_are_all_its_own_is_told_nothing_of() -> None:
    objective, (values, ids) = InfoNCE(**LISTED), table_of("listed by its own row", 1.0)
    given = signals(objective, values, ids)
    assert objective.pairs(given).lists == (1, 2)
    assert objective(given, None).metrics["accuracy/negatives"].shape == (2,)
    blank = dataclasses.replace(given, host_feature_ids={})
    assert objective.pairs(blank).lists == (1, 2, 4)
    assert objective.pairs(blank).ids is None


def test_pairs_hand_over_what_rows_read() -> None:
    pairs = Pairs("test", **LISTED)
    values, ids = table_of("listed", 1.0)
    image, text, false = pairs.features
    features = {image.name: values["image:"], text.name: values["text"][:3], false.name: values["negatives"]}
    rows = {image.name: [4, 3, 2, 1, 0], text.name: [0, 3, 4], false.name: ROWS["negatives"]}
    told = {image.name: ids["image:"], text.name: ids["text"][:3], false.name: ids["negatives"]}
    given = Signals(
        {},
        {},
        features={name: Ragged(value, torch.tensor(rows[name])) for name, value in features.items()},
        sources=("a",) * SIZE,
        host_feature_ids=told,
    )
    found = pairs(given)
    assert found is not None
    assert found.ids is not None
    assert found.ids.images.tolist() == ids["image:"][::-1]
    assert found.ids.texts.tolist() == [ids["text"][0], 0, 0, ids["text"][1], ids["text"][2]]
    # The images of rows 3 and 4 are one; what row 2 lists is the text of row 0.
    assert found.ids.true.tolist() == [[0], [1]]
    assert found.at(3).ids is found.ids
