"""`data counterfactual`: from pairs of images with texts, the visually hard ones with different meanings."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from mllm_align.cli.commands import add_command, device
from mllm_align.cli.making import add_rows, load_rows_of, refuse_other_output


def add(data: Any) -> None:
    """Adds `data counterfactual`."""
    command = add_command(
        data,
        "counterfactual",
        _counterfactual,
        "keep pairs of images that look alike to one encoder and differ for another, as MVC does; resumes",
    )
    add_rows(command)
    command.add_argument("--category", help="column with a row's category (default: category, or kind)")
    _add_filter(command)
    _add_selection(command)
    _add_rewriting(command)
    command.add_argument("--batch-size", type=int, default=16, help="pairs in memory (default: %(default)s)")
    command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of encoders")
    command.add_argument("--device", type=device, help="default: a GPU where there is one")
    command.add_argument(
        "--block-size", type=int, default=256, help="rows that a kill can cost (default: %(default)s)"
    )


def _add_filter(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--look-alike",
        default="google/siglip-so400m-patch14-384",
        metavar="MODEL",
        help="the encoder to which images must be similar (default: %(default)s)",
    )
    command.add_argument(
        "--meaning",
        default="facebook/dinov2-large",
        metavar="MODEL",
        help="the encoder to which they must differ (default: %(default)s)",
    )
    command.add_argument("--above", type=float, default=0.7, help="least cosine to look alike (default: %(default)s)")
    command.add_argument("--below", type=float, default=0.5, help="greatest cosine to differ (default: %(default)s)")
    command.add_argument(
        "--unfiltered", nargs="+", default=[], metavar="CATEGORY", help="categories whose pairs all stay"
    )


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--flips",
        action="store_true",
        help="an image against its mirror image too, for pairs whose text names a side; not filtered",
    )
    command.add_argument(
        "--flip-categories", nargs="+", default=[], metavar="CATEGORY", help="flips of these categories alone"
    )
    command.add_argument(
        "--balance", choices=("original", "equal"), help="sample categories to the input's proportion, or evenly"
    )
    command.add_argument(
        "--validation",
        type=int,
        default=0,
        metavar="N",
        help="this many pairs into a file of their own that shares no image with the training file",
    )


def _add_rewriting(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rewrite", metavar="MODEL|URL", help="a chat model, or the address of a chat endpoint, writes texts out"
    )
    command.add_argument("--rewrite-model", metavar="NAME", help="what the endpoint calls the model")
    command.add_argument("--key-env", metavar="NAME", help="environment variable with the endpoint's key")


def _counterfactual(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.assembling import CounterfactualOptions, make_counterfactual
    from mllm_align.data.mine.encoder import ImageEmbedder
    from mllm_align.data.processes import processes
    from mllm_align.models import model_path

    options = CounterfactualOptions(
        visual_above=arguments.above,
        semantic_below=arguments.below,
        unfiltered=tuple(arguments.unfiltered),
        flips=arguments.flips or bool(arguments.flip_categories),
        flip_categories=tuple(arguments.flip_categories),
        balance=arguments.balance,
        num_validation=arguments.validation,
        seed=arguments.seed,
        category=arguments.category,
    )
    refuse_other_output(arguments, *(["validation"] if arguments.validation else []))
    rows = load_rows_of(arguments)
    speaker = _speaker(arguments)
    look_alike, meaning = (
        ImageEmbedder(model_path(name), arguments.device, arguments.dtype, 2 * arguments.batch_size)
        for name in (arguments.look_alike, arguments.meaning)
    )
    report = make_counterfactual(
        rows,
        arguments.output,
        look_alike,
        meaning,
        options,
        speaker=speaker,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        batch_size=arguments.batch_size,
        block_size=arguments.block_size,
        made_of=arguments.rows,
    )
    if processes().is_main_process:
        print("\n".join(_summary(report, arguments.output)))


def _speaker(arguments: argparse.Namespace) -> Any:
    from mllm_align.data.mine.chat import ChatEndpoint
    from mllm_align.data.mine.text_model import TextModel

    name = arguments.rewrite
    if name is None:
        return None
    if not name.startswith(("http://", "https://")):
        return TextModel(name, arguments.device)
    if arguments.rewrite_model is None:
        raise ValueError("--rewrite-model is missing: name the model as the endpoint calls it")
    return ChatEndpoint(name, arguments.rewrite_model, arguments.key_env)


def _summary(report: Mapping[str, Any], output: str) -> Iterator[str]:
    unusable = sum(entry["rows"] for entry in report["problems"].values())
    yield f"{report['rows']:,} rows in, {unusable:,} that cannot be used"
    for kind, entry in report["problems"].items():
        yield f"  {kind} {entry['rows']:,}, such as {entry['examples'][0]}"
    options, cosines = report["options"], report["similarities"]
    for name in report["categories not found"]:
        yield f"  no usable pair is of category {name!r}"
    yield f"{report['hard']:,} of {report['usable']:,} pairs kept by the filter"
    if report["usable"]:
        for name, bound, side in (("visual", "visual_above", "above"), ("semantic", "semantic_below", "below")):
            found = cosines[name]
            spread = ", ".join(f"{found[share]:.2f}" for share in ("10%", "50%", "90%"))
            yield f"  {name} cosine {side} {options[bound]:g}: {found[side]:,} pairs; at 10, 50 and 90 %: {spread}"
    if "flips" in report:
        yield from _flip_lines(report["flips"])
    yield f"{report['duplicates']:,} duplicates"
    if "sampled away" in report:
        yield f"{report['sampled away']:,} pairs sampled away to balance the categories"
    if report["rewriting"] is not None:
        texts = report["rewriting"]["texts"]
        kept = ", ".join(f"{reason} {count:,}" for reason, count in texts.items() if reason != "rewritten")
        done, total = texts.get("rewritten", 0), sum(texts.values())
        yield f"{done:,} of {total:,} pairs rewritten{f'; kept as they were: {kept}' if kept else ''}"
    for name, counts in report["categories"].items():
        yield (
            f"  {name or 'no category'}: {counts['usable']:,} usable, {counts['hard']:,} hard, "
            f"{counts['training']:,} for training, {counts['validation']:,} for validation"
        )
    yield f"{report['training']:,} pairs for training in {output}, {report['validation']:,} for validation"
    if report["validation"] != report["validation asked"]:
        yield _validation_line(report)


def _flip_lines(flips: Mapping[str, Any]) -> Iterator[str]:
    """How many flips there are, and why there are no more."""
    yield f"{flips['kept']:,} of {flips['possible']:,} possible left-right flips"
    if flips["kept"] < flips["possible"]:
        yield "  as many as give their categories the share that they have in the input"
    for reason, count in sorted(flips["impossible"].items()):
        yield f"  no flip of {count:,} pairs: {reason}"
    if not flips["possible"]:
        yield (
            "  a flip needs a text that says left or right of a place, and a prompt that names no side or both: leave "
            "--flips out, or give rows with such texts"
        )


def _validation_line(report: Mapping[str, Any]) -> str:
    """Why the validation file has not as many pairs as were asked for, and what to do."""
    asked, found, groups = report["validation asked"], report["validation"], report["groups"]
    total = report["training"] + found
    reason = f"  {asked:,} were asked for; pairs that share an image stay together, in {groups['number']:,} groups of "
    reason += f"at most {groups['largest']:,}"
    if asked >= total:
        return f"{reason}, and there are {total:,} pairs in all: ask for fewer, or keep more (--above, --below)"
    if groups["number"] < 2:
        return f"{reason}: nothing can be split off; give rows of which some share no image with the others"
    return (
        f"{reason}: {found:,} is the nearest number; for another, give more rows that share no image with the others"
    )
