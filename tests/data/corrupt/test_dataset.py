"""Rows with contrast images to be made: which draw a row gets, and which rows cannot have one."""

from __future__ import annotations

import pickle
from typing import Any

import datasets
import pytest
import torch.utils.data

from chat import make_processor
from mllm_align.contract import Needs, View
from mllm_align.data.check import check_dataset
from mllm_align.data.collator import AlignCollator
from mllm_align.data.corrupt import (
    Blank,
    CorruptedDataset,
    CorruptedStream,
    Crop,
    DrawnImage,
    Mirror,
    Swap,
    corrupted,
)
from mllm_align.data.corrupt.dataset import Draws, draws_by_source, draws_from, seeded, with_draws
from mllm_align.data.errors import DataError
from mllm_align.data.images import image_key, load_image
from mllm_align.data.mixing import MixedStream, mix_sources
from mllm_align.data.sample import sample_as_model_sees
from mllm_align.data.schema import parse_row
from runs import picture

VIEWS = tuple(View(image, "chosen") for image in ("image", "contrast_image"))


def rows_of(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"image": picture(n), "prompt": f"What is {n}?", "chosen": "red", **changes} for n in range(count)]


def seed_at(dataset: Any, item: Any) -> int:
    return dataset[item]["contrast_image"].seed


def collator(*views: View) -> AlignCollator:
    return AlignCollator(make_processor("llava"), lambda source: Needs(views=views or VIEWS), ("pixel_values",))


def test_a_row_gets_a_contrast_image_of_its_own() -> None:
    rows = rows_of(3)
    made = corrupted(rows, Crop())
    assert isinstance(made, CorruptedDataset)
    assert len(made) == len(list(made)) == 3
    assert {**made[1], "contrast_image": None} == {**rows[1], "contrast_image": None}
    assert made[1]["contrast_image"] == DrawnImage(rows[1]["image"], Crop(), seed_at(made, 1))
    assert "contrast_image" not in rows[1]
    assert made[-1]["contrast_image"] == made[2]["contrast_image"]
    with pytest.raises(IndexError):
        made[3]


def test_the_draw_is_of_seed_row_and_epoch() -> None:
    made = corrupted(rows_of(2), Crop())
    assert seed_at(made, 0) == seed_at(made, (0, 0)) == seed_at(corrupted(rows_of(2), Crop()), 0)
    other = with_draws(made, lambda draws: seeded(draws, 1, once=False))
    assert len({seed_at(made, 0), seed_at(made, 1), seed_at(made, (0, 1)), seed_at(other, 0)}) == 4
    assert made.draws.seed == 0
    for fixed in (corrupted(rows_of(2), Crop(), redraw=False), corrupted(rows_of(2), Mirror())):
        assert not fixed.by_epoch
        assert seed_at(fixed, (0, 5)) == seed_at(fixed, 0)


def test_a_row_with_an_id_draws_the_same_wherever_it_is() -> None:
    named = [{**row, "id": name} for row, name in zip(rows_of(3), "abc", strict=True)]
    made, turned = corrupted(named, Crop()), corrupted(named[::-1], Crop())
    assert [seed_at(made, n) for n in range(3)] == [seed_at(turned, n) for n in (2, 1, 0)]
    assert seed_at(corrupted([{**named[0], "id": 0}], Crop()), 0) == seed_at(
        corrupted([{**named[0], "id": "0"}], Crop()), 0
    )
    stream = datasets.Dataset.from_list([{**row, "image": b"0"} for row in named]).to_iterable_dataset()
    assert [row["contrast_image"].seed for row in corrupted(stream, Crop())] == [seed_at(made, n) for n in range(3)]


def test_of_several_images_all_or_the_one_that_is_named() -> None:
    row = {"images": [picture(0), picture(1), picture(1)], "prompt": "Which?", "chosen": "red"}
    every = corrupted([row], Crop())[0]
    assert [made.original for made in every["contrast_image"]] == row["images"]
    assert len({made.seed for made in every["contrast_image"]}) == 3
    one = corrupted([{**row, "contrast_index": 1}], Crop())[0]
    assert one["contrast_image"].original is row["images"][1]
    shown = parse_row(one).contrast_images
    assert shown == (row["images"][0], one["contrast_image"], row["images"][2])
    for index, message in ((3, "contrast_index 3 with 3 image"), ("1", "must be an integer"), (True, "an integer")):
        with pytest.raises(DataError, match=message):
            parse_row(corrupted([{**row, "contrast_index": index}], Crop())[0])


