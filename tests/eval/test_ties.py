"""The sentence about ties: counted by benchmark, of similarities alone."""

from __future__ import annotations

from mllm_align_eval.report.ties import ties_text, ties_texts

CELLS = {
    "aro/coco_order/tied": {"value": 0.25, "n": 4},
    "aro/vg_relation/tied": {"value": 1 / 3, "n": 3000},
    "aro/vg_relation/acc": {"value": 0.5, "n": 3000},
    "winoground/pairs/tied": {"value": 0.0, "n": 400},
    "winoground/pairs/tied_pmi": {"value": 1.0, "n": 400},
}


def test_the_number_of_ties() -> None:
    assert ties_text(CELLS) == "Ties, which count as wrong: ARO 1,001 of 3,004, Winoground 0 of 400."
    assert ties_text({"pope/random/acc": {"value": 1.0, "n": 3}}) == ""


def test_of_similarities_alone() -> None:
    results = {"arms": {"base": CELLS, "tuned": {"pope/random/acc": {"value": 1.0, "n": 3}}}}
    assert ties_texts(results) == []
    (text,) = ties_texts(results | {"scores": "similarity"})
    assert text.endswith(": Ties, which count as wrong: ARO 1,001 of 3,004, Winoground 0 of 400.")
