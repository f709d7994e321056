"""Puts a mixer and further encoders into a loaded model, and takes them out again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from PIL import Image
from torch import Tensor, nn

from mllm_align.families import Family, family_of, inner, unwrap
from mllm_align.families.base import EXTRA_PIXELS, MIXED
from mllm_align.vision.encoder_spec import Encoder, encoder_from
from mllm_align.vision.encoders import load_encoder
from mllm_align.vision.mixed_classes import encoding_class, outer_class, reading_class
from mllm_align.vision.mixed_vision import ATTRIBUTE, MixedVision, Statistics, mixed_of
from mllm_align.vision.mixers import MIXERS, Mixer, Widths, make_mixer
from mllm_align.vision.own_pixels import unwrap_processor, wrap_processor


class MixerSettings(NamedTuple):
    """A mixer as a recipe says it.

    Attributes:
        kind: Name in `vision.mixers.MIXERS`.
        encoders: The further ones, in order.
        options: Of the kind.
        train: Whether the mixer trains.
        weights: Folder of a trained mixer to begin with; None begins anew.
    """

    kind: str
    encoders: tuple[Encoder, ...]
    options: Mapping[str, Any]
    train: bool = True
    weights: str | None = None


def mixer_from(given: Any) -> MixerSettings:
    """The settings that a recipe's `model.mixer` says: `kind`, `encoders`, `train`, `weights`, and the kind's options.

    Raises:
        ValueError: If it is no mapping, the kind or an encoder is missing or unknown, or a value makes no sense.

    Example:
        >>> mixer_from({"kind": "gated", "encoders": ["facebook/dinov2-large"]}).encoders[0].model
        'facebook/dinov2-large'
    """
    if isinstance(given, MixerSettings):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"mixer must be a mapping with `kind` and `encoders`, got {given!r}")
    rest = dict(given)
    kind, encoders = rest.pop("kind", None), rest.pop("encoders", None)
    train, weights = rest.pop("train", True), rest.pop("weights", None)
    if not isinstance(kind, str):
        raise ValueError(f"mixer has no kind: name one of {', '.join(MIXERS)}")
    if isinstance(encoders, str | Mapping | Encoder):
        encoders = [encoders]
    if not isinstance(encoders, Sequence) or not encoders:
        raise ValueError("mixer has no encoders: name at least one vision model, for example facebook/dinov2-large")
    if type(train) is not bool:
        raise ValueError(f"mixer.train must be true or false, got {train!r}")
    if weights is not None and not isinstance(weights, str):
        raise ValueError(f"mixer.weights must be a folder, got {weights!r}")
    found = tuple(encoder_from(each, "mixer") for each in encoders)
    # Any widths do: what can be wrong with the options is found before a model is loaded.
    make_mixer(kind, Widths(64, 64, 64, (64,) * len(found)), rest)
    return MixerSettings(kind, found, rest, train, weights)


def attach(
    model: Any,
    mixer: Any,
    encoders: Sequence[Any] | None = None,
    processor: Any = None,
    *,
    device: Any = None,
) -> MixedVision:
    """Lets a model read what further vision encoders see, too.

    The model stays what it is: the mixer is one more submodule (`model.vision_mixer`), which joins in wherever images
    are encoded, in `forward`, in `generate`, and in training. What `save_pretrained` writes is the stock model;
    `save_mixer` writes the mixer beside it. PEFT's `LoraConfig` trains it with
    `modules_to_save=["model.vision_mixer.mixer"]`, which `mllm_align` puts there by itself.

    Args:
        model: A loaded model, quantised or not, without adapters.
        mixer: `MixerSettings`, or a mapping with `kind` and its options; then it may hold the `encoders`.
        encoders: Names, folders, or mappings of the attributes of `Encoder`.
        processor: The model's; it is told how many tokens an image becomes, where that changes.
        device: Of mixer and encoders; the model's.

    Returns:
        The new submodule.

    Raises:
        ValueError: If the model has adapters or a mixer already, an encoder cannot be loaded, or mixer and family do
            not go together; the message says why.

    Example:
        >>> model, processor = load_model("llava-hf/llava-1.5-7b-hf")  # doctest: +SKIP
        >>> attach(model, {"kind": "gated"}, ["facebook/dinov2-large"], processor)  # doctest: +SKIP
    """
    hf = unwrap(model)
    if _has_adapters(model):
        raise ValueError("the model has adapters: attach the mixer before them, or merge them first")
    if mixed_of(inner(hf)) is not None:
        raise ValueError("the model has a mixer already: detach it first")
    if processor is None:
        raise ValueError("attach needs the model's processor: it says how its pixels are normalised")
    given = mixer if isinstance(mixer, MixerSettings) else {**mixer, **({"encoders": encoders} if encoders else {})}
    settings = mixer_from(given)
    family = family_of(hf)
    _check_place(family, settings)
    projector = family.module(hf, family.projector)
    weight = next((each for each in projector.parameters() if each.is_floating_point()), None)
    if weight is None:
        raise ValueError(
            f"the projector of this {family.name} is quantised, and its tokens are to be mixed as they are: load it "
            "with load_model(..., load_in_4bit=True), which leaves tower and projector alone"
        )
    device = weight.device if device is None else device
    statistics = statistics_of(processor)
    loaded = [load_encoder(each, device, weight.dtype, statistics) for each in settings.encoders]
    seam = measure(hf, processor, family, MIXERS[settings.kind].place)
    options = dict(settings.options)
    if "base_window" in inspect.signature(MIXERS[settings.kind]).parameters:
        options.setdefault("base_window", max(seam.read[0] // seam.cells[0], 1))
    widths = Widths(seam.base, seam.place, seam.language, tuple(encoder.width for encoder in loaded))
    made = make_mixer(settings.kind, widths, options)
    _check_layers(hf, family, made)
    own = [encoder.spec for encoder in loaded if encoder.spec.pixels == "own"]
    mixed = MixedVision(made.to(device, weight.dtype), loaded, statistics)
    _tell_processor(processor, family, made, seam)
    if own:
        wrap_processor(processor, family, hf.config, _side_of_own(loaded, made, seam.cells))
    put_in(hf, mixed, own=bool(own))
    made.requires_grad_(settings.train)
    mixed.eval()
    return mixed


def put_in(hf: Any, mixed: MixedVision, *, own: bool) -> None:
    """Makes it the submodule that joins in; stock `save_pretrained` leaves it out."""
    core = inner(hf)
    setattr(core, ATTRIBUTE, mixed)
    core.__class__ = (reading_class if mixed.kind.after else encoding_class)(type(core))
    if own:
        hf.__class__ = outer_class(type(hf))
    left_out = {f"{MIXED}.{name}" for name in mixed.state_dict()}
    hf._keys_to_ignore_on_save = set(hf._keys_to_ignore_on_save or ()) | left_out


def detach(model: Any, processor: Any = None) -> MixedVision:
    """Takes the mixer out: the model is the stock one again.

    Args:
        model: Without adapters.
        processor: Is told the family's own number of tokens again.

    Returns:
        What was attached.

    Raises:
        ValueError: If the model has adapters, or no mixer.
    """
    hf = unwrap(model)
    if _has_adapters(model):
        raise ValueError("the model has adapters: merge or unload them before the mixer is detached")
    core = inner(hf)
    mixed = mixed_of(core)
    if mixed is None:
        raise ValueError("the model has no mixer")
    delattr(core, ATTRIBUTE)
    core.__class__ = type(core).stock  # type: ignore[attr-defined]
    hf.__class__ = getattr(type(hf), "stock", type(hf))
    hf._keys_to_ignore_on_save = {key for key in hf._keys_to_ignore_on_save if not key.startswith(f"{MIXED}.")}
    if processor is not None:
        unwrap_processor(processor)
        family = family_of(hf)
        seam = measure(hf, processor, family, "output")
        if not mixed.kind.keeps_tokens:
            family.set_view_tokens(processor, seam.cells[0] * seam.cells[1] + seam.classes, seam.cells)
    return mixed


def _has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put anything of its own into a model, even if it is handed over without its wrapper."""
    return any(isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) for module in model.modules())