def test_an_image_inside_the_prompt() -> None:
    content = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "What is it?"}]
    row = corrupted([{"prompt": [{"role": "user", "content": content}], "chosen": "red"}], Crop())[0]
    assert parse_row(row).contrast_images == (row["contrast_image"],)


def test_rows_that_cannot_have_one_are_named() -> None:
    rows: list[Any] = rows_of(3)
    rows[1] = {**rows[1], "id": "seven", "contrast_image": picture(9)}
    rows[2] = {"prompt": "Hello?", "chosen": "Hi."}
    made = corrupted(rows, Crop())
    with pytest.raises(DataError, match=r"row 1 \(id 'seven'\): has a 'contrast_image'.*leave 'corrupt' out.*replace"):
        made[1]
    assert corrupted(rows, Crop(), replace=True)[1]["contrast_image"].original == rows[1]["image"]
    with pytest.raises(
        DataError, match=r"row 2: no image of which.*leave the row out, or give rows of text alone as a"
    ):
        made[2]
    with pytest.raises(DataError, match=r"source 'pairs': row 1 \(id 'seven'\): has a 'contrast_image'"):
        mix_sources({"plain": rows_of(2), "pairs": made})[3]
    with pytest.raises(DataError, match="row 0: no column 'prompt'"):
        corrupted([{"image": picture(0)}], Crop())[0]
    with pytest.raises(DataError, match="a row must be a mapping"):
        corrupted(["row"], Crop())[0]
    assert isinstance(corrupted([{**rows[0], "contrast_image": None}], Crop())[0]["contrast_image"], DrawnImage)


def test_swap_gives_the_image_of_another_row_in_every_epoch_anew() -> None:
    rows = rows_of(6)
    made = corrupted(rows, "swap")
    shown = [[made[n, epoch]["contrast_image"] for n in range(6)] for epoch in range(4)]
    keys = {image_key(row["image"]) for row in rows}
    for images in shown:
        for row, image in zip(rows, images, strict=True):
            assert image_key(image) in keys - {image_key(row["image"])}
    assert len({tuple(map(image_key, images)) for images in shown}) == 4
    stream = datasets.Dataset.from_list([{"prompt": "?"}]).to_iterable_dataset()
    with pytest.raises(DataError, match=r"'swap' looks for other rows, which a stream.*without streaming"):
        corrupted(stream, Swap())


def test_one_source_of_a_mix_is_asked_for_its_epoch() -> None:
    mixed = mix_sources({"plain": rows_of(2), "pairs": corrupted(rows_of(2), Crop())})
    assert mixed.by_epoch
    assert seed_at(mixed, (3, 1)) != seed_at(mixed, (3, 0)) == seed_at(mixed, 3)
    assert mixed[0, 4] == {**rows_of(2)[0], "source": "plain"}
    once = with_draws(mixed, lambda draws: seeded(draws, 0, once=True))
    assert not once.by_epoch
    assert seed_at(once, (3, 1)) == seed_at(mixed, 3)
    assert draws_by_source(mixed) == {"pairs": Draws(Crop())}
    plain = mix_sources({"plain": rows_of(2)})
    assert not plain.by_epoch
    assert with_draws(plain, lambda draws: draws) is plain


def _same(row: Any) -> Any:
    return row


@pytest.mark.parametrize("mapped", [True, False])
def test_streams_draw_by_epoch_also_in_workers_that_stay(mapped: bool) -> None:
    """Alone, and as a part of a mix of streams, which iterates over its map-style parts too."""
    rows = [{**row, "image": b"0", "id": str(n)} for n, row in enumerate(rows_of(3))]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    made: Any = corrupted(rows if mapped else stream, Crop())
    assert isinstance(made, CorruptedDataset if mapped else CorruptedStream)
    if mapped:
        made = mix_sources({"pairs": made, "plain": stream})
        assert isinstance(made, MixedStream)
        made = with_draws(made, lambda draws: seeded(draws, 0, once=False))
    drawn: dict[int, list[Any]] = {}
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(
            made, batch_size=None, collate_fn=_same, num_workers=workers, persistent_workers=workers > 0
        )
        drawn[workers] = []
        for epoch in range(3):
            made.set_epoch(epoch)
            images = [row.get("contrast_image") for row in loader]
            drawn[workers].append([image.seed for image in images if image is not None])
    assert drawn[0] == drawn[1]
    assert len({tuple(seeds) for seeds in drawn[0]}) == 3
    assert [len(seeds) for seeds in drawn[0]] == [3, 3, 3]


