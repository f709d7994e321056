"""`data reject`: rejected responses for plain instruction rows, by the model where it cannot see the picture."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command
from mllm_align.cli.making import (
    add_model,
    add_rows,
    load_rows_of,
    load_speaker,
    load_text_encoder,
    print_summary,
    refuse_other_output,
)

CORRUPT = "corrupt:"


def add(data: Any) -> None:
    """Adds `data reject`."""
    reject = add_command(
        data, "reject", _reject, "give instruction rows a rejected response, said without the picture"
    )
    add_rows(reject)
    add_model(reject)
    reject.add_argument(
        "--image",
        default="none",
        help="what the model sees: none, other (another row's), corrupt:KIND or corrupt:{kind: crop, scale: [...]} "
        "(default: %(default)s)",
    )
    reject.add_argument("--contrast", action="store_true", help="give the picture that it saw as contrast_image")
    reject.add_argument(
        "--closed-words", type=int, default=4, help="most words of a closed answer (default: %(default)s)"
    )
    reject.add_argument(
        "--min-new", type=int, default=1, help="new words of content in a longer one (default: %(default)s)"
    )
    reject.add_argument(
        "--max-overlap", type=float, default=1.0, help="share of words of content in both (default: %(default)s)"
    )
    reject.add_argument(
        "--length-ratio",
        type=float,
        nargs=2,
        default=(0.33, 3.0),
        metavar=("LOW", "HIGH"),
        help="words of rejected to words of chosen (default: 0.33 3)",
    )
    reject.add_argument("--text-model", default="none", help="a text encoder as a further filter (default: none)")
    reject.add_argument(
        "--max-text-similarity", type=float, default=0.95, help="cosine under it, exclusive (default: %(default)s)"
    )


def _reject(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.differing import Differing
    from mllm_align.data.mine.rejecting import RejectOptions, make_rejected

    refuse_other_output(arguments)
    options = RejectOptions(
        shown=_shown(arguments.image),
        differing=Differing(
            arguments.closed_words, arguments.min_new, arguments.max_overlap, tuple(arguments.length_ratio)
        ),
        max_similarity=arguments.max_text_similarity,
        contrast=arguments.contrast,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
    )
    rows = load_rows_of(arguments)
    report = make_rejected(
        rows,
        arguments.output,
        load_speaker(arguments),
        options,
        similarity=load_text_encoder(arguments.text_model),
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        block_size=arguments.block_size,
        made_of=arguments.rows,
    )
    print_summary(report, arguments.output)


def _shown(text: str) -> Any:
    """What `--image` says.

    Raises:
        ValueError: If it says nothing that there is.
    """
    import yaml

    from mllm_align.data.corrupt import Swap, corruption_from

    if not text.startswith(CORRUPT):
        if text in ("none", "other"):
            return text
        raise ValueError(f"--image is none, other or corrupt:KIND, not {text!r}")
    try:
        shown = corruption_from(yaml.safe_load(text.removeprefix(CORRUPT)) or "")
    except yaml.YAMLError as error:
        raise ValueError(f"--image {text!r} cannot be read: {str(error).splitlines()[0]}") from None
    if isinstance(shown, Swap):
        raise ValueError("--image corrupt:swap would show another row's picture: say --image other")
    return shown
