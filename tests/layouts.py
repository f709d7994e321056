"""Random layouts of images, prompts, responses and views, and what plain calls of the real model say of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from batches import plain_call, prompt_inputs
from mllm_align.contract import Batch, Branch, Feature, Prefix, Ragged, Signals, View
from mllm_align.data.pixels import ImageEncoder
from mllm_align.families import family_of, unwrap
from mllm_align.signals import EngineOptions
from mllm_align.signals.attention import SHARED_PREFIX
from tiny import tiny

QUESTIONS = (
    "How many?",
    "What is the colour of the circle?",
    "Is the small star left of the square in the picture?",
    "Describe the image in one sentence. Which of the two shapes is larger, the white one or the blue one above it?",
)
VIEWS = tuple(
    View(image, response) for response in ("chosen", "rejected") for image in ("image", None, "contrast_image")
)
# Tall, wide, tiny and square; none is as another.
SIZES = ((40, 150), (150, 50), (10, 40), (56, 56), (90, 70), (64, 128))
WINDOW = 9


@dataclass(frozen=True)
class Layout:
    """What a batch is made of.

    Attributes:
        pictures: (width, height) of each picture.
        prompts: Per distinct prompt its question and the pictures that it shows.
        rows: Per row its branches: prompt, view, number of response tokens.
        referenced: Per row whether the reference scores it.
    """

    pictures: tuple[tuple[int, int], ...]
    prompts: tuple[tuple[int, tuple[int, ...]], ...]
    rows: tuple[tuple[tuple[int, View, int], ...], ...]
    referenced: tuple[bool, ...]


@st.composite
def layouts(draw: Any, most_rows: int = 4, most_views: int = 4) -> Layout:
    """1 to 4 rows of 1 to 4 views each; prompts and pictures are shared by rows, pictures repeat inside a prompt."""
    pictures = draw(st.lists(st.sampled_from(SIZES), min_size=0, max_size=4).map(tuple))
    index = st.integers(0, len(pictures) - 1)
    shown = st.lists(index, max_size=3).map(tuple) if pictures else st.just(())
    prompts = draw(st.lists(st.tuples(st.integers(0, len(QUESTIONS) - 1), shown), min_size=1, max_size=5, unique=True))
    branch = st.tuples(st.integers(0, len(prompts) - 1), st.sampled_from(VIEWS), st.integers(1, 12))
    row = st.lists(branch, min_size=1, max_size=most_views, unique_by=lambda entry: entry[1]).map(tuple)
    rows = draw(st.lists(row, min_size=1, max_size=most_rows))
    referenced = draw(st.tuples(*[st.booleans() for _ in rows]))
    return Layout(pictures, tuple(prompts), tuple(rows), referenced)


def options(packing: str) -> st.SearchStrategy[EngineOptions]:
    """Settings, none of which may change a value."""
    return st.builds(
        EngineOptions,
        packing=st.just(packing),
        logits_chunk_size=st.integers(1, 64),
        least_fill=st.floats(0, 1),
        max_tokens_per_forward=st.one_of(st.none(), st.integers(1, 400)),
        max_images_per_forward=st.integers(1, 3),
        recompute_without_image=st.booleans(),
    )


OWN, NONE, OTHER = VIEWS[:3]
CORNERS = (
    # A batch without any image; a response of one token alone.
    Layout((), ((1, ()), (0, ())), (((0, NONE, 1), (1, VIEWS[4], 12)), ((0, NONE, 1),)), (True, False)),
    # The same picture twice in one prompt, one prompt in two rows, a row without an image between them.
    Layout(
        (SIZES[0], SIZES[1], SIZES[2]),
        ((3, (1, 0, 1)), (0, (2,)), (2, ()), (0, (1,))),
        (
            ((0, OWN, 3), (0, OTHER, 7), (1, VIEWS[3], 1)),
            ((2, NONE, 12), (2, VIEWS[4], 2)),
            ((0, OWN, 5), (3, OTHER, 4)),
        ),
        (True, True, False),
    ),
    # No row has a reference; a prompt and a picture that nothing is scored behind.
    Layout((SIZES[3], SIZES[4]), ((1, (0,)), (2, (0, 1))), (((0, OWN, 2), (0, VIEWS[3], 9)),), (False,)),
)


def variant(name: str) -> tuple[Any, Any]:
    """A tiny model and its processor: a family's name, and "+window", "+eager" behind it."""
    family, *changes = name.split("+")
    model, processor = tiny(family)
    if "window" in changes:
        model = _with_window(model)
    if "eager" in changes:
        model.set_attn_implementation("eager")
    return model, processor


