"""Embedding jobs: the same files whatever happens, every bad image told, rows and folders alike."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.loading import load_rows
from mllm_align.data.mine.embed import Embeddings, ImageEmbedder, embed_images
from runs import picture, start_ranks, wait_for_ranks
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


def test_a_mended_image_is_read_when_its_file_is_deleted(
    images: Path, embedder: ImageEmbedder, tmp_path: Path
) -> None:
    mended = tmp_path / "images"
    shutil.copytree(images, mended)
    found = run(mended, embedder, tmp_path / "out")
    for number, name in enumerate(("bad.jpg", "cut off.png")):
        picture(200 + number).save(mended / name)
    assert len(run(mended, embedder, tmp_path / "out").problems) == 2
    for row in found.problems:
        (tmp_path / "out" / f"block-{row // 8:06d}.parquet").unlink(missing_ok=True)
    again = run(mended, embedder, tmp_path / "out", strict=True)
    assert not again.problems
    assert again.identity != found.identity  # or neighbours of the others would be taken for theirs
    assert run(mended, embedder, tmp_path / "anew").identity == again.identity


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
    with pytest.raises(ValueError, match="images"):
        run(moved, embedder, tmp_path / "out")


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
    process = subprocess.Popen([sys.executable, str(script), str(killed)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(killed.glob("block*")):
        time.sleep(0.01)
    time.sleep(random.Random().uniform(0, 1))
    process.kill()
    process.wait()
    run(images, embedder, killed)
    assert digests(killed) == digests(tmp_path / "whole")


@pytest.mark.ddp
def test_two_processes_give_the_same(images: Path, model: Path, embedder: ImageEmbedder, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB.format(images=str(images), model=str(model), pause=0))
    wait_for_ranks(start_ranks(str(script), tmp_path / "both"))
    run(images, embedder, tmp_path / "whole")
    assert digests(tmp_path / "both") == digests(tmp_path / "whole")
