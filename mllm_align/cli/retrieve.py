"""`data retrieve`: Re-Align's data: similar pictures, and the masked response completed on one of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mllm_align.cli.commands import add_command
from mllm_align.cli.making import (
    add_band,
    add_model,
    add_rows,
    load_rows_of,
    load_speaker,
    load_text_encoder,
    print_summary,
    refuse_other_output,
)


def add(data: Any) -> None:
    """Adds `data retrieve`."""
    retrieve = add_command(
        data, "retrieve", _retrieve, "give rows a similar picture and a response completed on it, as Re-Align does"
    )
    add_rows(retrieve)
    add_model(retrieve)
    retrieve.add_argument("--images", help="folder or rows with further pictures to retrieve (default: the rows' own)")
    retrieve.add_argument("--encoder", help="that compares pictures (default: the image side of --model)")
    add_band(retrieve)
    retrieve.add_argument("--k", type=int, default=5, help="most neighbours that are tried (default: %(default)s)")
    retrieve.add_argument(
        "--complete",
        default="instruct",
        choices=("instruct", "continue"),
        help="ask for the completed response, or have it continued from each mask, for models that follow no "
        "instructions (default: %(default)s)",
    )
    retrieve.add_argument(
        "--segments", default="rule", choices=("rule", "model"), help="who finds what to mask (default: %(default)s)"
    )
    retrieve.add_argument(
        "--mask-share", type=float, default=0.5, help="of the segments that are masked (default: %(default)s)"
    )
    retrieve.add_argument("--max-segments", type=int, default=8, help="masked at the most (default: %(default)s)")
    retrieve.add_argument(
        "--text-model",
        default="sentence-transformers/all-mpnet-base-v2",
        help="the text encoder that compares responses, Hub id or folder (default: %(default)s, fetched from the Hub "
        "where it is not there yet); none goes without: only words of content are compared",
    )
    retrieve.add_argument(
        "--max-text-similarity", type=float, default=0.95, help="cosine under it, exclusive (default: %(default)s)"
    )


def _retrieve(arguments: argparse.Namespace) -> None:
    from mllm_align.data.mine.gallery import Gallery
    from mllm_align.data.mine.masking import Masking
    from mllm_align.data.mine.realign import NOT_COMPLETED, RealignOptions, make_realigned
    from mllm_align.data.output import RowFile
    from mllm_align.data.processes import processes

    refuse_other_output(arguments)
    options = RealignOptions(
        way=arguments.complete,
        masking=Masking(arguments.mask_share, arguments.max_segments, arguments.seed),
        k=arguments.k,
        max_similarity=arguments.max_text_similarity,
        max_new_tokens=arguments.max_new_tokens,
    )
    rows = load_rows_of(arguments)
    pictures = Gallery(rows, _further(arguments))
    similarity = load_text_encoder(arguments.text_model)  # before the long part: it may not be there
    neighbours, retrieval = _neighbours(arguments, pictures, RowFile(arguments.output).work_folder)
    speaker = load_speaker(arguments)
    report = make_realigned(
        rows,
        pictures,
        neighbours,
        arguments.output,
        speaker,
        options,
        retrieval=retrieval,
        similarity=similarity,
        segmenter=speaker if arguments.segments == "model" else None,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        block_size=arguments.block_size,
        made_of=arguments.rows,
    )
    print_summary(report, arguments.output)
    unfilled = report["filters"].get(NOT_COMPLETED, 0)
    if options.way == "instruct" and not report["kept"] and unfilled and processes().is_main_process:
        print(
            f"  no row is kept, and {unfilled:,} responses were not completed as they were asked for: a model that "
            "does not follow instructions needs --complete continue, with another --output"
        )


def _further(arguments: argparse.Namespace) -> Any:
    """The pictures of `--images`."""
    from mllm_align.data.mine.listing import is_image_folder, list_images

    if arguments.images is None:
        return ()
    if is_image_folder(arguments.images):
        found = list_images(arguments.images)
        return [{"image": path, "id": name} for path, name in zip(found.keys, found.ids, strict=True)]
    return load_rows_of(arguments, arguments.images)


def _neighbours(arguments: argparse.Namespace, pictures: Any, work: Path) -> tuple[Any, dict[str, Any]]:
    """Similar pictures of each, and how they were found."""
    from mllm_align.data.mine.embed import embed_images
    from mllm_align.data.mine.encoder import ImageEmbedder
    from mllm_align.data.mine.neighbours import similar_images
    from mllm_align.models import model_path

    low, high = arguments.band
    embedder = ImageEmbedder(model_path(arguments.encoder or arguments.model))
    facts = {"encoder": embedder.identity, "index": arguments.index, "band": [low, high], "pictures": len(pictures)}
    if not len(pictures):
        return _NoNeighbours(), facts
    settings = {"strict": arguments.strict, "made_of": arguments.rows}
    embeddings = embed_images(pictures, embedder, work / "embeddings", **settings)
    if not len(embeddings):
        return _NoNeighbours(), facts
    facts["embeddings"] = embeddings.identity
    folder = work / "neighbours"
    return similar_images(embeddings, folder, k=arguments.k, low=low, high=high, index=arguments.index), facts


class _NoNeighbours:
    """What is found where there is no picture that could be read."""

    def of(self, row: int) -> SimpleNamespace:
        return SimpleNamespace(rows=(), similarities=())
