"""Token weights: against a count of small squares, and against what moves when a part of the image is repainted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mllm_align.data.pixels import ImageEncoder
from mllm_align.families import family_of
from mllm_align.families.grids import Grid, grid, tiles
from mllm_align.vision import box_weights, mask_weights
from tiny import RECIPES, tiny

FINE = 240  # squares along each side of the image by which coverage is counted
# Width and height: near to square, wide, high, very wide.
SIZES = ((320, 300), (480, 200), (210, 440), (600, 120))


# How far a change spreads, in cells: Idefics resizes twice, OneVision makes fewer tokens of some and mixes neighbours.
SPREADS = {"idefics3": 0.5, "smolvlm": 0.5, "llava_onevision": 1.0}


def counted(region: np.ndarray[Any, Any], layout: Sequence[Grid], num_tokens: int) -> np.ndarray[Any, Any]:
    """Coverage of a region (FINE, FINE) of squares, square by square."""
    found = np.zeros(num_tokens)
    for each in layout:
        left, top, right, bottom = each.area
        size = (right - left) / each.columns * (bottom - top) / each.rows
        for y, x in itertools.product(range(FINE), repeat=2):
            column = int((((x + 0.5) / FINE) - left) / (right - left) * each.columns // 1)
            row = int((((y + 0.5) / FINE) - top) / (bottom - top) * each.rows // 1)
            if region[y, x] and 0 <= row < each.rows and 0 <= column < each.columns:
                found[each.start + row * each.row_step + column] += 1 / FINE**2 / size
    return found


LAYOUT = (grid(3, 4), *tiles(2, 1, (2, 3), 12), grid(4, 2, (-0.25, 0.25, 1.25, 0.75), 26, newlines=True))
BOXES = ((0.0, 0.0, 1.0, 1.0), (0.1, 0.2, 0.15, 0.9), (0.4, 0.45, 0.41, 0.475), (0.7, -0.5, 1.5, 0.35))


@pytest.mark.parametrize("box", BOXES)
def test_boxes_are_counted_squares(box: tuple[float, ...]) -> None:
    weights = box_weights(torch.tensor([box], dtype=torch.float64), LAYOUT, 40)
    centres = (np.arange(FINE) + 0.5) / FINE
    x, y = np.meshgrid(centres, centres)
    region = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
    # The sides of these boxes lie on the squares' sides, those of cells not always.
    np.testing.assert_allclose(weights[0].numpy(), counted(region, LAYOUT, 40), atol=3 / 60)
    inside = (min(box[2], 1) - max(box[0], 0)) * (min(box[3], 1) - max(box[1], 0))
    assert weights[0, :12].sum().item() == pytest.approx(12 * inside, abs=1e-6)
    assert weights[0, 12:24].sum().item() == pytest.approx(12 * inside, abs=1e-6)
    assert weights[0, [24, 25, 28, 31, 34, 37, 38, 39]].tolist() == [0] * 8


def test_a_mask_of_a_box_has_its_weights() -> None:
    box = torch.tensor([[0.2, 0.25, 0.65, 0.85], [0.0, 0.5, 0.05, 0.55]])
    masks = torch.zeros(2, 20, 40, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, box.tolist(), strict=True):
        mask[round(20 * top) : round(20 * bottom), round(40 * left) : round(40 * right)] = True
    torch.testing.assert_close(mask_weights(masks, LAYOUT, 40), box_weights(box, LAYOUT, 40), atol=1e-6, rtol=0)
    half = mask_weights(masks.float() / 2, LAYOUT, 40)
    torch.testing.assert_close(2 * half, box_weights(box, LAYOUT, 40), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [0.02, 0.3, 1.0])
def test_no_region_with_an_area_is_lost(side: float) -> None:
    corners = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * (1 - side / 8)
    weights = box_weights(torch.cat([corners, corners + side / 8], dim=1), (grid(8, 8),), 64)
    torch.testing.assert_close(weights.sum(dim=1), torch.full((500,), side**2), rtol=1e-4, atol=0)


def test_what_is_no_region_has_no_weight() -> None:
    boxes = [(0.5, 0.5, 0.5, 0.9), (0.6, 0.2, 0.3, 0.4), (1.2, 0.1, 1.4, 0.2), (-0.3, -0.3, 0.0, 0.0)]
    assert not box_weights(torch.tensor(boxes), (grid(4, 4),), 16).any()
    assert not mask_weights(torch.zeros(1, 5, 5), (grid(4, 4),), 16).any()
    assert box_weights(torch.zeros(0, 4), (grid(4, 4),), 16).shape == (0, 16)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"boxes must be \(regions, 4\), not \(4,\)"):
        box_weights(torch.zeros(4), LAYOUT, 40)
    with pytest.raises(ValueError, match="not a finite number"):
        box_weights(torch.tensor([[0.0, 0.0, float("nan"), 1.0]]), LAYOUT, 40)
    with pytest.raises(ValueError, match=r"masks must be \(regions, height, width\)"):
        mask_weights(torch.zeros(4, 4), LAYOUT, 40)
    with pytest.raises(ValueError, match="a grid ends at token 37 of an image of 30"):
        box_weights(torch.zeros(1, 4), LAYOUT, 30)


def without_attention(model: Any) -> list[Any]:
    """Every token of the tower sees its own patch alone."""

    def silence(module: Any, arguments: Any, output: Any) -> Any:
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    modules = [module for name, module in model.named_modules() if type(module).__name__.endswith("Attention")]
    return [module.register_forward_hook(silence) for module in modules]


def noise(size: tuple[int, int], seed: int) -> np.ndarray[Any, Any]:
    """Smooth enough that no filter averages it away."""
    small = np.random.default_rng(seed).integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.NEAREST))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", [*RECIPES, "gemma3 with crops"])
def test_the_predicted_tokens_move_and_no_others(name: str, size: tuple[int, int]) -> None:
    model, processor = tiny(name.partition(" ")[0])
    if "crops" in name:
        crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 24}
        processor.images_kwargs = {**processor.images_kwargs, **crops}
    family = family_of(model)
    encode = ImageEncoder(processor, family.image_keys)

    def tokens(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
        with torch.no_grad():
            return family.encode_images(model, [encode(Image.fromarray(pixels)).tensors]).tokens[0]

    hooks = without_attention(model)
    try:
        picture = noise(size, 0)
        before = tokens(picture)
        first = encode(Image.fromarray(picture)).tensors
        layout = family.token_grids(first, size, processor.image_processor, model.config)
        assert max(each.stop for each in layout) <= len(before)
        assert len(layout) > 1 or "crops" not in name or max(size) < 2 * min(size)
        width, height = size
        # The inner part of a cell of each view: away from the edges, so that what resizing spreads stays in the cell.
        for each in layout:
            left, top, right, bottom = each.area
            for row, column in {(0, 0), (each.rows - 1, each.columns - 1), (each.rows // 2, each.columns // 3)}:
                wide, high = (right - left) / each.columns, (bottom - top) / each.rows
                box = (
                    max(0, round((left + (column + 0.3) * wide) * width)),
                    max(0, round((top + (row + 0.3) * high) * height)),
                    min(width, round((left + (column + 0.7) * wide) * width)),
                    min(height, round((top + (row + 0.7) * high) * height)),
                )
                if box[2] - box[0] < 3 or box[3] - box[1] < 3:
                    continue  # a cell of padding
                changed = picture.copy()
                changed[box[1] : box[3], box[0] : box[2]] = noise(size, 1)[box[1] : box[3], box[0] : box[2]]
                moved = (tokens(changed) - before).abs().amax(dim=1) > 1e-4
                margin = SPREADS.get(name, 0.25)
                margin_x, margin_y = margin * wide * width, margin * high * height
                around = torch.tensor([box]) + torch.tensor([-margin_x, -margin_y, margin_x, margin_y])
                scale = torch.tensor([width, height, width, height])
                inner = box_weights(torch.tensor([box]) / scale, layout, len(before))[0]
                outer = box_weights(around / scale, layout, len(before))[0]
                where = f"{each}, cell {row}, {column}"
                assert moved[each.start + row * each.row_step + column], where
                assert not (moved & (outer == 0)).any(), where
                assert moved[inner > 0.1].all(), where
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", RECIPES)
def test_no_object_on_a_picture_is_lost(name: str) -> None:
    """However small it is and wherever it lies; but for what LLaVA's centre crop does not show."""
    model, processor = tiny(name)
    family = family_of(model)
    encode = ImageEncoder(processor, family.image_keys)
    generator = torch.Generator().manual_seed(1)
    corners = torch.cat([torch.rand(200, 2, generator=generator, dtype=torch.float64), torch.tensor([[0.0, 0.0]])])
    corners = torch.cat([corners, torch.ones(1, 2, dtype=torch.float64)]) * (1 - 1e-4)
    boxes = torch.cat([corners, corners + 1e-4], dim=1)
    for size in SIZES:
        tensors = encode(Image.new("RGB", size, "red")).tensors
        layout = family.token_grids(tensors, size, processor.image_processor, model.config)
        kept = box_weights(boxes, layout, max(each.stop for each in layout)).any(dim=1)
        if name == "llava":
            (left, top, right, bottom) = layout[0].area
            shown = (boxes[:, 2] > left) & (boxes[:, 0] < right) & (boxes[:, 3] > top) & (boxes[:, 1] < bottom)
            assert torch.equal(kept, shown)
            assert not kept.all()
        else:
            assert kept.all(), f"{size}: {boxes[~kept][0]}"


