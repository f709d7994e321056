"""Which metrics a set of answers has: names, units and clusters.

`<benchmark>/<split>/acc`, `<benchmark>/pair_acc` (both questions of a pair right), and on the benchmark's main split
(adversarial, where it has one) accuracy by kind, under another and no image, the visual gap, and how often a wrong
prior is followed. Splits of yes/no questions alone have d', criterion, share of yes, AUC, hallucination and omission
index. Splits of closed questions have the calibration error and the Brier score of their choices' log-probabilities.
Metrics of generated answers end in `_generated`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mllm_align_eval.calibration import (
    brier_metric,
    calibration_metric,
    choice_probabilities,
    confidences,
    is_calibrated,
)
from mllm_align_eval.detection import auc_metric, criterion_metric, dprime_metric, prior_index_metric
from mllm_align_eval.items import Answer, ImageArm, Item, Method
from mllm_align_eval.metrics import Measure, Measures, clusters_of, mean
from mllm_align_eval.statistics import Metric, difference, mean_metric

GENERATED = "_generated"
ABLATIONS = {"other": "other", "blank": "blank", "none": "no"}
MAIN_SPLIT = "adversarial"

ByItem = Mapping[str, Answer]


def measures(items: Sequence[Item], answers: Mapping[tuple[Method, ImageArm], Sequence[Answer]]) -> Measures:
    """All metrics that the answers of one arm allow; those that are undefined for lack of cases are left out.

    Args:
        items: All items of the run.
        answers: Per method and image arm the answers; where an item has none it was not asked.

    Raises:
        ValueError: If an answer is to an unknown item, or a pair is not answered whole.
    """
    known = {item.id for item in items}
    items = [item for item in items if item.is_closed]
    closed = {item.id for item in items}
    found: Measures = {}
    for (method, image), given in answers.items():
        stray = next((entry.item for entry in given if entry.item not in known), None)
        if stray is not None:
            raise ValueError(f"there is an answer to {stray!r}, which is none of the items")
        said = {entry.item: entry for entry in given if entry.item in closed}
        right = {name: float(entry.right) for name, entry in said.items()}
        suffix = GENERATED if method == "generate" else ""
        if image == "right":
            parts = accuracies(items, right) | _detection(items, said, method) | _prior(items, said)
            parts |= _calibration(items, said) if method == "logprob" else {}
            other = answers.get((method, "other"))
            if other is not None:
                parts |= _gap(items, right, {entry.item: float(entry.right) for entry in other})
        else:
            parts = _ablated(items, right, image)
        found |= {name + suffix: measure for name, measure in parts.items()}
    return found


def accuracies(items: Sequence[Item], right: Mapping[str, float]) -> Measures:
    """Accuracy by split, by pair, and by kind on the main split.

    Args:
        items: The items.
        right: By item id 1 or 0; or, for a baseline that guesses, the probability of being right.
    """
    found: Measures = {}
    for (benchmark, split), members in splits_of(items, right).items():
        paired = [item for item in members if item.pair is not None]
        name = "pair_item_" if len(paired) == len(members) else f"{split}/"
        found[f"{benchmark}/{name}acc"] = mean(members, lambda item: right[item.id])
        if paired:
            found[f"{benchmark}/pair_acc"] = _pair_accuracy(paired, right)
        kinds = dict.fromkeys(item.kind for item in members)
        if split == MAIN_SPLIT and len(kinds) > 1:
            for kind in kinds:
                chosen = [item for item in members if item.kind == kind]
                found[f"{benchmark}/{split}/{kind}_acc"] = mean(chosen, lambda item: right[item.id])
    return found


def _pair_accuracy(items: Sequence[Item], right: Mapping[str, float]) -> Measure:
    pairs: dict[str, list[Item]] = {}
    for item in items:
        pairs.setdefault(item.pair or "", []).append(item)
    odd = next((name for name, members in pairs.items() if len(members) != 2), None)
    if odd is not None:
        raise ValueError(f"pair {odd!r} has {len(pairs[odd])} answered questions instead of two")
    both = [right[first.id] * right[second.id] for first, second in pairs.values()]
    return Measure(mean_metric(both), tuple(first.cluster for first, _ in pairs.values()))


def _detection(items: Sequence[Item], said: ByItem, method: Method) -> Measures:
    found: Measures = {}
    for (benchmark, split), members in splits_of(items, said).items():
        if not all(item.is_yes_no for item in members):
            continue
        says = [said[item.id].choice == "yes" for item in members]
        truth = [item.answer == "yes" for item in members]
        parts = {"yes_rate": mean_metric(says)}
        if any(truth) and not all(truth):
            # Of one answer alone there is nothing that could be told apart.
            parts |= {"dprime": dprime_metric(says, truth), "criterion": criterion_metric(says, truth)}
        if method == "logprob" and "dprime" in parts:
            parts["auc"] = auc_metric([_log_odds(item, said[item.id]) for item in members], truth)
        parts |= _prior_indices([item for item in members if item.prior_answer is not None], said, len(members))
        clusters = clusters_of(members)
        found |= {f"{benchmark}/{split}/{name}": Measure(metric, clusters) for name, metric in parts.items()}
    return found


def _calibration(items: Sequence[Item], said: ByItem) -> Measures:
    found: Measures = {}
    for (benchmark, split), members in splits_of(items, said).items():
        answers = [said[item.id] for item in members]
        if not all(map(is_calibrated, members, answers)):
            continue
        chances = [choice_probabilities(answer.scores) for answer in answers]
        truths = [item.choices.index(item.answer) for item in members]
        parts = {
            "ece": calibration_metric(confidences(answers), [answer.right for answer in answers]),
            "brier": brier_metric(chances, truths),
        }
        clusters = clusters_of(members)
        found |= {f"{benchmark}/{split}/{name}": Measure(metric, clusters) for name, metric in parts.items()}
    return found


def _prior_indices(items: Sequence[Item], said: ByItem, num_members: int) -> dict[str, Metric]:
    """Hallucination and omission index, where every question has a prior and both of its values occur."""
    found = {}
    for name, truth, expected in (("hallucination_index", "no", "yes"), ("omission_index", "yes", "no")):
        priors = {item.prior_answer for item in items if item.answer == truth}
        if len(items) == num_members and priors == {"yes", "no"}:
            found[name] = prior_index_metric(
                [not said[item.id].right for item in items],
                [item.prior_answer == expected for item in items],
                [item.answer == truth for item in items],
            )
    return found


def _log_odds(item: Item, answer: Answer) -> float:
    scores = dict(zip(item.choices, answer.scores, strict=True))
    return scores["yes"] - scores["no"]


def _prior(items: Sequence[Item], said: ByItem) -> Measures:
    """How often the answer is the prior's, among the questions of the main split where the prior is wrong."""
    found: Measures = {}
    for (benchmark, split), members in splits_of(items, said).items():
        misled = [item for item in members if item.prior_answer not in (None, item.answer)]
        if split == MAIN_SPLIT and misled:
            found[f"{benchmark}/{split}/follows_prior"] = mean(
                misled, lambda item: float(said[item.id].choice == item.prior_answer)
            )
    return found


