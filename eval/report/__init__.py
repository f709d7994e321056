"""The report of one evaluation: a self-contained HTML file, a JSON file and a table on the terminal.

`results`, which everything here reads, is one dictionary:

    arms         {arm: {metric: {value, low, high, n}}}; bounds are those of a 95 % interval
    differences  {"aligned-base": {metric: {value, low, high, n, excludes_zero, detectable}}, ...}, paired;
                 `detectable` is the smallest difference that a test of this size would find, `p` the two-sided test,
                 `equivalent_p` that of a difference within `margin` either way
    primary      {"aligned-base": {metric: {p, p_holm}}}: the few metrics that the run is judged by, adjusted together
    baselines    {name: {metric: value}}
    unreadable   {arm: share of generated answers that could not be read}
    seconds, stages {name: seconds}, machine {...}, versions {...}, seed, recipe (YAML text), data {...}
"""

from mllm_align_eval.report.gallery import GalleryEntry
from mllm_align_eval.report.headline import Headline, headline
from mllm_align_eval.report.markdown import markdown_comparison, markdown_report
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