def _with_window(model: Any) -> Any:
    """The same weights with a window shorter than any prompt, in one layer of two where the model has kinds."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.sliding_window, text.use_sliding_window = WINDOW, True
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = ["sliding_attention", "full_attention"]
    other = type(model)._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    other.load_state_dict(model.state_dict())
    return other.eval()


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Two gradients and noise: no two places, and no two pictures, look alike."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, np.full(x.shape, 60.0 * seed)], axis=-1)
    pixels += rng.normal(0, 40, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def batch_of(model: Any, processor: Any, layout: Layout) -> tuple[Batch, list[dict[str, Tensor]]]:
    """The batch of a layout, and of each prompt what the processor makes of it in one call."""
    family = family_of(model)
    encoder = ImageEncoder(processor, family.image_keys)
    pictures = [picture(size, number) for number, size in enumerate(layout.pictures)]
    places: dict[tuple[int, bool], int] = {}
    prefixes, prompts = [], []
    for question, shown in layout.prompts:
        several = len(shown) > 1 and encoder.tells_several
        images = tuple(places.setdefault((number, several), len(places)) for number in shown)
        inputs = prompt_inputs(processor, QUESTIONS[question], [pictures[n] for n in shown], together=True)
        extras = {key: inputs[key][0] for key in family.token_keys if key in inputs}
        prefixes.append(Prefix(inputs["input_ids"][0], images, extras))
        prompts.append(inputs)
    generator = torch.Generator().manual_seed(7)
    branches = [
        Branch(prompt, row, view, torch.randint(60, 300, (length,), generator=generator))
        for row, entries in enumerate(layout.rows)
        for prompt, view, length in entries
    ]
    # Not row by row, as a collator lays them out.
    branches.sort(key=lambda branch: branch.prefix)
    count = len(layout.rows)
    batch = Batch(
        sources=("default",) * count,
        row_ids=tuple(map(str, range(count))),
        images=tuple(encoder(pictures[number], several).tensors for number, several in places),
        prefixes=tuple(prefixes),
        branches=tuple(branches),
        reference_rows=layout.referenced,
        row_images={"image": tuple(prefixes[entries[0][0]].images for entries in layout.rows)},
    )
    return batch, prompts


def plain_signals(
    model: Any,
    batch: Batch,
    prompts: Sequence[dict[str, Tensor]],
    *,
    rows: Sequence[bool] | None = None,
    scored: Collection[View] = VIEWS,
    features: Sequence[Feature] = (),
) -> Signals:
    """What one plain call for each branch says; of the model as it is, adapters on or off.

    Args:
        model: The unwrapped Hugging Face model.
        batch: Of `prompts`.
        prompts: Per prefix the processor's output.
        rows: Which rows are run; None for all.
        scored: Views whose log-probabilities are kept.
        features: Text and projector features to take, too.
    """
    none = torch.zeros(0)
    logps = {view: [none] * len(batch) for view in batch.views}
    states: dict[View, list[Tensor | None]] = {view: [None] * len(batch) for view in batch.views}
    for branch in batch.branches:
        if rows is None or rows[branch.row]:
            found = plain_call(model, prompts[branch.prefix], branch.token_ids)
            states[branch.view][branch.row] = found[1]
            logps[branch.view][branch.row] = found[0] if branch.view in scored else none
    counts = {view: torch.tensor([len(values) for values in own]) for view, own in logps.items()}
    number = torch.arange(len(batch))
    return Signals(
        logps={view: torch.stack([values.sum() for values in own]) for view, own in logps.items()},
        num_tokens=counts,
        token_logps={
            view: Ragged(torch.cat(own), number.repeat_interleave(counts[view])) for view, own in logps.items()
        },
        features=_plain_features(model, batch, states, features),
        sources=batch.sources,
        row_ids=batch.row_ids,
    )


def _plain_features(
    model: Any, batch: Batch, states: dict[View, list[Tensor | None]], features: Sequence[Feature]
) -> dict[str, Ragged]:
    found = {}
    for feature in features:
        values: list[Tensor | None]
        if feature.source == "text":
            own = states.get(View(None, feature.column), [])
            values = [s if s is None else s[-1] if feature.pooling == "last" else s.mean(0) for s in own]
        else:
            values = [_mean_token(model, batch, images) for images in batch.row_images[feature.column]]
        there = [row for row, value in enumerate(values) if value is not None]
        if there:
            found[feature.name] = Ragged(torch.stack([values[row] for row in there]), torch.tensor(there))
    return found


def _mean_token(model: Any, batch: Batch, images: Sequence[int]) -> Tensor | None:
    """Each image is encoded alone, each time anew."""
    encode = family_of(model).encode_images
    tokens = [encode(model, [batch.images[image]]).tokens[0] for image in images]
    return torch.cat(tokens).mean(0) if tokens else None


def assert_same_signals(found: Signals, expected: Signals, atol: float) -> None:
    """Every view, row, token and feature."""
    assert found.num_tokens.keys() == found.host_num_tokens.keys() == expected.num_tokens.keys()
    for view, counts in expected.num_tokens.items():
        assert found.num_tokens[view].tolist() == list(found.host_num_tokens[view]) == counts.tolist()
        ours, plain = found.token_logps[view], expected.token_logps[view]
        assert ours.row.tolist() == plain.row.tolist()
        torch.testing.assert_close(ours.values, plain.values, atol=atol, rtol=0, msg=f"tokens of {view}: {{}}".format)
        torch.testing.assert_close(found.logps[view], expected.logps[view], atol=atol, rtol=0)
    assert found.features.keys() == expected.features.keys()
    for name, plain in expected.features.items():
        # In the order in which the responses were run.
        order = found.features[name].row.argsort()
        assert found.features[name].row[order].tolist() == plain.row.tolist()
        scale = float(plain.values.detach().abs().max())
        torch.testing.assert_close(found.features[name].values[order], plain.values, atol=atol * scale, rtol=0)


@contextmanager
def loaded_attention(model: Any) -> Iterator[Any]:
    """The unwrapped model with the attention it was loaded with, where the engine has put in its own."""
    hf = unwrap(model)
    config: Any = family_of(hf).module(hf, family_of(hf).language_model).config
    if config._attn_implementation == SHARED_PREFIX:
        config._attn_implementation = "sdpa"
    yield hf