def test_llava_shows_the_middle_or_pads_by_its_processors_flags() -> None:
    model, processor = tiny("llava")
    family = family_of(model)
    tensors = ImageEncoder(processor, family.image_keys)(Image.new("RGB", (200, 100))).tensors
    (middle,) = family.token_grids(tensors, (200, 100), processor.image_processor, model.config)
    assert middle.area == (0.25, 0.0, 0.75, 1.0)
    gone = box_weights(torch.tensor([[0.0, 0.0, 0.2, 1.0]]), (middle,), 16)
    assert not gone.any()
    padded = _Flags(do_pad=True, do_center_crop=True, do_resize=True)
    (square,) = family.token_grids(tensors, (200, 100), padded, model.config)
    assert square.area == (0.0, -0.5, 1.0, 1.5)
    squashed = _Flags(do_pad=False, do_center_crop=False, do_resize=True)
    (whole,) = family.token_grids(tensors, (200, 100), squashed, model.config)
    assert whole.area == (0.0, 0.0, 1.0, 1.0)


class _Flags:
    """The settings of an image processor that geometry reads."""

    size = {"shortest_edge": 56}  # noqa: RUF012
    crop_size = {"height": 56, "width": 56}  # noqa: RUF012

    def __init__(self, do_pad: bool, do_center_crop: bool, do_resize: bool) -> None:
        self.do_pad, self.do_center_crop, self.do_resize = do_pad, do_center_crop, do_resize


def test_tiles_of_another_setting_are_told() -> None:
    for name, option in (("internvl", {"max_patches": 1}), ("idefics3", {"size": {"longest_edge": 64}})):
        model, processor = tiny(name)
        family = family_of(model)
        tensors = ImageEncoder(processor, family.image_keys)(Image.new("RGB", (400, 200))).tensors
        other = type(processor.image_processor)(**(processor.image_processor.to_dict() | option))
        with pytest.raises(ValueError, match="it was processed with"):
            family.token_grids(tensors, (400, 200), other, model.config)
