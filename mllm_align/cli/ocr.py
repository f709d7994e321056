"""`data ocr`: pages to rows with what stands on them and where."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command
from mllm_align.cli.making import add_source, load_named, print_summary, refuse_other_output


def add(data: Any) -> None:
    """Adds `data ocr`."""
    ocr = add_command(data, "ocr", _ocr, "read the words on pages, as objects of rows; resumes")
    ocr.add_argument("pages", help="a folder of images, or rows with one image each, which keep their columns")
    ocr.add_argument("--output", required=True, help=".jsonl or .parquet file; started again, the job goes on")
    add_source(ocr)
    ocr.add_argument(
        "--engine", default="tesseract", help="tesseract, or module:function of your own (default: %(default)s)"
    )
    ocr.add_argument("--language", default="eng", help="of Tesseract, such as eng+deu (default: %(default)s)")
    ocr.add_argument(
        "--min-confidence", type=float, default=30.0, help="of Tesseract's words, of 100 (default: %(default)s)"
    )
    ocr.add_argument(
        "--tokens",
        type=int,
        nargs=2,
        default=(24, 24),
        metavar=("ROWS", "COLUMNS"),
        help="of the model on a page: what covers less than one is put together (default: 24 24)",
    )
    ocr.add_argument(
        "--level", default="auto", choices=("auto", "word", "line", "block"), help="of objects (default: %(default)s)"
    )
    ocr.add_argument("--prompt", help="of rows without one; their response is the page's text")
    ocr.add_argument("--min-objects", type=int, default=1, help="of a page that is kept (default: %(default)s)")
    ocr.add_argument("--workers", type=int, default=4, help="pages read at one time (default: %(default)s)")
    ocr.add_argument("--block-size", type=int, default=64, help="pages that a kill can cost (default: %(default)s)")
    ocr.add_argument("--strict", action="store_true", help="a page that cannot be read is an error")
    ocr.add_argument("--overwrite", action="store_true", help="replace an output file with other rows")


def _ocr(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.listing import is_image_folder
    from mllm_align.data.ocr import OcrOptions, engine_from, read_pages

    refuse_other_output(arguments)
    more = {"prompt": arguments.prompt} if arguments.prompt is not None else {}
    options = OcrOptions(tuple(arguments.tokens), arguments.level, min_objects=arguments.min_objects, **more)
    engine = engine_from(arguments.engine, arguments.language, arguments.min_confidence)
    pages: Any = arguments.pages
    report = read_pages(
        pages if is_image_folder(pages) else load_named(arguments, pages),
        arguments.output,
        engine,
        options,
        workers=arguments.workers,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        block_size=arguments.block_size,
    )
    print_summary(report, arguments.output)
    print(f"  {report['objects']:,} objects of {report['words']:,} words", end="")
    print(f", {report['below_one_token']:,} of them below one token" if report["below_one_token"] else "")