def _gap(items: Sequence[Item], right: Mapping[str, float], other: Mapping[str, float]) -> Measures:
    """Accuracy with the right image minus accuracy with another, on the same questions."""
    found: Measures = {}
    for (benchmark, split), members in _main_splits(items, right.keys() & other.keys()).items():
        seen = mean_metric([right[item.id] for item in members])
        mismatched = mean_metric([other[item.id] for item in members])
        name = "visual_gap" if split in (MAIN_SPLIT, "pairs") else f"{split}/visual_gap"
        found[f"{benchmark}/{name}"] = Measure(difference(seen, mismatched), clusters_of(members))
    return found


def _ablated(items: Sequence[Item], right: Mapping[str, float], image: ImageArm) -> Measures:
    return {
        f"{benchmark}/{split}/{ABLATIONS[image]}_image_acc": mean(members, lambda item: right[item.id])
        for (benchmark, split), members in splits_of(items, right).items()
    }


def splits_of(items: Sequence[Item], answered: Iterable[str]) -> dict[tuple[str, str], list[Item]]:
    """The items that were answered by benchmark and split, in order."""
    asked, found = set(answered), {}
    for item in items:
        if item.id in asked:
            found.setdefault((item.benchmark, item.split), []).append(item)
    return found


def _main_splits(items: Sequence[Item], answered: Iterable[str]) -> dict[tuple[str, str], list[Item]]:
    """Per benchmark its main split alone, or all of its splits where it has none."""
    splits = splits_of(items, answered)
    led = {benchmark for benchmark, split in splits if split == MAIN_SPLIT}
    return {key: members for key, members in splits.items() if key[0] not in led or key[1] == MAIN_SPLIT}
