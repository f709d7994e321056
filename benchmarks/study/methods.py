"""The arms: what each trains for. A later method is one more row of `METHODS`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Spec = dict[str, Any]

BETA = 0.5  # the tiny model's; 0.1 in the papers
BETAS = {"beta_attend": BETA, "beta_reject": BETA}
PAIRS_PER_STEP, REPLAY_PER_STEP = 11, 21
CONTROL, HEAVY, CLEAN = "next_token", "next_token_3x", "clean"
CROP = {"kind": "crop", "scale": [0.01, 0.2]}


@dataclass(frozen=True)
class Method:
    """A training signal on pairs.

    Attributes:
        name: In tables.
        text: What it is, for readers.
        objectives: Its parts, each for the rows of source "pairs".
        mirrored: Whether it looks at a row from one side alone, so that every pair is shown from both.
        needs_rejected: Whether it reads the text of the contrast image.
        corrupt: How the contrast image is made, where it is not the pair's own.
    """

    name: str
    text: str
    objectives: tuple[Spec, ...]
    mirrored: bool = True
    needs_rejected: bool = True
    corrupt: Spec | None = field(default=None, hash=False)


METHODS = {
    method.name: method
    for method in (
        Method(
            CONTROL,
            "the control: next-token on both matched views",
            ({"name": "next_token"},),
            mirrored=False,
            needs_rejected=False,
        ),
        # An arm with a term more on the pairs gives them more weight against the replay; so does this one.
        Method(
            HEAVY,
            "the control with three times the weight on the pairs",
            ({"name": "next_token", "weight": 3.0},),
            mirrored=False,
            needs_rejected=False,
        ),
        Method("dpo", "DPO: the text term alone", ({"name": "dpo", "beta": BETA},)),
        Method(
            "image",
            "the image term alone: the chosen text, own image against the pair's other",
            ({"name": "image_preference", "beta": BETA},),
            needs_rejected=False,
        ),
        Method(
            "crop",
            "mDPO's image term alone: own image against a crop of it",
            ({"name": "image_preference", "beta": BETA},),
            needs_rejected=False,
            corrupt=CROP,
        ),
        Method(
            "anchor",
            "mDPO's anchor alone: the chosen text over its own start",
            ({"name": "mdpo", "beta": BETA, "text_weight": 0.0, "image_weight": 0.0},),
            needs_rejected=False,
        ),
        Method("mdpo", "mDPO: text, crop and anchor terms", ({"name": "mdpo", "beta": BETA},), corrupt=CROP),
        Method("rdpo", "rDPO: text term, image term with the pair's other image", ({"name": "rdpo", "beta": BETA},)),
        Method(
            "attend",
            "S-VCO's attend terms alone: own image over no image",
            ({"name": "svco", **BETAS, "reject_weight": 0.0},),
            mirrored=False,
        ),
        Method(
            "reject",
            "S-VCO's reject terms alone: no image over the other image",
            ({"name": "svco", **BETAS, "attend_weight": 0.0},),
            mirrored=False,
        ),
        Method(
            "svco",
            "S-VCO: all four terms",
            ({"name": "svco", **BETAS},),
            mirrored=False,
        ),
        Method(
            "svco_one_sided",
            "S-VCO's first two terms: the chosen text under its own, no and the other image",
            ({"name": "svco", **BETAS, "symmetric": False},),
            needs_rejected=False,
        ),
    )
}


@dataclass(frozen=True)
class Arm:
    """A method, with or without next-token on the pairs beside it and replay of ordinary instruction rows."""

    method: str
    next_token: bool = False
    replay: bool = True

    @property
    def name(self) -> str:
        """In tables: "svco + next_token + replay"."""
        parts = [self.method, *(["next_token"] if self.next_token else []), *(["replay"] if self.replay else [])]
        return " + ".join(parts)

    @property
    def control(self) -> Arm:
        """What it is compared with: plain next-token on the same pairs, with the same replay."""
        return Arm(CONTROL, replay=self.replay)

    def objective(self) -> list[Spec]:
        """The parts of the recipe's objective."""
        parts = [{"weight": 1.0, **spec, "sources": "pairs"} for spec in METHODS[self.method].objectives]
        if self.next_token:
            # Mirrored rows have both matched views among their chosen ones; what shows a crop has no text of its own.
            only_chosen = {"matched": False} if METHODS[self.method].corrupt else {}
            parts.append({"name": "next_token", "weight": 1.0, "sources": "pairs", **only_chosen})
        if self.replay:
            parts.append({"name": "next_token", "weight": 1.0, "sources": "replay"})
        return parts


def arms(condition: str) -> list[Arm]:
    """The arms of a condition, the most telling first."""
    return main_arms(condition) + (further_arms() if condition == CLEAN else [])


def main_arms(condition: str) -> list[Arm]:
    """Those with replay, as users train: the control, and preference objectives alone and beside next-token."""
    controls = [Arm(CONTROL), Arm(HEAVY)]
    if condition == "one_sided":
        return [*controls, *(Arm(method, next_token=True) for method in ("image", "svco_one_sided", "crop"))]
    if condition != CLEAN:
        return [*controls, *(Arm(method, next_token=True) for method in ("image", "svco", "dpo"))]
    alone = [Arm(method) for method in ("svco", "dpo", "mdpo", "rdpo")]
    beside = [Arm(method, next_token=True) for method in ("svco", "dpo", "mdpo", "rdpo", "image")]
    return [*controls, *alone, *beside]


def further_arms() -> list[Arm]:
    """Of clean pairs: without replay, and single terms."""
    terms = ("crop", "anchor", "attend", "reject")
    without = [Arm(method, replay=False) for method in (CONTROL, "svco", "dpo", "mdpo", "rdpo", "image", *terms)]
    return [
        *(Arm(method) for method in ("image", *terms)),
        *(Arm(method, next_token=True) for method in terms),
        *without,
    ]
