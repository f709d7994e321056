"""Corruptions by name; and what holds for every one of them."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_align.data.corrupt import KINDS, Corruption, Crop, DiffusionNoise, Swap, corruption_from
from mllm_align.data.errors import DataError

OF_PIXELS = [name for name in KINDS if name != "swap"]


def test_by_name_and_by_options() -> None:
    assert corruption_from("crop") == corruption_from({"kind": "crop"}) == Crop()
    assert corruption_from({"kind": "crop", "scale": [0.05, 0.1]}) == Crop(scale=(0.05, 0.1))
    assert corruption_from({"kind": "diffusion_noise", "step": 700, "space": "clip"}) == DiffusionNoise(700, "clip")
    assert corruption_from({"kind": "diffusion_noise", "size": 336}).keeps_size
    assert corruption_from("swap") == Swap()


def test_defaults_are_the_published_ones_where_there_are_some() -> None:
    """mDPO's crop, VCD's step 500, OPA-DPO's share and blocks, CHiP's angles; the others are ours."""
    assert {name: dataclasses.asdict(corruption_from(name)) for name in KINDS} == {
        "crop": {"scale": (0.01, 0.2), "ratio": (3 / 4, 4 / 3)},
        "diffusion_noise": {"step": 500, "space": "pixel", "size": None},
        "gaussian_noise": {"std": 0.5, "size": None},
        "blank": {"colour": "black"},
        "mean_image": {},
        "patch_shuffle": {"grid": 4},
        "mask_patches": {"share": 0.3, "size": 14},
        "blur": {"radius": 8.0},
        "rotate": {"degrees": (10.0, 80.0)},
        "mirror": {},
        "swap": {},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "crops"}, r"unknown kind 'crops'; there is crop, .*; did you mean 'crop'\?"),
        ({"kind": "diffusion"}, r"did you mean 'diffusion_noise'\?"),
        ({"kind": ["crop"]}, r"unknown kind \['crop'\]"),
        ({"scale": [0.1, 0.2]}, r"a corruption is \{'kind': name, options\.\.\.\} with a kind of crop, "),
        (["crop"], "a corruption is"),
        (
            {"kind": "crop", "scales": [0.1, 0.2]},
            r"'crop' has no option 'scales'; it has scale, ratio; did .*'scale'\?",
        ),
        ({"kind": "mirror", "axis": 1}, "'mirror' has no option 'axis'; it has no options"),
        ({"kind": "crop", "scale": [0.2, 0.1]}, r"'crop': scale must begin with its lower end, not \[0.2, 0.1\]"),
        ({"kind": "patch_shuffle", "grid": "4"}, "'patch_shuffle': grid must be a whole number of at least 2"),
    ],
)
def test_what_is_wrong_is_named(options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        corruption_from(options)


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 50), height=st.integers(1, 50), seed=st.integers(0, 2**64))
@pytest.mark.parametrize("kind", OF_PIXELS)
def test_the_same_draw_of_the_same_size_at_every_size(kind: str, width: int, height: int, seed: int) -> None:
    corruption: Any = corruption_from(kind)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    before = image.tobytes()
    made = corruption(image, np.random.default_rng(seed))
    assert (made.mode, made.size) == ("RGB", image.size)
    assert made.tobytes() == corruption(image, np.random.default_rng(seed)).tobytes()
    assert image.tobytes() == before


@pytest.mark.parametrize("kind", OF_PIXELS)
def test_it_draws_if_it_says_so(kind: str) -> None:
    corruption: Any = corruption_from(kind)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    made = {corruption(image, np.random.default_rng(seed)).tobytes() for seed in range(4)}
    assert len(made) == (4 if corruption.random else 1)
    assert image.tobytes() not in made


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_are_values(kind: str) -> None:
    corruption: Any = corruption_from(kind)
    assert pickle.loads(pickle.dumps(corruption)) == corruption
    assert hash(corruption) == hash(corruption_from(kind))
    assert isinstance(corruption, Corruption) == (kind != "swap")
    assert corruption.keeps_size == (kind != "swap")
