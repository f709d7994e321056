"""Embedding jobs: the same files whatever happens, every bad image told, rows and folders alike."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.mine.embed import Embeddings, ImageEmbedder, embed_images
from runs import kill_amid, picture, start_ranks, wait_for_ranks
from tiny_encoders import save_encoder

COUNT = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("clip", tmp_path_factory.mktemp("model") / "clip")


@pytest.fixture(scope="module")
def embedder(model: Path) -> ImageEmbedder:
    return ImageEmbedder(model, batch_size=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 good pictures in two folders, one of them again, one of the same pixels, two broken, and a text."""
    folder = tmp_path_factory.mktemp("Bilder é 图")
    (folder / "unten").mkdir()
    for number in range(COUNT):
        picture(number).save(folder / ("unten" if number % 3 else ".") / f"größe {number:02d}.png")
    shutil.copy(folder / "größe 00.png", folder / "zz copy.png")
    Image.open(folder / "größe 03.png").save(folder / "zz same pixels.bmp")
    (folder / "bad.jpg").write_bytes(b"no picture")
    whole = (folder / "größe 06.png").read_bytes()
    (folder / "cut off.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(images: Any, embedder: ImageEmbedder, folder: Path, **changes: Any) -> Embeddings:
    return embed_images(images, embedder, folder, **({"block_size": 8, "progress": False} | changes))


def test_a_folder_with_everything_in_it(
    images: Path, embedder: ImageEmbedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = run(images, embedder, tmp_path / "out")
    assert found.num_rows == COUNT + 4
    assert len(found) == COUNT
    assert sorted(text.split("/")[-1].split(" is ")[0] for text in found.problems.values()) == [
        "bad.jpg",
        "cut off.png",
    ]
    assert "2 images could not be used and are left out" in caplog.text
    assert "1 files of the folder are no images" in caplog.text
    assert "2 rows show an image of an earlier row" in found.summary()
    assert (found.shown_by >= 0).sum() == COUNT + 2
    names = sorted(
        path.relative_to(images).as_posix() for path in images.rglob("*") if path.suffix in (".png", ".bmp", ".jpg")
    )
    files = {name: row for row, name in enumerate(names)}
    assert found.shown_by[files["zz copy.png"]] == files["größe 00.png"]
    assert found.shown_by[files["zz same pixels.bmp"]] == files["größe 03.png"]
    expected = embedder([Image.open(images / names[row]).convert("RGB") for row in found.rows])
    assert np.abs(found.array() - expected).max() < 1e-6
    assert np.array_equal(np.concatenate(list(found)), found.array())
    assert np.array_equal(Embeddings(tmp_path / "out").array(), found.array())


def test_batches_and_threads_change_nothing(
    images: Path, model: Path, embedder: ImageEmbedder, tmp_path: Path
) -> None:
    found = run(images, embedder, tmp_path / "a", workers=1)
    again = run(images, ImageEmbedder(model, batch_size=7), tmp_path / "b", workers=6, block_size=100)
    assert np.array_equal(found.rows, again.rows)
    assert np.abs(found.array() - again.array()).max() < 1e-5


def test_half_precision_on_disk(images: Path, embedder: ImageEmbedder, tmp_path: Path) -> None:
    whole, half = run(images, embedder, tmp_path / "a"), run(images, embedder, tmp_path / "b", precision="float16")
    assert np.abs(whole.array() - half.array()).max() < 1e-3
    assert np.abs(np.linalg.norm(half.array(), axis=1) - 1).max() < 1e-6
    with pytest.raises(ValueError, match="float32, float16"):
        run(images, embedder, tmp_path / "c", precision="int8")


def test_strict_is_an_error_before_and_after(images: Path, embedder: ImageEmbedder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not an image that PIL"):
        run(images, embedder, tmp_path / "out", strict=True)
    run(images, embedder, tmp_path / "out")
    with pytest.raises(DataError, match="2 images could not be used"):
        run(images, embedder, tmp_path / "out", strict=True)


def test_mended_images_are_read(images: Path, embedder: ImageEmbedder, tmp_path: Path) -> None:
    mended = tmp_path / "images"
    shutil.copytree(images, mended)
    found = run(mended, embedder, tmp_path / "out")
    for number, name in enumerate(("bad.jpg", "cut off.png")):
        picture(200 + number).save(mended / name)
    again = run(mended, embedder, tmp_path / "out", strict=True)
    assert not again.problems
    assert again.identity != found.identity  # or neighbours of the others would be taken for theirs
    assert run(mended, embedder, tmp_path / "anew").identity == again.identity


class Counting:
    """How many images are shown to an embedder from now on."""

    def __init__(self, embedder: ImageEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        prepare = embedder.prepare

        def counted(images: Any) -> Any:
            self.count += len(images)
            return prepare(images)

        monkeypatch.setattr(embedder, "prepare", counted)


@pytest.mark.parametrize("kind", ["folder", "rows"])
@pytest.mark.parametrize("same_size", [False, True])
def test_an_image_that_is_replaced_is_embedded_anew(
    kind: str, same_size: bool, embedder: ImageEmbedder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Also where its size in bytes is the same, or its time: an older file may be moved there."""
    paths = [tmp_path / "images" / f"{number:02d} é.bmp" for number in range(12)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        picture(number).save(path)
    given: Any = paths[0].parent if kind == "folder" else [{"image": str(path)} for path in [*paths, paths[9]]]
    before = run(given, embedder, tmp_path / "out")
    vectors, old = before.array(), paths[9].stat()
    picture(100).resize((56, 56) if same_size else (50, 50)).save(paths[9])
    changed = old.st_mtime_ns - 10**9 if same_size else old.st_mtime_ns
    os.utime(paths[9], ns=(changed, changed))
    counting = Counting(embedder, monkeypatch)
    with caplog.at_level(logging.WARNING):
        after = run(given, embedder, tmp_path / "out")
    assert counting.count == 1  # others of its block are read, and have their vectors
    assert "1 image files were written again" in caplog.text
    assert "09 é.bmp" in caplog.text
    assert after.identity != before.identity
    fresh = run(given, embedder, tmp_path / "fresh")
    assert np.abs(after.array() - fresh.array()).max() < 1e-5
    unchanged = np.arange(12) != 9
    assert np.array_equal(after.array()[unchanged], vectors[unchanged])
    assert np.abs(after.array()[9] - vectors[9]).max() > 1e-3
    assert after.shown_by.tolist() == before.shown_by.tolist()
    kept, counting.count = digests(tmp_path / "out"), 0
    run(given, embedder, tmp_path / "out")
    assert (digests(tmp_path / "out"), counting.count) == (kept, 0)


def test_files_that_are_copied_anew_or_gone_keep_their_vectors(
    images: Path, embedder: ImageEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": str(tmp_path / f"{number}.png")} for number in range(6)]
    for number, row in enumerate(rows):
        picture(number).save(row["image"])
    before = run(rows, embedder, tmp_path / "out")
    vectors = before.array()
    counting = Counting(embedder, monkeypatch)
    for row in rows:
        os.utime(row["image"], ns=(0, 0))
    after = run(rows, embedder, tmp_path / "out")
    assert (after.identity, counting.count) == (before.identity, 0)
    assert np.array_equal(after.array(), vectors)
    kept = digests(tmp_path / "out")
    for row in rows:
        Path(row["image"]).unlink()
    assert not run(rows, embedder, tmp_path / "out").problems
    assert digests(tmp_path / "out") == kept


def rows_of(images: Path) -> list[dict[str, Any]]:
    first, second = str(images / "größe 00.png"), str(images / "größe 03.png")
    return [
        {"id": "a", "image": first, "scene": 1},
        {"id": "b", "image": second, "scene": None},
        {"id": "c", "image": first, "scene": 2},
        {"id": "a", "image": picture(50), "scene": 2},
        {"id": "d", "image": None, "scene": 3},
        {"id": "e", "image": str(images / "nowhere.png"), "scene": 3},
        {"id": "f", "image": {"bytes": Path(first).read_bytes(), "path": None}, "scene": 3},
        {"id": "g", "image": [second], "scene": 3},
        {"id": "h", "image": [first, second], "scene": 3},
    ]


def test_rows_with_images_of_every_kind(
    images: Path, embedder: ImageEmbedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = run(rows_of(images), embedder, tmp_path / "out", group="scene", block_size=4)
    assert found.shown_by.tolist() == [0, 1, 0, 3, -1, -1, 0, 1, -1]
    assert found.rows.tolist() == [0, 1, 3]
    assert [found.problems[row].split(": ", 1)[1][:28] for row in (4, 5, 8)] == [
        "no image in column 'image'",
        "there is no image file " + str(images)[:5],
        "2 images in column 'image', ",
    ]
    assert "1 ids stand for more than one image, such as 'a'" in caplog.text
    ids, groups = found.labels("id"), found.labels("group")
    assert ids[0] == ids[3]
    assert len(set(ids.tolist())) == 8
    assert groups[1] == -1
    assert groups[2] == groups[3] != groups[0]
    with pytest.raises(DataError, match="no column 'pic'; there is id, image, scene"):
        run(rows_of(images), embedder, tmp_path / "other", column="pic")
    with pytest.raises(DataError, match="no column 'sort'"):
        run(rows_of(images), embedder, tmp_path / "other", group="sort")


@pytest.mark.parametrize("kind", ["paths", "bytes"])
def test_datasets_give_what_lists_give(kind: str, images: Path, embedder: ImageEmbedder, tmp_path: Path) -> None:
    names = sorted(path for path in images.glob("*.png") if path.name != "cut off.png")
    names = [*names, names[0]]
    if kind == "paths":
        (tmp_path / "rows.jsonl").write_text("".join(f'{{"image": "{name}"}}\n' for name in names))
        rows: Any = load_rows(tmp_path / "rows.jsonl")
    else:
        rows = datasets.Dataset.from_dict({"image": [str(name) for name in names]}).cast_column(
            "image", datasets.Image()
        )
        rows = datasets.Dataset.from_list(list(rows), features=rows.features)
    expected = run([{"image": str(name)} for name in names], embedder, tmp_path / "list")
    found = run(rows.shuffle(seed=0) if kind == "bytes" else rows, embedder, tmp_path / kind)
    assert len(found) == len(expected)
    assert np.abs(np.sort(found.array(), 0) - np.sort(expected.array(), 0)).max() < 1e-6
    assert found.num_rows == len(names)
    with pytest.raises(DataError, match="without streaming"):
        run(rows.to_iterable_dataset(), embedder, tmp_path / "stream")


def test_nothing_to_embed_is_an_error(embedder: ImageEmbedder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for nothing, text in ((tmp_path / "empty", "holds no images"), (tmp_path / "not", "no folder"), ([], "no rows")):
        with pytest.raises(DataError, match=text):
            run(nothing, embedder, tmp_path / "out")


def test_only_bad_images_are_an_empty_result(embedder: ImageEmbedder, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"x")
    found = run(tmp_path, embedder, tmp_path / "out")
    assert len(found) == 0
    assert found.array().shape == (0, embedder.dim)
    assert found.shown_by.tolist() == [-1, -1]


def test_an_image_that_the_processor_refuses_spoils_no_other(
    images: Path, embedder: ImageEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = embedder.prepare

    def refusing(given: Any) -> Any:
        if any(image.width == 7 for image in given):
            raise ValueError("too narrow")
        return prepare(given)

    monkeypatch.setattr(embedder, "prepare", refusing)
    rows = [{"image": picture(1)}, {"image": Image.new("RGB", (7, 99))}, {"image": picture(2)}]
    found = run(rows, embedder, tmp_path / "out")
    assert found.problems == {1: "row 1: the processor refuses the 7 x 99 image: too narrow"}
    assert np.abs(found.array() - embedder([picture(1), picture(2)])).max() < 1e-5


def test_a_vector_that_is_not_finite_is_a_problem(
    embedder: ImageEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "vectors", lambda inputs: np.array([[np.nan] * embedder.dim, [1.0] * embedder.dim]))
    found = run([{"image": picture(1)}, {"image": picture(2)}], embedder, tmp_path / "out")
    assert found.problems == {0: "row 0: the model gives no finite vector"}
    assert found.rows.tolist() == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_a_file_name_that_is_no_unicode(embedder: ImageEmbedder, tmp_path: Path) -> None:
    for name, number in ((b"\xff\xe9.png", 1), (b"good.png", 2)):
        picture(number).save(os.path.join(str(tmp_path), os.fsdecode(name)), "PNG")
    with open(os.path.join(os.fsencode(tmp_path), b"\xfe.png"), "wb") as file:
        file.write(b"x")
    found = run(tmp_path, embedder, tmp_path / "out")
    assert len(found) == 2
    assert len(found.problems) == 1


def test_other_settings_are_refused(images: Path, embedder: ImageEmbedder, model: Path, tmp_path: Path) -> None:
    run(images, embedder, tmp_path / "out")
    with pytest.raises(ValueError, match="embedder"):
        run(images, ImageEmbedder(model, dtype="bfloat16"), tmp_path / "out")
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    before = digests(tmp_path / "out")
    run(moved, embedder, tmp_path / "out")
    assert digests(tmp_path / "out") == before
    (moved / "notes.txt").rename(moved / "notes.png")
    with pytest.raises(
        ValueError, match=f"rows of {re.escape(str(images))}, this one has .* rows of .*/moved: remove"
    ):
        run(moved, embedder, tmp_path / "out")


def test_rows_whose_pictures_moved_are_the_same(embedder: ImageEmbedder, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "here" / "a").mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "here" / "a" / f"{number}.png")

    def rows(folder: str) -> list[dict[str, str]]:
        return [{"image": str(tmp_path / folder / "a" / f"{number}.png")} for number in range(3)]

    run(rows("here"), embedder, tmp_path / "out")
    (tmp_path / "here").rename(tmp_path / "there")
    before = digests(tmp_path / "out")
    assert len(run(rows("there"), embedder, tmp_path / "out")) == 3
    assert digests(tmp_path / "out") == before
    (tmp_path / "there" / "a" / "2.png").rename(tmp_path / "there" / "a" / "3.png")
    with pytest.raises(ValueError, match="which hold something else now"):
        run([*rows("there")[:2], {"image": str(tmp_path / "there" / "a" / "3.png")}], embedder, tmp_path / "out")


def test_embeddings_that_are_not_there_are_not_read(images: Path, embedder: ImageEmbedder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no embeddings"):
        Embeddings(tmp_path)
    run(images, embedder, tmp_path / "out")
    (tmp_path / "out" / "block-000001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        Embeddings(tmp_path / "out")
    (tmp_path / "job.json").write_text('{"job": "neighbours"}')
    with pytest.raises(FileNotFoundError, match="another job"):
        Embeddings(tmp_path)


JOB = """
import sys, time
from pathlib import Path
import mllm_align.data.mine.encoder as encoder
from mllm_align.data.mine.embed import ImageEmbedder, embed_images
pause = {pause}
vectors = ImageEmbedder.vectors
def slowly(self, inputs):
    time.sleep(pause)
    return vectors(self, inputs)
ImageEmbedder.vectors = slowly
embedder = ImageEmbedder({model!r}, device="cpu", batch_size=4)
embed_images({images!r}, embedder, sys.argv[1], block_size=8, progress=False)
"""


def test_killed_at_a_random_moment_it_ends_the_same(
    images: Path, model: Path, embedder: ImageEmbedder, tmp_path: Path
) -> None:
    run(images, embedder, tmp_path / "whole")
    script = tmp_path / "job.py"
    script.write_text(JOB.format(images=str(images), model=str(model), pause=0.15))
    killed = tmp_path / "killed"
    kill_amid([str(script), str(killed)], lambda: any(killed.glob("block*")), random.Random().uniform(0, 1))
    run(images, embedder, killed)
    assert digests(killed) == digests(tmp_path / "whole")


@pytest.mark.ddp
def test_two_processes_give_the_same(images: Path, model: Path, embedder: ImageEmbedder, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB.format(images=str(images), model=str(model), pause=0))
    wait_for_ranks(start_ranks(str(script), tmp_path / "both"))
    run(images, embedder, tmp_path / "whole")
    assert digests(tmp_path / "both") == digests(tmp_path / "whole")