class Measured(NamedTuple):
    """What one image shows of a model.

    Attributes:
        base: Width of what the projector reads (where that lies in the tower, of tokens).
        place: Width at the mixer's place.
        language: Width of tokens.
        cells: Rows and columns of a view's tokens.
        read: The same of what the projector reads.
        classes: Class tokens that come with them, where views are all that there is of an image.
    """

    base: int
    place: int
    language: int
    cells: tuple[int, int]
    read: tuple[int, int]
    classes: int


def drawn_image() -> Image.Image:
    """One image that is the same everywhere."""
    down, across = np.mgrid[0:64, 0:96]
    planes = np.stack([down * 4 % 256, across * 2 % 256, (down * across) % 256], axis=-1)
    return Image.fromarray(planes.astype(np.uint8))


def drawn_pixels(processor: Any, family: Family) -> dict[str, Tensor]:
    """What the model's processor makes of it for the tower, and for encoders with pixels of their own."""
    made = processor(text=[processor.image_token], images=[drawn_image()], return_tensors="pt")
    return {key: made[key] for key in (*family.image_keys, EXTRA_PIXELS) if key in made}


@torch.no_grad()
def measure(hf: Any, processor: Any, family: Family, place: str) -> Measured:
    """Encodes one image with the model as it is, and looks."""
    found: dict[str, Any] = {}
    tower, projector = family.module(hf, family.tower), family.module(hf, family.projector)

    def shown(module: nn.Module, args: Any, kwargs: Any) -> None:
        found["views"] = family.tower_views(hf.config, args, kwargs)

    handles = [
        tower.register_forward_pre_hook(shown, with_kwargs=True),
        projector.register_forward_pre_hook(lambda module, args: found.setdefault("read", args[0].shape[-1]) and None),
    ]
    if family.first_linear is not None:
        layer = projector.get_submodule(family.first_linear)
        handles.append(
            layer.register_forward_hook(
                lambda module, args, output: found.setdefault("linear", output.shape[-1]) and None
            )
        )
    try:
        tokens = family.encode_images(hf, [drawn_pixels(processor, family)]).tokens[0]
    finally:
        for handle in handles:
            handle.remove()
    language = tokens.shape[-1]
    base = language if family.projects_in_tower else found["read"]
    width = {"input": found["read"], "linear": found.get("linear", language), "output": language}[place]
    views = found["views"]
    cells = family.cells(hf.config, views[0])
    classes = max(len(tokens) // len(views) - cells[0] * cells[1], 0)
    read = cells if family.projects_in_tower else family.read_cells(hf.config, views[0])
    return Measured(base, width, language, cells, read, 0 if family.fixed_tokens else classes)


def statistics_of(processor: Any) -> Statistics:
    """Mean and standard deviation of the model's own pixels; 0 and 1 where they are not normalised."""
    images = processor.image_processor
    if not getattr(images, "do_normalize", True):
        return Statistics((0.0,) * 3, (1.0,) * 3)
    return Statistics(tuple(map(float, images.image_mean)), tuple(map(float, images.image_std)))


def _check_place(family: Family, settings: MixerSettings) -> None:
    """Refuses what cannot work, before an encoder is loaded."""
    place = MIXERS[settings.kind].place
    if place == "input" and family.projects_in_tower:
        raise ValueError(
            f"mixer {settings.kind!r} mixes what the projector reads, and in {family.name} that lies inside the "
            "tower, in an order of its own: take concat, gated, window or sva"
        )
    if family.projects_in_tower and any(each.pixels == "own" for each in settings.encoders):
        raise ValueError(
            f"{family.name} shows its tower the whole image at the resolution it has: further encoders read the same "
            "pixels; leave pixels: own out"
        )


def _check_layers(hf: Any, family: Family, mixer: Mixer) -> None:
    """Refuses layers behind the last one of the language model: no token reads image tokens any more there."""
    layers: Any = family.module(hf, f"{family.language_model}.layers")
    last = len(layers) - 2
    if mixer.after and mixer.after[-1] > last:
        raise ValueError(
            f"mixer layers would lie behind the language model's layers {', '.join(map(str, mixer.after))}; the last "
            f"behind which image tokens are read is {last}, counted from 0: take fewer llm_layers, a smaller "
            "llm_stride, or an earlier llm_start"
        )


def _tell_processor(processor: Any, family: Family, mixer: Mixer, seam: Measured) -> None:
    cells = seam.cells
    tokens = mixer.num_tokens(cells)
    if mixer.on_grid and tokens == cells[0] * cells[1]:
        return
    try:
        family.set_view_tokens(processor, tokens + seam.classes, cells)
    except ValueError as error:
        raise ValueError(
            f"{type(mixer).__name__} makes {tokens} tokens of {cells[0] * cells[1]}, which {family.name} cannot have: "
            f"{error}; take a mixer that keeps their number (concat, gated, window, sva)"
        ) from None


def _side_of_own(encoders: Sequence[Any], mixer: Mixer, cells: tuple[int, int]) -> int:
    """Pixels along a view that the largest of the encoders with pixels of their own wants."""
    wanted = zip(encoders, mixer.wants(cells), strict=True)
    return max(max(encoder.shape(each)) for encoder, each in wanted if encoder.spec.pixels == "own")
