"""A headline says whether its scores are of probabilities or of texts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from mllm_align_eval.report import headline, print_table, write_report
from report_results import Page, bounds

POPE = {"pope/adversarial/acc": (0.6, 0.7)}
CHAIR = {"chair/chair_i_generated": (0.2, 0.1), "chair/recall_generated": (0.7, 0.6)}


def run(values: dict[str, tuple[float, float]]) -> dict[str, Any]:
    arms = {arm: {name: bounds(v[i]) for name, v in values.items()} for i, arm in enumerate(("base", "mine"))}
    judged = {name: {"p": 0.01, "p_holm": 0.01} for name in values if name.removesuffix("_generated") not in values}
    judged |= {name: {"p": 0.01, "p_holm": 0.01} for name in values if not name.endswith("_generated")}
    return {"arms": arms, "primary": {"mine-base": judged}}


def test_a_headline_says_whether_its_scores_are_of_probabilities_or_of_texts(tmp_path: Path) -> None:
    probable = "which of the possible answers the model finds most probable (by log-probability), not what it would"
    told = headline(run({"pope/adversarial/acc": (0.6, 0.7)})).source
    assert told == f"These scores say {probable} write."
    results = run({"pope/adversarial/acc": (0.6, 0.7), "pope/adversarial/acc_generated": (0.5, 0.6)})
    assert headline(results).source.endswith("; what it wrote is scored apart.")
    assert probable in Page(write_report(results, [], tmp_path / "r.html", title="t")).text
    out = io.StringIO()
    print_table(results, Console(file=out, width=120))
    assert probable in " ".join(out.getvalue().split())
    written = "of the answers as the model wrote them"
    assert headline(run(CHAIR)).source == f"These scores are {written}."
    assert headline(run({"pope/adversarial/acc_generated": (0.6, 0.7)})).source == f"These scores are {written}."
    assert headline(run({**POPE, **CHAIR})).source.startswith(f"The scores of CHAIR are {written}; the others say wh")
    assert headline(run({"another/metric": (0.5, 0.6)})).source == ""
