"""How well text alone tells the chosen from the rejected answer of pair data, and how far answers follow a prior.

Where text alone tells them apart, an objective that compares them (DPO, mDPO's and rDPO's text term) can be lowered
without a look at the image. Where both texts are right for an image each, as in S-VCO's pairs, that cannot happen to
an objective that uses each text with both images; but a question's answers may still follow a prior, which
next-token training on them learns instead of the picture. The first is `telling`, the second `naming`. On the
rendered world it decided more than the objective did from which distribution the pairs came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mllm_align.data.loading import undecoded
from mllm_align.data.mine.blind import BlindRows, clusters_of, folds_of, read_texts
from mllm_align.data.mine.intervals import Share, share
from mllm_align.data.mine.pairs import refuse_unknown_category
from mllm_align.data.mine.probes import PROBES, naming
from mllm_align.data.mine.problems import Problems
from mllm_align.data.mine.verdict import OVERALL, Balance, Prior


def text_balance(
    rows: Any,
    *,
    category: str | None = None,
    folds: int = 5,
    seed: int = 0,
    scores: Mapping[str, Sequence[float]] | None = None,
) -> Balance:
    """Cross-validated: rows that share an image are in one fold and count as one cluster.

    Where shared images connect more than half of the rows (contrast images retrieved from the same pool do), only
    rows with the very same images are kept together, and `grouping` says so.

    Args:
        rows: Canonical rows; a row without `rejected` counts for the prior of the answers alone.
        category: The column that holds a row's category; `category` or `kind` by default.
        folds: Of the cross-validation.
        seed: Of the folds.
        scores: Further probes by name: for every row 1.0, 0.5 or 0.0, or NaN where there is none, as from a model
            without the image.

    Raises:
        ValueError: If no row can be read, no row has the column `category`, or there are not as many scores as rows.
    """
    refuse_unknown_category(undecoded(rows), category)
    blind = read_texts(rows, category)
    if not blind.pairs:
        raise ValueError("there is no row with a prompt and a chosen text; " + _first(blind.problems))
    num_rows = len(blind.pairs) + blind.problems.counts.total()
    clusters, grouping = clusters_of(blind.images)
    fold_of = folds_of(clusters, folds, seed)
    both = np.array([pair.rejected is not None for pair in blind.pairs])
    telling: dict[str, dict[str, Share]] = {}
    if both.any():
        compared = np.flatnonzero(both)
        for name, probe in PROBES.items():
            values = probe([blind.pairs[number] for number in compared], fold_of[compared])
            telling[name] = _by_category(values, compared, blind.categories, clusters, folds)
    for name, given in (scores or {}).items():
        values = np.asarray(given, dtype=np.float64)
        if len(values) != num_rows:
            raise ValueError(f"{len(values)} scores {name!r} for {num_rows} rows; one each is needed")
        values = values[blind.places]
        known = np.flatnonzero(~np.isnan(values))
        telling[name] = _by_category(values[known], known, blind.categories, clusters)
    prior = _priors(blind, fold_of, clusters, folds)
    return Balance(num_rows, blind.problems, grouping, telling, prior)


def _priors(blind: BlindRows, fold_of: np.ndarray, clusters: Sequence[Hashable], folds: int) -> dict[str, Prior]:
    named = naming(blind.pairs, fold_of)
    shares = _by_category(named.right, named.rows, blind.categories, clusters, folds)
    asked: Counter[str] = Counter()
    for pair, name in zip(blind.pairs, blind.categories, strict=True):
        asked[name] += 1 + (pair.rejected_is_true and pair.rejected is not None)
    asked[OVERALL] = named.asked
    found = {}
    for name, one in shares.items():
        own = [name in (OVERALL, blind.categories[number]) for number in named.rows]
        chance = float(named.chance[own].mean()) if any(own) else float("nan")
        found[name] = Prior(one, chance, one.rows / asked[name] if asked[name] else 0.0)
    return found


def _by_category(
    values: np.ndarray,
    rows: Iterable[int],
    categories: Sequence[str],
    clusters: Sequence[Hashable],
    folds: int = 0,
) -> dict[str, Share]:
    numbers = list(rows)
    names = [categories[number] for number in numbers]
    own = [clusters[number] for number in numbers]
    found = {OVERALL: share(values, own, folds)}
    for name in sorted(set(names) - {""}) if len(set(names)) > 1 else ():
        here = [place for place, other in enumerate(names) if other == name]
        found[name] = share(values[here], [own[place] for place in here], folds)
    return found


def _first(problems: Problems) -> str:
    return next((messages[0] for messages in problems.examples.values()), "there are no rows")
