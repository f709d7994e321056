"""A further vision encoder beside the model's own: which one, as data."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from mllm_align.contract.teacher import attributes_of

Training = Literal["frozen", "lora", "full"]
Pixels = Literal["shared", "own"]
Normalise = Literal["own", "base"]


class Encoder(NamedTuple):
    """A vision model of `transformers` and what is read of it.

    Attributes:
        model: Name on the Hub, or folder; of a model with a text side (CLIP, SigLIP) the image side is taken.
        layer: Which hidden state, as `transformers` counts them (0 the embeddings, -1 the last before the final norm);
            several are concatenated along the channels (ConvNeXt's stages in Cambrian-1). None: the model's output,
            which ViTs have normed (CLIP has not).
        size: Side in pixels of the square that a view is shown as; its features are then resized to the wanted grid.
            None: as large as the wanted grid has patches, so that no feature is resized.
        train: "frozen", "lora", or "full".
        pixels: "shared": it reads the base model's pixels. "own": the processor makes larger ones for it of the same
            part of the image.
        normalise: "own": it is shown pixels as its checkpoint normalises them. "base": shared pixels as the base
            model's processor normalised them, which is what MMVP's code shows DINOv2; for weights trained that way.
        load_in_4bit: Whether its weights are NF4.
        revision: Of the Hub: branch, tag or commit.
    """

    model: str
    layer: int | tuple[int, ...] | None = None
    size: int | None = None
    train: Training = "frozen"
    pixels: Pixels = "shared"
    normalise: Normalise = "own"
    load_in_4bit: bool = False
    revision: str | None = None

    @property
    def layers(self) -> tuple[int | None, ...]:
        """What is read, one after the other."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    def __str__(self) -> str:
        said = [
            f"{name} {value}"
            for name, value in self._asdict().items()
            if name != "model" and value != self._field_defaults[name]
        ]
        return " ".join((self.model, *said))


def encoder_from(given: Any, owner: str) -> Encoder:
    """The encoder that an option says.

    Args:
        given: An `Encoder`, its `model`, or a mapping of its attributes.
        owner: Whose option it is, for errors.

    Raises:
        ValueError: If it is none of these, or an attribute is unknown or makes no sense.

    Example:
        >>> encoder_from({"model": "facebook/dinov2-large", "layer": -1}, "mixer").layer
        -1
    """
    made = Encoder(**attributes_of(Encoder, given, "encoder", owner))
    if isinstance(made.layer, list | tuple):
        made = made._replace(layer=tuple(made.layer))
    wrong = _wrong(made)
    if wrong:
        raise ValueError(f"{owner}: encoder {made.model!r}: {wrong}")
    return made


def _wrong(made: Encoder) -> str:
    """What of the attributes makes no sense, or ""."""
    if made.layer == () or any(layer is not None and type(layer) is not int for layer in made.layers):
        return f"layer must be a whole number or several, got {made.layer!r}"
    if isinstance(made.layer, tuple) and None in made.layer:
        return f"layer must be a whole number or several, got {made.layer!r}"
    if made.size is not None and (type(made.size) is not int or made.size < 1):
        return f"size must be a number of pixels above 0, got {made.size!r}"
    for name, kinds in (("train", Training), ("pixels", Pixels), ("normalise", Normalise)):
        if getattr(made, name) not in get_args(kinds):
            return f"{name} must be one of {', '.join(get_args(kinds))}, got {getattr(made, name)!r}"
    if made.normalise == "base" and made.pixels == "own":
        return "pixels of its own are not those that the base normalised: set normalise to own, or pixels to shared"
    if type(made.load_in_4bit) is not bool:
        return f"load_in_4bit must be true or false, got {made.load_in_4bit!r}"
    if made.load_in_4bit and made.train == "full":
        return "4-bit weights cannot be trained: set train to frozen or lora, or load_in_4bit off"
    if made.revision is not None and not isinstance(made.revision, str):
        return f"revision must be text, got {made.revision!r}"
    return ""
