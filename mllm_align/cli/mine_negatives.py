"""`data mine-negatives`: texts near a picture and false of it, mined among the rows' own with any dual encoder."""

from __future__ import annotations

import argparse
from typing import Any

from mllm_align.cli.commands import add_command, device
from mllm_align.cli.making import add_rows, load_rows_of, refuse_other_output


def add(data: Any) -> None:
    """Adds `data mine-negatives`."""
    mine = add_command(
        data,
        "mine-negatives",
        _mine,
        "give rows of a picture and a text hard negatives, mined with an encoder; under `accelerate launch`, resumes",
    )
    add_rows(mine)
    mine.add_argument("--texts", default="auto", metavar="COLUMN", help="strings or lists of them (default: the "
                      "first there is of caption, captions and chosen)")  # fmt: skip
    mine.add_argument("--images", default="image", metavar="COLUMN", help="of the pictures (default: %(default)s)")
    _add_encoder(mine)
    _add_choice(mine)
    mine.add_argument(
        "--same-picture",
        type=float,
        default=0.99,
        help="cosine from which two pictures are one, whose texts are no negatives of each other; above 1 for only "
        "equal ones (default: %(default)s)",
    )
    mine.add_argument(
        "--contrast-images", action="store_true", help="also the nearest picture that a row's first text is false of"
    )
    mine.add_argument(
        "--index", default="auto", choices=("auto", "exact", "ivf", "hnsw"), help="of FAISS (default: by size)"
    )
    mine.add_argument("--block-size", type=int, default=1024, help="pictures that a kill can cost (default: 1024)")


def _add_encoder(mine: argparse.ArgumentParser) -> None:
    mine.add_argument(
        "--model", help="CLIP, SigLIP or another dual encoder, or a model trained to embed: Hub id or folder"
    )
    mine.add_argument(
        "--image-vectors", metavar="FILE", help="instead: .npy or .npz, one vector per row, or what `encode` wrote"
    )
    mine.add_argument(
        "--text-vectors", metavar="FILE", help="and one per text, in the order of the rows, or what `encode` wrote"
    )
    mine.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    mine.add_argument("--device", type=device, help="default: a GPU where there is one")
    mine.add_argument("--batch-size", type=int, default=32, help="of the encoder (default: %(default)s)")


def _add_choice(mine: argparse.ArgumentParser) -> None:
    mine.add_argument("--per-row", type=int, default=3, help="negatives of a picture (default: %(default)s)")
    mine.add_argument("--range-min", type=int, default=0, help="nearest that are skipped (default: %(default)s)")
    mine.add_argument("--range-max", type=int, help="how many are looked at (default: as many as it takes)")
    mine.add_argument("--max-score", type=float, help="cosine with the picture at the most")
    mine.add_argument("--min-score", type=float, help="cosine with the picture at the least")
    mine.add_argument("--absolute-margin", type=float, help="cosine below that of the picture's least near own text")
    mine.add_argument(
        "--relative-margin", type=float, help="the same as a share of that cosine; NV-Retriever recommends 0.05"
    )
    mine.add_argument("--max-words", type=int, help="of a negative, told apart by blanks; longer texts are not mined")
    mine.add_argument("--sampling", default="top", choices=("top", "random"), help="default: the nearest")


def _mine(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.hard_negatives import MiningOptions, mine_negatives
    from mllm_align.data.mine.negative_choice import NegativeChoice

    refuse_other_output(arguments)
    options = MiningOptions(
        choice=NegativeChoice(
            per_row=arguments.per_row,
            range_min=arguments.range_min,
            range_max=arguments.range_max,
            max_score=arguments.max_score,
            min_score=arguments.min_score,
            absolute_margin=arguments.absolute_margin,
            relative_margin=arguments.relative_margin,
            sampling=arguments.sampling,
            seed=arguments.seed,
        ),
        column=arguments.texts,
        images=arguments.images,
        same_picture=arguments.same_picture if arguments.same_picture <= 1 else None,
        max_words=arguments.max_words,
        contrast=arguments.contrast_images,
        index=arguments.index,
    )
    rows = load_rows_of(arguments)
    report = mine_negatives(
        rows,
        arguments.output,
        _encoder(arguments, rows, options),
        options,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        block_size=arguments.block_size,
        made_of=arguments.rows,
    )
    _print(report, arguments.output)


def _encoder(arguments: argparse.Namespace, rows: Any, options: Any) -> Any:
    from mllm_align.cli.own_encoder import TrainedEmbedder
    from mllm_align.data.mine.captioned import texts_in
    from mllm_align.data.mine.dual_embedder import DualEmbedder
    from mllm_align.data.mine.hard_negatives import GivenVectors, text_column
    from mllm_align.data.mine.listing import list_images
    from mllm_align.data.mine.vector_files import load_vectors
    from mllm_align.encoding import has_embedding

    files = [arguments.image_vectors, arguments.text_vectors]
    if arguments.model is not None and files == [None, None]:
        if has_embedding(arguments.model):
            placed = {"device": arguments.device} if arguments.device is not None else {}
            return TrainedEmbedder(arguments.model, arguments.batch_size, dtype=arguments.dtype, **placed)
        return DualEmbedder(arguments.model, arguments.device, arguments.dtype, arguments.batch_size)
    if arguments.model is not None or None in files:
        raise ValueError("name one encoder: --model, or --image-vectors and --text-vectors with what another one made")
    shown = list_images(rows, options.images).keys
    column = text_column(rows, options.column)
    said = [text for row in rows for text in texts_in(row.get(column)) or ()]
    return GivenVectors(load_vectors(files[0], "image", shown), load_vectors(files[1], "text", said), "given vectors")


def _print(report: dict[str, Any], output: str) -> None:
    from mllm_align.cli.making import print_summary
    from mllm_align.data.processes import processes

    print_summary(report, output)
    if not processes().is_main_process:
        return
    share = report["without"] / max(report["kept"], 1)
    print(f"  {report['negatives']:,} negatives, of {report['pictures']:,} pictures and {report['texts']:,} texts")
    if report["long_texts"]:
        print(f"    of more than {report['options']['max_words']} words, and not mined: {report['long_texts']:,}")
    print(f"  rows without a negative: {report['without']:,} ({share:.1%})")
    dropped = report["dropped"]
    for name, count in dropped.items():
        print(f"    candidates dropped for {name}: {count:,}")
    others = sum(count for name, count in dropped.items() if name not in ("known positive", "same picture"))
    if dropped["same picture"] > others + report["negatives"]:
        print(
            "  most candidates are texts of pictures that are taken for the same one (cosine from "
            f"{report['options']['same_picture']:g}): raise --same-picture if they are not, or keep one row of each"
        )
    if report["contrasts"] is not None:
        print(f"  {report['contrasts']:,} contrast images")
        for name, count in report["dropped_contrasts"].items():
            print(f"    candidates dropped for {name}: {count:,}")
