"""CLIP-blind pairs: images that one encoder finds alike and another one unlike.

Tong et al. (2024, https://arxiv.org/abs/2401.06209, MMVP) take pairs with a cosine above 0.95 for CLIP ViT-L/14 (the
projected vector) and below 0.6 for DINOv2 ViT-L/14, out of ImageNet and LAION-Aesthetics. Which vector of DINOv2 they
took is not known; the class token after the last norm is what `data embed` gives by default, and the report names what
was taken. Their code was never published; this is the definition, searched exactly.

    visual, semantic = Embeddings("work/clip"), Embeddings("work/dinov2")  # of the same images: `embed_images`
    report = mine_blind_pairs("photos/", visual, semantic, "blind.jsonl")
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mllm_align.data.blocks import SETTINGS
from mllm_align.data.errors import DataError
from mllm_align.data.files import as_text
from mllm_align.data.mine.alike_pairs import Search, TilePairs
from mllm_align.data.mine.blind_answers import with_answers
from mllm_align.data.mine.blind_rows import blind_rows
from mllm_align.data.mine.blind_search import blind_pairs, repeated_images
from mllm_align.data.mine.contact_sheet import write_contact_sheet
from mllm_align.data.mine.embeddings import Embeddings
from mllm_align.data.mine.index_pairs import IndexPairs, estimated_recall
from mllm_align.data.mine.listing import Listing, list_images
from mllm_align.data.mine.neighbours import INDEX_FILE, kept_index
from mllm_align.data.mine.picture_looks import later_copies, looks_of, looks_of_folders, shown_in
from mllm_align.data.mine.results import write_results
from mllm_align.data.mine.speaking import Speaker
from mllm_align.data.mine.thresholds import Distribution
from mllm_align.data.mine.tiles import Tiles
from mllm_align.data.output import RowFile
from mllm_align.data.processes import processes

INDICES = ("exact", "ivf", "hnsw")


@dataclass(frozen=True, kw_only=True)
class BlindOptions:
    """What a CLIP-blind pair is, and how many there may be.

    Attributes:
        above: Least cosine of the encoder to which images look alike, exclusive.
        below: Greatest cosine of the encoder of meaning, exclusive.
        above_share: Instead of `above`, the share of all pairs that is above it.
        below_share: Instead of `below`, the share of all pairs that is below it.
        repeated_above: Of images whose cosine of meaning is above, the first takes part alone; 1 for all of them.
        repeated_looks: Whether of images that are the same to the eye (`looks`) the first takes part alone, too.
        per_image: Pairs that show one image, at the most: those with the largest gap between both cosines.
        limit: Pairs in all, at the most.
        index: "exact", or "ivf" or "hnsw" of FAISS, which find most pairs, for millions of images without a GPU.
        tile: Images of a block: two of them are in memory, of both encoders.
        seed: Of samples.
    """

    above: float = 0.95
    below: float = 0.6
    above_share: float | None = None
    below_share: float | None = None
    repeated_above: float = 0.95
    repeated_looks: bool = False
    per_image: int = 5
    limit: int = 100_000
    index: str = "exact"
    tile: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("above", "below", "repeated_above"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a cosine, between -1 and 1, not {getattr(self, name)}")
        for name in ("per_image", "limit", "tile"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.index not in INDICES:
            raise ValueError(f"index must be one of {', '.join(INDICES)}, not {self.index!r}")
        if self.below_share is None and self.below > self.repeated_above:
            raise ValueError(
                f"below {self.below} is above repeated_above {self.repeated_above}: images so alike in meaning are "
                "taken for the same picture, so no pair of them is left"
            )


def mine_blind_pairs(
    images: Any,
    look_alike: Embeddings,
    meaning: Embeddings,
    output: str | os.PathLike[str],
    options: BlindOptions | None = None,
    *,
    exclude: Sequence[str | os.PathLike[str]] = (),
    column: str = "image",
    prompt: str | None = None,
    texts: str | None = None,
    speaker: Speaker | None = None,
    max_new_tokens: int = 64,
    sheet: int = 200,
    overwrite: bool = False,
    device: Any = None,
    progress: bool = True,
    made_of: str = "",
) -> dict[str, Any]:
    """Writes canonical pair rows, a contact sheet (`<stem>.html`) and `<output>.report.json`.

    Killed and started again, it goes on, and ends with the very same files. A collective: every process of
    `accelerate launch` must call it; the first one writes. With "exact" the pairs are those that a loop over all pairs
    in float64 finds, whatever the tiles, and memory does not grow with N x N: two tiles of both encoders, a strip of
    products, and the best pairs of every image.

    Args:
        images: The folder of images, or the rows, that both were embedded of.
        look_alike: Vectors of the encoder to which images must look alike.
        meaning: Vectors of the one to which they must differ.
        output: .jsonl or .parquet.
        options: What a pair is.
        exclude: Folders of images, as of a benchmark; an image that is the same to the eye takes no part.
        column: The column of the rows that holds the image.
        prompt: The question of every row; by default that of the input's rows, or a plain one.
        texts: The column with the text of an image, for `chosen` and `rejected`; by default the input's `chosen`,
            where both images have the same prompt.
        speaker: A vision-language model that answers the prompt for both images where there are no texts.
        max_new_tokens: Of its answers.
        sheet: Pairs on the contact sheet; 0 for none.
        overwrite: Whether output files with another content may be replaced.
        device: Where the exact search takes its products; by default the process's own of `accelerate`.
        progress: Whether to show bars.
        made_of: What the images are called, for messages.

    Returns:
        The report.

    Raises:
        DataError: If the vectors are not of these images, or of different ones, or fewer than two are left.
        FileExistsError: If an output is there with another content and may not be replaced.
        ValueError: If the work folder holds a job with other settings, or a share is too small to be told.
    """
    options = options or BlindOptions()
    file = RowFile(output, overwrite=overwrite)
    refuse_other_outputs(file, sheet)
    listing = list_images(images, column)
    made_of = made_of or (os.fspath(images) if isinstance(images, str | os.PathLike) else "")
    rows = common_rows(look_alike, meaning, listing)
    report: dict[str, Any] = {
        "images": len(listing),
        "problems": {"look_alike": len(look_alike.problems), "meaning": len(meaning.problems)},
        "encoders": {"look_alike": described(look_alike), "meaning": described(meaning)},
        "options": asdict(options),
        "distinct": len(rows),
    }
    rows, found = _without(rows, listing, options, exclude, file.work_folder, progress, made_of)
    report |= found
    # Which images take part, by encoders, files and folders that are left out.
    identity = {"images": [look_alike.identity, meaning.identity], "of": [len(rows), int(rows.sum())]}
    identity |= {"repeated_above": options.repeated_above, "tile": options.tile}
    device = str(processes().device if device is None else device)
    if options.repeated_above < 1 and len(rows):
        tiles = Tiles(meaning, rows, options.tile)
        folder = file.work_folder / "repeated"
        search = _search(tiles, options.repeated_above, options, folder, device)
        repeated = repeated_images(search, rows, folder, identity, progress=progress)
        rows = np.setdiff1d(rows, repeated)
        report["repeated in meaning"] = len(repeated)
    if len(rows) < 2:
        repeats = report.get("repeated in meaning", 0)
        raise DataError(
            f"{len(rows)} of {len(listing)} images are left to be compared, at least 2 are needed: "
            f"{report['distinct']} are different and could be read by both encoders, {report['excluded']} are in an "
            f"excluded folder, {report['repeated to the eye']} repeat one to the eye and {repeats} in meaning, with a "
            f"cosine above {options.repeated_above:g}: raise that bound for an encoder whose cosines are all high"
        )
    visual, semantic = Tiles(look_alike, rows, options.tile), Tiles(meaning, rows, options.tile)
    above, below, measured = _bounds(visual, semantic, options)
    report |= {"compared": len(rows), **measured}
    folder = file.work_folder / "pairs"
    search = _search(visual, above, options, folder, device)
    kin = tuple(look_alike.labels(name) for name in ("id", "group"))
    settings = identity | {"above": above}
    result = blind_pairs(search, semantic, below, options.per_image, kin, folder, settings, progress=progress)
    counts = {"alike": result.alike, "blind": result.blind} if isinstance(search, TilePairs) else {}
    pairs = result.pairs.where(np.arange(min(options.limit, len(result.pairs.first))))
    report |= {**counts, "best": len(result.pairs.first), "pairs": len(pairs.first)}
    if isinstance(search, IndexPairs):
        report["recall of alike pairs"] = estimated_recall(search, options.seed)
    made = list(blind_rows(images, listing, pairs, report, prompt=prompt, texts=texts))
    if speaker is not None:
        work = file.work_folder / "texts"
        made, report["speaker"] = with_answers(made, speaker, work, max_new_tokens, progress=progress)
    report["with texts"] = sum("chosen" in row for row in made)
    if processes().is_main_process:
        shown = write_contact_sheet(made[:sheet], sheet_path(file), report, overwrite=overwrite) if sheet else 0
        report["on the sheet"] = shown
    write_results(file, made, report)
    return report


def common_rows(look_alike: Embeddings, meaning: Embeddings, listing: Listing) -> np.ndarray:
    """(N,) int64: the rows of the distinct images that both encoders could use.

    Raises:
        DataError: If the vectors are not of the images of the listing, or of images that changed in between.
    """
    names = _names(listing.ids, listing.keys)
    for side in (look_alike, meaning):
        if _names(side.column("id"), side.column("key")) != names:
            raise DataError(
                f"{side.folder} holds vectors of {side.num_rows} rows, which are not those {len(listing)} images: "
                "embed these (`mllm-align data embed`), or name the images that were embedded"
            )
    rows = np.intersect1d(look_alike.rows, meaning.rows)
    one, other = look_alike.column("digest"), meaning.column("digest")
    for row in rows.tolist():
        if one[row] != other[row]:
            raise DataError(
                f"row {row} shows other pixels in {look_alike.folder} than in {meaning.folder}: it was replaced in "
                "between; give both `data embed` commands again"
            )
    return rows


def _names(ids: Sequence[str | None], keys: Sequence[str | None]) -> list[str]:
    """What tells images apart wherever they lie: their ids, or else the names of their files."""
    return [
        as_text(name if name is not None else os.path.basename(key or "")) for name, key in zip(ids, keys, strict=True)
    ]


def described(embeddings: Embeddings) -> dict[str, Any]:
    """Of which encoder vectors are: name, weights, processor, descriptor and precision, length and storage."""
    settings = json.loads((embeddings.folder / SETTINGS).read_text(encoding="utf-8"))
    return {
        "encoder": settings.get("embedder"),
        "dim": embeddings.dim,
        "stored": settings["precision"],
        "embeddings": embeddings.identity,
    }


def refuse_other_outputs(file: RowFile, sheet: int) -> None:
    """Before anything is loaded.

    Raises:
        FileExistsError: If an output is there, and not of this job.
    """
    file.refuse_other()
    path = sheet_path(file)
    if sheet and path.exists() and not file.overwrite and not file.work_folder.exists():
        raise FileExistsError(f"{path} is there already and is kept: name another output, or --overwrite")


def sheet_path(file: RowFile) -> Path:
    """Where the contact sheet of an output is."""
    return file.path.with_suffix(".html")


def _without(
    rows: np.ndarray,
    listing: Listing,
    options: BlindOptions,
    exclude: Sequence[str | os.PathLike[str]],
    work: Path,
    progress: bool,
    made_of: str,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows whose images take part by what they look like, and counts of the others."""
    counts = {"excluded": 0, "repeated to the eye": 0}
    if not exclude and not options.repeated_looks:
        return rows, counts
    others = looks_of_folders(exclude)  # first: it may not be there
    looks = looks_of(listing, rows, work / "looks", progress=progress, made_of=made_of)
    excluded = shown_in(looks, others) if others else np.empty(0, np.int64)
    left = {row: looks[row] for row in looks.keys() - set(excluded.tolist())}
    repeated = later_copies(left) if options.repeated_looks else np.empty(0, np.int64)
    counts = {"excluded": len(excluded), "repeated to the eye": len(repeated)}
    return np.setdiff1d(rows, np.concatenate([excluded, repeated])), counts


def _search(tiles: Tiles, above: float, options: BlindOptions, folder: Path, device: str) -> Search:
    if options.index == "exact":
        return TilePairs(tiles, above, device)
    # Named by its vectors, so that the index of other ones is not taken for it.
    numbers = (tiles.embeddings.identity, len(tiles.rows), int(tiles.rows.sum()))
    name = "-".join([options.index, *map(str, numbers), INDEX_FILE])
    return IndexPairs(tiles, above, kept_index(tiles, folder.with_name(f"{folder.name}-index") / name, options.index))


def _bounds(visual: Tiles, semantic: Tiles, options: BlindOptions) -> tuple[float, float, dict[str, Any]]:
    """Both bounds, given or by their share, and what a sample says of them."""
    alike, apart = Distribution(visual, options.seed), Distribution(semantic, options.seed)
    above, below = options.above, options.below
    if options.above_share is not None:
        above = alike.bound_above(options.above_share, "above_share")
    if options.below_share is not None:
        below = apart.bound_below(options.below_share, "below_share")
    measured = {
        "bounds": {"above": above, "below": below},
        "share above": alike.share_above(above),
        "cosines": {"look_alike": alike.as_dict(), "meaning": apart.as_dict()},
    }
    return above, below, measured
