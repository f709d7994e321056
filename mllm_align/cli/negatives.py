"""`data negatives`: texts that are nearly right, for captions and named objects."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command, device
from mllm_align.cli.making import add_rows, load_rows_of, print_summary, refuse_other_output

# As `mllm_align.data.negatives.KINDS`, which --help must not load.
KINDS = ("colour", "size", "count", "relation", "object", "swap", "material", "state", "action")


def add(data: Any) -> None:
    """Adds `data negatives`."""
    negatives = add_command(
        data, "negatives", _negatives, "give captions and named objects texts that are nearly right, for SVLC; resumes"
    )
    add_rows(negatives)
    negatives.add_argument(
        "--texts",
        default="auto",
        metavar="COLUMN",
        help="whose: objects, or a column with a text of the whole picture (default: objects where they have texts, "
        "else chosen)",
    )
    negatives.add_argument(
        "--kinds", nargs="*", default=KINDS, choices=KINDS, metavar="KIND", help=f"by rules: {', '.join(KINDS)}"
    )
    negatives.add_argument("--per-text", type=int, default=4, help="negatives at the most (default: %(default)s)")
    negatives.add_argument("--mlm", metavar="MODEL", help="a masked language model edits too (Hub id or folder)")
    negatives.add_argument("--top-k", type=int, default=20, help="of its fills (default: %(default)s)")
    negatives.add_argument(
        "--chat", metavar="MODEL|URL", help="a chat model, or the address of a chat endpoint, edits too"
    )
    negatives.add_argument("--chat-model", metavar="NAME", help="what the endpoint calls the model")
    negatives.add_argument("--key-env", metavar="NAME", help="environment variable with the endpoint's key")
    negatives.add_argument(
        "--positives",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="paraphrases of a text too, by rules and the chat model, up to N (default: 1)",
    )
    negatives.add_argument(
        "--exhaustive",
        action="store_true",
        help="rows list every object of their classes (COCO's do): what is not listed is not there",
    )
    negatives.add_argument(
        "--checked-only", action="store_true", help="leave out what the objects of a row do not show to be false"
    )
    negatives.add_argument("--device", type=device, help="of models; default: a GPU where there is one")
    negatives.add_argument(
        "--block-size", type=int, default=256, help="rows that a kill can cost (default: %(default)s)"
    )


def _negatives(arguments: argparse.Namespace) -> None:
    from mllm_align.data.negatives import NegativeOptions, make_negatives

    refuse_other_output(arguments)
    options = NegativeOptions(
        kinds=tuple(arguments.kinds),
        per_text=arguments.per_text,
        column=arguments.texts,
        positives=arguments.positives,
        exhaustive=arguments.exhaustive,
        checked_only=arguments.checked_only,
        seed=arguments.seed,
    )
    rows = load_rows_of(arguments)
    _refuse_other_column(rows, arguments.texts)
    report = make_negatives(
        rows,
        arguments.output,
        options,
        masker=_masker(arguments),
        speaker=_speaker(arguments),
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        block_size=arguments.block_size,
        made_of=arguments.rows,
    )
    print_summary(report, arguments.output)
    print(f"  {sum(report['negatives'].values()):,} negatives of {report['texts']:,} texts")
    for kind, count in report["negatives"].items():
        print(f"    {kind}: {count:,}, of which {report['checked'].get(kind, 0):,} are known to be false")
    print(f"  dropped as true of the picture: {report['dropped']['true']:,}")
    if options.checked_only:
        print(f"  dropped as not known to be false: {report['dropped']['unchecked']:,}")
    if options.positives:
        print(f"  {report['positives']:,} positives")


def _refuse_other_column(rows: Any, column: str) -> None:
    from mllm_align.data.schema import missing_column

    if len(rows) and column not in ("auto", "chosen", "objects") and column not in rows[0]:
        raise missing_column(column, list(rows[0]), "--texts")


def _masker(arguments: argparse.Namespace) -> Any:
    from mllm_align.data.negatives.masked import MaskedModel

    return MaskedModel(arguments.mlm, arguments.device, arguments.top_k) if arguments.mlm is not None else None


def _speaker(arguments: argparse.Namespace) -> Any:
    from mllm_align.data.mine.chat import ChatEndpoint
    from mllm_align.data.mine.text_model import TextModel

    name = arguments.chat
    if name is None:
        return None
    if not name.startswith(("http://", "https://")):
        return TextModel(name, arguments.device)
    if arguments.chat_model is None:
        raise ValueError("--chat-model is missing: name the model as the endpoint calls it")
    return ChatEndpoint(name, arguments.chat_model, arguments.key_env)
