"""`data regions`: rows with captions to rows with named boxes."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command
from mllm_align.cli.making import add_rows, load_rows_of, print_summary, refuse_other_output


def add(data: Any) -> None:
    """Adds `data regions`."""
    regions = add_command(
        data, "regions", _regions, "find what captions name, as objects of rows, with an open-vocabulary detector"
    )
    add_rows(regions)
    regions.add_argument(
        "--detector",
        required=True,
        help="Hub id or folder, such as google/owlv2-base-patch16-ensemble or IDEA-Research/grounding-dino-base",
    )
    regions.add_argument(
        "--phrases",
        default="chosen",
        metavar="COLUMN",
        help="of an English text whose phrases are looked for, or of a list of phrases (default: %(default)s)",
    )
    regions.add_argument("--threshold", type=float, default=0.2, help="scores must be above it (default: %(default)s)")
    regions.add_argument("--per-phrase", type=int, default=3, help="boxes of one at the most (default: %(default)s)")
    regions.add_argument(
        "--overlap", type=float, default=0.7, help="more in common than this is one box (default: %(default)s)"
    )
    regions.add_argument("--min-regions", type=int, default=1, help="of a row that is kept (default: %(default)s)")
    regions.add_argument("--block-size", type=int, default=64, help="rows that a kill can cost (default: %(default)s)")


def _regions(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.detector import Detector
    from mllm_align.data.mine.regions import RegionOptions, check_column, make_regions

    refuse_other_output(arguments)
    options = RegionOptions(
        arguments.phrases, arguments.threshold, arguments.per_phrase, arguments.overlap, arguments.min_regions
    )
    rows = load_rows_of(arguments)
    check_column(rows, options.column)
    report = make_regions(
        rows,
        arguments.output,
        Detector(arguments.detector),
        options,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        block_size=arguments.block_size,
    )
    print_summary(report, arguments.output)
    print(f"  {report['regions']:,} regions of {report['phrases']:,} phrases")