def test_a_stream_without_ids_draws_by_text() -> None:
    rows = [{**row, "image": b"0"} for row in rows_of(3)]
    stream = corrupted(datasets.Dataset.from_list(rows).to_iterable_dataset(), Crop())
    seeds = [[row["contrast_image"].seed for row in stream] for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


def test_datasets_can_be_sent_to_workers() -> None:
    made = corrupted(rows_of(2), Crop())
    again = pickle.loads(pickle.dumps(made))
    assert (seed_at(again, (1, 2)), again.draws) == (seed_at(made, (1, 2)), made.draws)


def test_a_batch_has_what_was_drawn_once_for_all_who_look() -> None:
    made = corrupted(rows_of(2), Crop())
    batch = collator()([made[0, 3], made[1, 3], made[0, 3]])["batch"]
    assert len(batch.images) == 4
    expected = collator().images(load_image(made[0, 3]["contrast_image"])).tensors["pixel_values"]
    branch = next(branch for branch in batch.branches if branch.view == VIEWS[1])
    place = batch.prefixes[branch.prefix].images[0]
    assert torch.equal(batch.images[place]["pixel_values"], expected)
    assert batch.image_ids == collator()([made[0, 3], made[1, 3]])["batch"].image_ids
    assert not set(batch.image_ids[1::2]) & set(collator()([made[0, 4], made[1, 4]])["batch"].image_ids)
    view = sample_as_model_sees(made[0], collator())[1]
    assert (view.view, view.images[0].size) == (VIEWS[1], (56, 56))


class Counted(Crop):
    calls = 0

    def __call__(self, image: Any, rng: Any) -> Any:
        Counted.calls += 1
        return super().__call__(image, rng)


def test_a_check_makes_one_and_measures_the_others() -> None:
    summary = check_dataset(corrupted(rows_of(4), Counted()), collator(), progress=False)
    assert summary.views == {"default": {"chosen|image": 4, "chosen|contrast_image": 4}}
    assert (summary.images, Counted.calls) == (4, 1)
    swapped = check_dataset(corrupted(rows_of(4), Swap()), collator(), progress=False)
    assert swapped.images == 4


def test_a_broken_image_names_its_row_before_training(tmp_path: Any) -> None:
    rows = rows_of(3)
    rows[2]["image"] = str(tmp_path / "gäbe.png")
    picture(0).save(rows[2]["image"])
    data = (tmp_path / "gäbe.png").read_bytes()
    (tmp_path / "gäbe.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"row 2, column 'contrast_image': .*gäbe\.png is truncated"):
        check_dataset(corrupted(rows, Crop()), collator(VIEWS[1]), progress=False)


def test_what_recipes_say() -> None:
    assert draws_from({"kind": "crop", "redraw": False}) == Draws(Crop(), redraw=False)
    assert draws_from({"kind": "blank", "replace": True}) == Draws(Blank(), replace=True)
    with pytest.raises(DataError, match="redraw must be true or false, not 'no'"):
        draws_from({"kind": "crop", "redraw": "no"})
    with pytest.raises(DataError, match=r"unknown kind 'cop'.*did you mean 'crop'"):
        draws_from({"kind": "cop"})
    assert str(Draws(Mirror())) == "Mirror()"
    assert str(Draws(Swap())) == "Swap(), drawn anew in every epoch"
    assert str(Draws(Swap(), redraw=False)) == "Swap(), drawn once"


@pytest.mark.parametrize(
    ("corruption", "flags", "message"),
    [
        (Crop, {}, r"a corruption is an object such as Crop\(\), or its name, not <class"),
        (lambda image, rng: image, {}, "a corruption is an object such as"),
        (Crop(), {"redraw": "no"}, "redraw must be true or false, not 'no'"),
        (Crop(), {"replace": 1}, "replace must be true or false, not 1"),
    ],
)
def test_what_is_no_corruption_and_no_switch_is_refused_at_once(corruption: Any, flags: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        corrupted(rows_of(1), corruption, **flags)


def test_only_one_source_at_a_time() -> None:
    with pytest.raises(DataError, match="takes one dataset: wrap the source"):
        corrupted({"pairs": rows_of(1)}, Crop())
