"""`data clip-blind`: pairs of images that one encoder cannot tell apart and another one can."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from mllm_align.cli.commands import add_command, device
from mllm_align.cli.making import add_source, load_named


def add(data: Any) -> None:
    """Adds `data clip-blind`."""
    command = add_command(
        data,
        "clip-blind",
        _clip_blind,
        "find pairs of images that are alike to one encoder and unlike to another, as MMVP does; resumes",
    )
    command.add_argument(
        "images", help="a folder of images, or rows: a file, a folder, a dataset on the Hub, world:pairs"
    )
    command.add_argument("--output", required=True, help=".jsonl or .parquet file; a contact sheet goes beside it")
    add_source(command)
    command.add_argument("--column", default="image", help="column of the rows with the image (default: %(default)s)")
    command.add_argument("--group", help="column; images of rows with the same value make no pair")
    _add_encoders(command)
    _add_pairs(command)
    _add_rows(command)
    command.add_argument("--strict", action="store_true", help="an image that cannot be read is an error")
    command.add_argument("--overwrite", action="store_true", help="replace output files with another content")


def _add_encoders(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--look-alike",
        default="openai/clip-vit-large-patch14",
        metavar="MODEL",
        help="the encoder to which images are alike (default: %(default)s)",
    )
    command.add_argument(
        "--meaning",
        default="facebook/dinov2-large",
        metavar="MODEL",
        help="the encoder to which they are unlike (default: %(default)s)",
    )
    command.add_argument(
        "--meaning-pooling",
        default="auto",
        choices=("auto", "cls", "mean"),
        help="its descriptor: auto is the model's own, the normalised class token of DINOv2 (default: %(default)s)",
    )
    command.add_argument(
        "--vectors",
        nargs=2,
        metavar=("LOOK_ALIKE", "MEANING"),
        help="two folders that `data embed` wrote of these images, instead of the models",
    )
    command.add_argument(
        "--still", nargs="+", default=[], metavar="MODEL", help="count the pairs that these encoders find alike, too"
    )
    command.add_argument(
        "--still-above", type=float, help="their bound on the cosine (default: that of the pairs that were found)"
    )
    command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of encoders")
    command.add_argument(
        "--device", type=device, help="of encoders and of the exact search; default: a GPU where there is one"
    )
    command.add_argument("--batch-size", type=int, default=32, help="images of a pass (default: %(default)s)")


def _add_pairs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--above", type=float, default=0.95, help="least cosine to be alike (default: %(default)s)")
    command.add_argument("--below", type=float, default=0.6, help="greatest to be unlike (default: %(default)s)")
    command.add_argument(
        "--above-share",
        type=float,
        metavar="SHARE",
        help="instead of --above, the share of all pairs that is above it: as rare as another encoder's (its report "
        "says)",
    )
    command.add_argument("--below-share", type=float, metavar="SHARE", help="the same for --below")
    command.add_argument(
        "--repeated",
        type=float,
        default=0.95,
        metavar="COSINE",
        help="images above it in meaning show the same: the first takes part; 1 for all (default: %(default)s)",
    )
    command.add_argument(
        "--repeated-looks", action="store_true", help="of images that are the same to the eye, the first alone, too"
    )
    command.add_argument(
        "--exclude", nargs="+", default=[], metavar="FOLDER", help="images of a benchmark, which take no part"
    )
    command.add_argument("--per-image", type=int, default=5, help="pairs with one image (default: %(default)s)")
    command.add_argument("--limit", type=int, default=100_000, help="pairs in all (default: %(default)s)")
    command.add_argument(
        "--index",
        default="exact",
        choices=("exact", "ivf", "hnsw"),
        help="exact finds all; FAISS's others most, from a million images on without a GPU (default: %(default)s)",
    )
    command.add_argument(
        "--block-size", type=int, default=8192, help="images of a block, which is what is in memory (default: "
        "%(default)s)"
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of samples (default: %(default)s)")


def _add_rows(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", help="question of every row (default: the input's, where both images have one)")
    command.add_argument("--texts", metavar="COLUMN", help="column with an image's text (default: the input's chosen)")
    command.add_argument(
        "--answer",
        metavar="MODEL",
        help="a vision-language model (or demo-base) that answers it where texts are missing",
    )
    command.add_argument("--sheet", type=int, default=200, help="pairs on the contact sheet (default: %(default)s)")


def _clip_blind(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.blind_rows import refuse_unknown_texts
    from mllm_align.data.mine.clip_blind import BlindOptions, mine_blind_pairs, refuse_other_outputs
    from mllm_align.data.mine.listing import is_image_folder
    from mllm_align.data.output import RowFile
    from mllm_align.data.processes import processes

    options = BlindOptions(
        above=arguments.above,
        below=arguments.below,
        above_share=arguments.above_share,
        below_share=arguments.below_share,
        repeated_above=arguments.repeated,
        repeated_looks=arguments.repeated_looks,
        per_image=arguments.per_image,
        limit=arguments.limit,
        index=arguments.index,
        tile=arguments.block_size,
        seed=arguments.seed,
    )
    file = RowFile(arguments.output, overwrite=arguments.overwrite)
    refuse_other_outputs(file, arguments.sheet)
    images: Any = arguments.images
    if not is_image_folder(images):
        images = load_named(arguments, images)
    refuse_unknown_texts(images, arguments.texts)
    look_alike, meaning = _embeddings(arguments, images, file)
    report = mine_blind_pairs(
        images,
        look_alike,
        meaning,
        arguments.output,
        options,
        exclude=arguments.exclude,
        column=arguments.column,
        prompt=arguments.prompt,
        texts=arguments.texts,
        speaker=_speaker(arguments),
        sheet=arguments.sheet,
        overwrite=arguments.overwrite,
        device=arguments.device,
        made_of=arguments.images,
    )
    if processes().is_main_process:
        print("\n".join(_summary(report, arguments.output)))
        for name in arguments.still:
            print(_still(arguments, name, report))


def _embeddings(arguments: argparse.Namespace, images: Any, file: Any) -> Iterator[Any]:
    """Of both encoders: those that are named, or made here."""
    from mllm_align.data.mine.embed import embed_images
    from mllm_align.data.mine.embeddings import Embeddings
    from mllm_align.data.mine.encoder import ImageEmbedder
    from mllm_align.models import model_path

    if arguments.vectors:
        yield from map(Embeddings, arguments.vectors)
        return
    poolings = {"look_alike": "auto", "meaning": arguments.meaning_pooling}
    for side, pooling in poolings.items():
        model = model_path(getattr(arguments, side))
        yield embed_images(
            images,
            ImageEmbedder(model, arguments.device, arguments.dtype, arguments.batch_size, pooling),
            file.work_folder / f"vectors-{side}",
            column=arguments.column,
            group=arguments.group,
            precision="float16",
            strict=arguments.strict,
            made_of=arguments.images,
        )


def _speaker(arguments: argparse.Namespace) -> Any:
    from mllm_align.cli.speaker import ModelSpeaker
    from mllm_align.models import load_model

    if arguments.answer is None:
        return None
    return ModelSpeaker(*load_model(arguments.answer), batch_size=arguments.batch_size)


def _still(arguments: argparse.Namespace, name: str, report: Mapping[str, Any]) -> str:
    """To which share of the pairs a further encoder is blind."""
    from mllm_align.data.loading import load_rows
    from mllm_align.data.mine.encoder import ImageEmbedder
    from mllm_align.data.mine.still_blind import still_blind
    from mllm_align.models import model_path

    above = report["bounds"]["above"] if arguments.still_above is None else arguments.still_above
    if not report["pairs"]:
        return f"still blind to {name}: there is no pair"
    embedder = ImageEmbedder(model_path(name), arguments.device, arguments.dtype, arguments.batch_size)
    found = still_blind(load_rows(arguments.output), embedder, above)
    middle = found.as_dict()["cosines"].get("50%", float("nan"))
    return (
        f"still blind: {name} finds {found.alike:,} of {found.pairs:,} pairs alike ({found.share:.1%} above {above:g}"
        f"; half of the cosines are above {middle:.3f})"
    )


def _summary(report: Mapping[str, Any], output: str) -> Iterator[str]:
    bounds, encoders = report["bounds"], report["encoders"]
    yield f"{report['images']:,} images, {report['distinct']:,} different ones that both encoders read"
    for name, what in (
        ("excluded", "are in an excluded folder"),
        ("repeated to the eye", "are the same to the eye as an earlier one"),
        ("repeated in meaning", "show what an earlier one shows, by their meaning"),
    ):
        if report.get(name):
            yield f"  {report[name]:,} {what}"
    yield f"{report['compared']:,} compared"
    yield f"  alike: cosine above {bounds['above']:g} to {encoders['look_alike']['encoder']}"
    yield f"  unlike: cosine below {bounds['below']:g} to {encoders['meaning']['encoder']}"
    if "alike" in report:
        yield f"{report['alike']:,} pairs alike, {report['blind']:,} of them unlike in meaning"
    if "recall of alike pairs" in report:
        found = report["recall of alike pairs"]
        share = "no pair to tell it by" if found["recall"] is None else f"{found['recall']:.1%} of {found['pairs']:,}"
        yield f"alike pairs that the index finds, of {found['images']:,} images compared with all: {share}"
    cut = f", the best {report['pairs']:,} kept (--limit)" if report["pairs"] < report["best"] else ""
    yield f"{report['best']:,} pairs with at most {report['options']['per_image']} of one image{cut}, in {output}"
    if not report["best"]:
        spread = ", ".join(f"{share} {value:.2f}" for share, value in report["cosines"]["look_alike"].items())
        yield f"  cosines of all pairs to the first encoder, below which so many are: {spread}: see --above-share"
    if report.get("with texts", 0) < report["pairs"]:
        missing = report["pairs"] - report["with texts"]
        yield f"  {missing:,} have no chosen and rejected text: name a column (--texts) or a model (--answer)"
    for reason, count in report.get("speaker", {}).get("outcome", {}).items():
        yield f"  the model that answers: {reason} {count:,}"
    if report["on the sheet"]:
        yield f"contact sheet of {report['on the sheet']:,} pairs: {output.rpartition('.')[0]}.html"
