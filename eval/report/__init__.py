"""The report of one evaluation: a self-contained HTML file, a JSON file and a table on the terminal.

`results`, which everything here reads, is one dictionary:

    arms         {arm: {metric: {value, low, high, n, clusters}}}; bounds are those of a 95 % interval
    differences  {"aligned-base": {metric: {value, low, high, n, excludes_zero, detectable}}, ...}, paired;
                 `detectable` is the smallest difference that a test of this size would find, `p` the two-sided test,
                 `equivalent_p` that of a difference within `margin` either way
    primary      {"aligned-base": {metric: {p, p_holm}}}: the few metrics that the run is judged by, adjusted together
    baselines    {name: {metric: value}}
    margin       the change of a rate that would not matter, of `equivalent_p`
    unreadable   {arm: share of generated answers that could not be read}
    reading      {arm: {"pope/adversarial": {n, open, unreadable, abstained, truncated, errors, ...}}}, the shares of
                 generated answers by split
    calibration  {arm: {"pope/adversarial": {bins: [{confidence, accuracy, n}], by_chance}}}
    criterion_shift  {"aligned-base": {"pope/adversarial": {value, low, high, n}}}: the part of a difference in
                 accuracy that moving the criterion alone would give
    scores       "similarity" where all are of embeddings; absent where models were asked
    benchmarks   {"pope": {title, primary: [metric], parser, max_new_tokens}}
    judge, model {...}: who judged, and what was asked
    seconds, stages {name: seconds}, machine {...}, versions {...}, seed, recipe (YAML text), data {...}
"""

from mllm_align_eval.report.gallery import GalleryEntry
from mllm_align_eval.report.headline import Headline, headline
from mllm_align_eval.report.markdown import markdown_comparison
from mllm_align_eval.report.markdown_run import markdown_report
from mllm_align_eval.report.page import write_report
from mllm_align_eval.report.results_file import write_results
from mllm_align_eval.report.terminal import print_table

__all__ = [
    "GalleryEntry",
    "Headline",
    "headline",
    "markdown_comparison",
    "markdown_report",
    "print_table",
    "write_report",
    "write_results",
]
