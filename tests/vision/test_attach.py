"""A mixer in a model of every family: the same outputs at first, tokens in their places, and out again."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mixed import Means, mixed_tiny, prompts, shake, tokens_of
from mllm_align.data.pixels import ImageEncoder
from mllm_align.families import family_of, inner
from mllm_align.vision.attach import attach, detach, measure, mixer_from, put_in, statistics_of
from mllm_align.vision.mixed_vision import MixedVision, mixed_of, switched_off
from mllm_align.vision.mixers import Widths, make_mixer
from mllm_align.vision.regions import RegionWeights
from tiny import FAMILIES, tiny
from tiny_encoders import save_encoder

COUNTING = ("llava", "internvl", "idefics3", "smolvlm", "paligemma", "paligemma2", "gemma3")
# Kinds that make another number of tokens.
COUNTED = ("interleave", "x_former")
IDENTITIES = ("concat", "gated", "window")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("kind", IDENTITIES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_outputs_are_the_same_at_first(family: str, kind: str, encoder: Path, pictures: list[Any]) -> None:
    stock, processor = tiny(family)
    processor.tokenizer.padding_side = "left"
    before = stock(**prompts(processor, pictures)).logits
    model, processor, mixed = mixed_tiny(family, kind, encoder)
    inputs = prompts(processor, pictures)
    assert torch.equal(model(**inputs).logits, before)
    shake(mixed)
    after = model(**inputs).logits
    assert (after - before).abs().max() > 1e-3
    with switched_off(mixed):
        assert torch.equal(model(**inputs).logits, before)
    with switched_off(mixed, [0]):
        assert torch.equal(model(**inputs).logits, before)
    assert torch.equal(model(**inputs).logits, after)
    detach(model, processor)
    assert torch.equal(model(**inputs).logits, before)
    assert mixed_of(inner(model)) is None
    assert type(inner(model)) is type(inner(stock))


@pytest.mark.parametrize("kind", ["additive", "interleave", "sva", "x_former", "concat"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generating(family: str, kind: str, encoder: Path, pictures: list[Any]) -> None:
    """A batch padded on the left, alone, in beams: cached or not, the same tokens."""
    own = family_of(tiny(family)[0])
    if (kind == "additive" and own.projects_in_tower) or (kind in COUNTED and family not in COUNTING):
        with pytest.raises(ValueError, match=own.name):
            mixed_tiny(family, kind, encoder)
        return
    model, processor, mixed = mixed_tiny(family, kind, encoder)
    shake(mixed)
    inputs = prompts(processor, pictures)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    together = model.generate(**inputs, **options)
    assert torch.equal(together, model.generate(**inputs, **options, use_cache=False))
    alone = processor(
        text=["".join([processor.image_token, "What is it?"])], images=[pictures[0]], return_tensors="pt"
    )
    assert torch.equal(together[0, -4:], model.generate(**alone, **options)[0, -4:])
    beams = model.generate(**inputs, **options, num_beams=2, num_return_sequences=2)
    assert len(beams) == 4
    for beam in beams[::2]:
        assert beam.shape == together[0].shape
    model.generate(**inputs, max_new_tokens=2, do_sample=True)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tokens_lie_where_the_encoder_saw_them(family: str) -> None:
    """Another colour in one place of the picture changes what is added to the tokens there, and to no others."""
    model, processor = tiny(family)
    local = _with_means(model, processor)
    shake(local)
    pixels = np.full((96, 144, 3), 90, dtype=np.uint8)
    box = (0.55, 0.1, 0.85, 0.4)
    changed = pixels.copy()
    changed[int(96 * box[1]) : int(96 * box[3]), int(144 * box[0]) : int(144 * box[2])] = (250, 20, 180)
    added = []
    for each in (pixels, changed):
        picture = Image.fromarray(each)
        with_mixer = tokens_of(model, processor, picture)
        with switched_off(local):
            added.append(with_mixer - tokens_of(model, processor, picture))
    moved = (added[0] - added[1]).abs().amax(dim=1)
    image = ImageEncoder(processor, family_of(model).image_keys)(Image.fromarray(changed))
    weigh = RegionWeights(family_of(model), processor.image_processor, model.config)
    # A cell wider on every side for what resampling spreads.
    (inside,) = weigh(image, [_Box(box)])
    (around,) = weigh(image, [_Box((box[0] - 0.2, max(box[1] - 0.2, 0), min(box[2] + 0.2, 1), box[3] + 0.2))])
    weights = torch.zeros(len(moved))
    weights[: len(inside)] = inside
    outside = torch.ones(len(moved), dtype=torch.bool)
    outside[: len(around)] = around == 0
    largest = moved.max()
    assert largest > 1e-3
    assert outside.any()
    assert moved[outside].max() < 1e-3 * largest
    assert (moved[weights > 0.9 * weights.max()] > 0.05 * largest).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_encoders_are_shown_the_colours_of_the_picture(family: str) -> None:
    """In 0..1, however the family normalises, cuts and packs its own pixels."""
    model, processor = tiny(family)
    local, colour = _with_means(model, processor), (200, 40, 120)
    sees, maps = local.sees, list[Any]()

    def record(*given: Any) -> Any:
        maps.append(sees(*given))
        return maps[-1]

    local.sees = record  # type: ignore[method-assign]
    tokens_of(model, processor, Image.new("RGB", (112, 112), colour))
    found = torch.cat([seen.values.flatten(0, 1) for (seen,) in maps])
    off = (found - torch.tensor(colour) / 255).abs().amax(dim=1)
    assert (off < 1 / 255).all()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_concatenated_channels_reach_the_same_tokens_as_what_is_added_behind(family: str) -> None:
    """The projector's first linear layer may read in an order of its own, as Qwen2.5-VL's does."""
    found: dict[str, Any] = {}
    for kind in ("concat", "gated"):
        model, processor = tiny(family)
        local = _with_means(model, processor, kind)
        shake(local)
        plain = Image.fromarray(np.full((112, 168, 3), 90, dtype=np.uint8))
        marked = plain.copy()
        marked.paste((250, 20, 180), (100, 20, 130, 50))
        # The model's own encoder always sees the plain picture; the further one that, or the marked one.
        tokens_of_plain = _tokens_with(model, processor, local, plain, plain)
        found[kind] = (_tokens_with(model, processor, local, plain, marked) - tokens_of_plain).abs().amax(dim=1) > 1e-4
    assert found["concat"].any()
    assert not found["concat"].all()
    assert torch.equal(found["concat"], found["gated"])


def _tokens_with(model: Any, processor: Any, mixed: MixedVision, shown: Image.Image, seen: Image.Image) -> Any:
    """The tokens of one picture where the further encoder sees another."""
    kept: list[Any] = []
    sees = mixed.sees

    def record(*given: Any) -> Any:
        kept.append(sees(*given))
        return kept[-1]

    mixed.sees = record  # type: ignore[method-assign]
    tokens_of(model, processor, seen)
    replay = iter(kept[:])
    mixed.sees = lambda *given: next(replay)  # type: ignore[method-assign]
    try:
        return tokens_of(model, processor, shown)
    finally:
        del mixed.sees


def _with_means(model: Any, processor: Any, kind: str = "gated") -> MixedVision:
    """A mixer whose one further encoder knows nothing but the colour of each cell."""
    place = {"gated": "output", "concat": "linear"}[kind]
    seam = measure(model, processor, family_of(model), place)
    mixer = make_mixer(kind, Widths(seam.base, seam.place, seam.language, (3,)), {})
    mixed = MixedVision(mixer, [Means()], statistics_of(processor))  # type: ignore[list-item]
    put_in(model, mixed, own=False)
    return mixed.eval()


class _Box:
    mask = None

    def __init__(self, box: tuple[float, float, float, float]) -> None:
        self.box = box


def _pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


# A stock LLaVA that has run cannot be pickled: transformers leaves hooks of local functions on its tower.
@pytest.mark.parametrize(
    ("family", "kind", "pixels", "options", "copied"),
    [
        ("llava", "gated", "shared", {}, copy.deepcopy),
        ("qwen2_5_vl", "sva", "shared", {"llm_layers": 1}, _pickled),
        ("gemma3", "gated", "own", {}, _pickled),
    ],
)
@torch.no_grad()
def test_copies_are_models_of_their_own(
    family: str, kind: str, pixels: str, options: dict[str, Any], copied: Any, encoder: Path, pictures: list[Any]
) -> None:
    model, processor, mixed = mixed_tiny(family, kind, {"model": str(encoder), "pixels": pixels}, **options)
    shake(mixed)
    inputs = prompts(processor, pictures)
    before = model(**inputs).logits
    other = copied(model)
    assert type(other) is type(model)
    assert torch.equal(other(**inputs).logits, before)
    twin = mixed_of(inner(other))
    assert twin is not None
    assert twin is not mixed
    shake(twin, seed=1)
    assert not torch.equal(other(**inputs).logits, before)
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "idefics3", "gemma3"])
@torch.no_grad()
def test_pixels_of_its_own(family: str, encoder: Path, pictures: list[Any]) -> None:
    model, processor, mixed = mixed_tiny(family, "gated", {"model": str(encoder), "pixels": "own", "size": 56})
    inputs = prompts(processor, pictures)
    before = model(**inputs).logits
    shake(mixed)
    after = model(**inputs).logits
    assert (after - before).abs().max() > 1e-3
    other = {**inputs, "extra_pixel_values": 255 - inputs["extra_pixel_values"]}
    assert not torch.equal(model(**other).logits, after)
    assert model.generate(**inputs, max_new_tokens=2, num_beams=2, num_return_sequences=2).shape[0] == 4
    stock = {key: value for key, value in inputs.items() if key != "extra_pixel_values"}
    with pytest.raises(ValueError, match="pixels of its own"):
        model(**stock)
    detach(model, processor)
    assert torch.equal(model(**stock).logits, before)
    assert "extra_pixel_values" not in prompts(processor, pictures)


def test_what_cannot_work_is_refused(encoder: Path) -> None:
    model, processor, _ = mixed_tiny("llava", "gated", encoder)
    with pytest.raises(ValueError, match="has a mixer already"):
        attach(model, {"kind": "gated"}, [str(encoder)], processor)
    detach(model, processor)
    with pytest.raises(ValueError, match="has no mixer"):
        detach(model, processor)
    with pytest.raises(ValueError, match="needs the model's processor"):
        attach(model, {"kind": "gated"}, [str(encoder)])
    for given, says in (
        ({"kind": "gatd", "encoders": ["a"]}, "did you mean 'gated'"),
        ({"kind": "gated"}, "no encoders"),
        ({"encoders": ["a"]}, "no kind"),
        ({"kind": "gated", "encoders": ["a"], "shares": 1}, "no option 'shares'"),
        ({"kind": "gated", "encoders": [{"model": "a", "layr": 1}]}, "did you mean 'layer'"),
        ({"kind": "gated", "encoders": ["a"], "train": 1}, "train must be true or false"),
        ("gated", "must be a mapping"),
    ):
        with pytest.raises(ValueError, match=says):
            mixer_from(given)
    qwen, processor = tiny("qwen2_vl")
    with pytest.raises(ValueError, match="leave pixels: own out"):
        attach(qwen, {"kind": "gated"}, [{"model": str(encoder), "pixels": "own"}], processor)
    assert mixed_of(inner(qwen)) is None


def test_a_mixer_of_another_number_of_tokens_cannot_be_switched_off(encoder: Path) -> None:
    _, _, mixed = mixed_tiny("llava", "interleave", encoder)
    with pytest.raises(ValueError, match="cannot be switched off"), switched_off(mixed):
        pass
    with pytest.raises(ValueError, match="no further encoder 3"), switched_off(mixed, [3]):
        pass
