"""From measured pairs to the files of a counterfactual data set: selection, texts, split, provenance, report."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mllm_align.data.files import write_whole
from mllm_align.data.loading import undecoded
from mllm_align.data.mine.counterfactual import Embedder, measure_pairs, read_candidates
from mllm_align.data.mine.flips import flips_in_proportion, flips_of
from mllm_align.data.mine.pairs import refuse_unknown_category
from mllm_align.data.mine.provenance import output_rows
from mllm_align.data.mine.rewriting import rewritten
from mllm_align.data.mine.selection import (
    EQUAL,
    ORIGINAL,
    Candidate,
    balanced,
    by_category,
    hard,
    without_duplicates,
)
from mllm_align.data.mine.speaking import Speaker
from mllm_align.data.mine.splitting import groups_of, split_by_image
from mllm_align.data.output import RowFile, write_together
from mllm_align.data.processes import processes

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class CounterfactualOptions:
    """How pairs are chosen; none of it makes an image be embedded again.

    Attributes:
        visual_above: Least cosine of the look-alike encoder, exclusive.
        semantic_below: Greatest cosine of the encoder of meaning, exclusive.
        unfiltered: Categories whose pairs all stay.
        flips: Whether pairs that name a side give an image and its mirror image too.
        flip_categories: Only pairs of these categories; all where there are none.
        balance: "original" or "equal" to sample categories, None to keep all.
        num_validation: Pairs of the validation file; none, no file.
        seed: Of all draws.
        category: The column that holds a row's category; `category` or `kind` by default.
    """

    visual_above: float = 0.7
    semantic_below: float = 0.5
    unfiltered: Sequence[str] = ()
    flips: bool = False
    flip_categories: Sequence[str] = ()
    balance: str | None = None
    num_validation: int = 0
    seed: int = 0
    category: str | None = None

    def __post_init__(self) -> None:
        for name in ("visual_above", "semantic_below"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a cosine, between -1 and 1, not {getattr(self, name)}")
        if self.balance not in (None, ORIGINAL, EQUAL):
            raise ValueError(f"categories are balanced to {ORIGINAL!r} or {EQUAL!r}, not {self.balance!r}")
        if self.num_validation < 0:
            raise ValueError(f"num_validation must be at least 0, not {self.num_validation}")


@dataclass
class Selection:
    """What was chosen.

    Attributes:
        training: Pairs to train on.
        validation: Pairs that share no image with them.
        report: Counts of every step, as JSON can hold them.
    """

    training: list[Candidate]
    validation: list[Candidate]
    report: dict[str, Any] = field(default_factory=dict)


def make_counterfactual(
    rows: Any,
    output: str | os.PathLike[str],
    look_alike: Embedder,
    meaning: Embedder,
    options: CounterfactualOptions | None = None,
    *,
    speaker: Speaker | None = None,
    strict: bool = False,
    overwrite: bool = False,
    batch_size: int = 16,
    block_size: int = 256,
    progress: bool = True,
    made_of: str = "",
) -> dict[str, Any]:
    """Writes the training file, `<stem>_validation` beside it where wanted, and `<output>.report.json`.

    Killed and started again, it goes on, and ends with the very same files. A collective: every process of
    `accelerate launch` must call it; the first one writes.

    Args:
        rows: Canonical rows, one image and one contrast image each (`load_rows`, or a list).
        output: The training file, .jsonl or .parquet.
        look_alike: The encoder to which images must be similar.
        meaning: The one to which they must differ.
        options: How pairs are chosen.
        speaker: A chat model that writes texts out; None to keep them.
        strict: Whether a row that cannot be used is an error.
        overwrite: Whether output files with another content may be replaced.
        batch_size: Pairs whose images are in memory at one time.
        block_size: Rows of a block: what a kill costs at the most.
        progress: Whether to show bars.
        made_of: What the rows are called, for messages.

    Returns:
        The report.

    Raises:
        DataError: If `strict`, for the first row that cannot be used; for an output that is neither kind of file, or a
            column of categories that no row has.
        FileExistsError: If an output is there with another content and may not be replaced.
        ValueError: If the work folder holds a job on other rows or with other encoders.
    """
    options = options or CounterfactualOptions()
    file = RowFile(output, overwrite=overwrite)
    files = [file, file.part("validation")] if options.num_validation else [file]
    for each in files:
        each.refuse_other()
    refuse_unknown_category(undecoded(rows), options.category)
    work = file.work_folder
    sizes = {"batch_size": batch_size, "block_size": block_size, "strict": strict, "progress": progress}
    job = measure_pairs(rows, look_alike, meaning, work / "similarities", made_of=made_of, **sizes)
    candidates, problems = read_candidates(rows, job, category=options.category, strict=strict)
    chosen = select(candidates, options)
    rewriting = None
    if speaker is not None:
        both = [*chosen.training, *chosen.validation]
        both, outcome = rewritten(both, speaker, work, progress=progress)
        cut = len(chosen.training)
        chosen.training, chosen.validation = both[:cut], both[cut:]
        rewriting = {"speaker": speaker.identity, "texts": dict(sorted(outcome.items()))}
    report = {
        "rows": len(rows),
        "problems": problems.as_dict(),
        "encoders": {"look_alike": look_alike.identity, "meaning": meaning.identity},
        "options": asdict(options),
        **chosen.report,
        "rewriting": rewriting,
    }
    if processes().is_main_process:
        parts = (output_rows(rows, pairs) for pairs in (chosen.training, chosen.validation))
        write_together(list(zip(files, parts, strict=False)))  # without validation there is no second file
        write_whole(file.report_path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    processes().wait_for_everyone()
    return report


def select(candidates: Sequence[Candidate], options: CounterfactualOptions) -> Selection:
    """Filter, flips, duplicates, categories and split, in this order; pure."""
    original = by_category(candidates)
    kept = hard(candidates, options.visual_above, options.semantic_below, options.unfiltered)
    counts: dict[str, Any] = {"usable": len(candidates), "hard": len(kept)}
    passed = by_category(kept)
    flips: list[Candidate] = []
    if options.flips:
        made, impossible = flips_of(candidates, options.flip_categories)
        made = without_duplicates(made)
        flips = flips_in_proportion(made, kept, original, options.seed)
        counts["flips"] = {"possible": len(made), "kept": len(flips), "impossible": dict(impossible)}
    unique = without_duplicates([*kept, *flips])
    counts["duplicates"] = len(kept) + len(flips) - len(unique)
    if options.balance:
        sampled = balanced(unique, options.balance, original, options.seed)
        counts["sampled away"] = len(unique) - len(sampled)
        unique = sampled
    training, validation = split_by_image(unique, options.num_validation, options.seed)
    counts |= {"training": len(training), "validation": len(validation), "validation asked": options.num_validation}
    if len(validation) != options.num_validation:
        sizes = Counter(groups_of(unique))
        counts["groups"] = {"number": len(sizes), "largest": max(sizes.values(), default=0)}
    named = {*options.unfiltered, *options.flip_categories}
    counts["categories not found"] = sorted(named - set(original))
    counts["similarities"] = _similarities(candidates, options)
    counts["categories"] = {
        name: {
            "usable": original[name],
            "hard": passed[name],
            "training": by_category(training)[name],
            "validation": by_category(validation)[name],
        }
        for name in sorted(original)
    }
    return Selection(training, validation, counts)


def _similarities(candidates: Sequence[Candidate], options: CounterfactualOptions) -> dict[str, Any]:
    """Quantiles of both cosines, and how many pass each half of the rule: what to look at when few are kept."""
    visual = np.array([item.similarity_visual for item in candidates], dtype=np.float64)
    semantic = np.array([item.similarity_semantic for item in candidates], dtype=np.float64)
    return {
        "visual": _quantiles(visual) | {"above": int((visual > options.visual_above).sum())},
        "semantic": _quantiles(semantic) | {"below": int((semantic < options.semantic_below).sum())},
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return {f"{quantile:.0%}": round(float(np.quantile(values, quantile)), 4) for quantile in _QUANTILES}
