"""A mixer with its encoders as a submodule of a model: while the model encodes images, they join in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mllm_align.families import Family, family_of
from mllm_align.families.base import EXTRA_PIXELS, MIXED, image_entries
from mllm_align.vision.inserting import Reading, entries_of, with_deepstack
from mllm_align.vision.mixers import Cells, Map, Mixer, Sight
from mllm_align.vision.vision_encoder import VisionEncoder

ATTRIBUTE = MIXED.rpartition(".")[2]


class Statistics(NamedTuple):
    """How the model's own image processor normalises: what undoes it gives pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class MixedVision(nn.Module):
    """The mixer and the further encoders of a model.

    It finds the tower and the projector of the model that it is in when images are encoded, never before: copies of
    the model, PEFT's trained copies of the projector and of the mixer, and merged models are all followed.

    Args:
        mixer: What joins.
        encoders: The further ones.
        statistics: Of the model's own pixels.

    Attributes:
        off: Numbers of further encoders that are switched off.
        enabled: Whether anything is mixed at all.
        loaded: Whether weights of an earlier run were loaded into it.
        known: None, or what is asked in place of an encoder: its number, itself, pixels, cells, numbers of the views.
    """

    def __init__(self, mixer: Mixer, encoders: Sequence[VisionEncoder], statistics: Statistics) -> None:
        super().__init__()
        self.mixer = mixer
        self.encoders = nn.ModuleList(encoders)
        self.statistics = statistics
        self.off: frozenset[int] = frozenset()
        self.enabled = True
        self.loaded = False
        self.known: Callable[[int, VisionEncoder, Tensor, Cells, Sequence[int]], Map] | None = None
        self.own_pixels: Tensor | None = None
        self.encoding: _Encoding | None = None
        self.reading: Reading | None = None

    @property
    def kind(self) -> Mixer:
        """The mixer, whatever is wrapped around it; of several copies the first: they are of one kind."""
        return next(module for module in self.mixer.modules() if isinstance(module, Mixer))

    @property
    def seeing(self) -> list[Any]:
        """The further encoders."""
        return list(self.encoders)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What, beside weights, decides what it makes of images."""
        seeing = [(each.spec._replace(model="", train="frozen"), each.mean, each.std) for each in self.seeing]
        return type(self.kind).__name__, self.kind.options, seeing, self.statistics, self.off, self.enabled

    @contextmanager
    def joining(self, model: Any) -> Iterator[_Encoding | None]:
        """Inside, what `model` (without its language head) makes of images is mixed."""
        if not self.enabled:
            yield None
            return
        encoding = _Encoding(self, family_of(model), model)
        handles = encoding.hooks()
        before, self.encoding = self.encoding, encoding
        try:
            yield encoding
        finally:
            self.encoding = before
            for handle in handles:
                handle.remove()

    def sees(
        self, pixels: Tensor, own: Tensor | None, cells: Cells, views: Sequence[int] = ()
    ) -> tuple[Map | None, ...]:
        """What the further encoders see of views of one shape.

        Args:
            pixels: (V, 3, h, w), normalised for the model's own encoder.
            own: (V, 3, S, S) in 0..1, for those with pixels of their own.
            cells: Rows and columns of the tokens.
            views: Their numbers among all views that are encoded together, for `known`.

        Raises:
            ValueError: If an encoder has pixels of its own and there are none.
        """
        mean, std = self.statistics
        # In float32: 8 bits of a normalised value are half a grey level off.
        planes = [pixels[:, c].float() * s + m for c, (m, s) in enumerate(zip(mean, std, strict=True))]
        shared = torch.stack(planes, dim=1).clamp(0, 1)
        found: list[Map | None] = []
        for number, (encoder, wanted) in enumerate(zip(self.seeing, self.kind.wants(cells), strict=True)):
            if number in self.off:
                found.append(None)
            elif encoder.spec.pixels == "shared":
                found.append(self._look(number, encoder, shared, wanted, views))
            elif own is None:
                raise ValueError(
                    f"encoder {encoder.spec.model!r} has pixels of its own, and {EXTRA_PIXELS} is missing: use the "
                    "processor that load_model or attach returned"
                )
            else:
                drawn = own.float() / 255 if own.dtype == torch.uint8 else own.float()
                found.append(self._look(number, encoder, drawn, wanted, views))
        return tuple(found)

    def _look(self, number: int, encoder: Any, pixels: Tensor, cells: Cells, views: Sequence[int]) -> Map:
        return encoder(pixels, cells) if self.known is None else self.known(number, encoder, pixels, cells, views)


class _Encoding:
    """One call of `get_image_features`: what the tower was shown, and what follows from it."""

    def __init__(self, mixed: MixedVision, family: Family, model: Any) -> None:
        self.mixed, self.family, self.model = mixed, family, model
        self.views: list[Tensor] = []
        self.read: Tensor | None = None
        # What goes along with tokens into the language model: of all of them, or, packed, of each image.
        self.rows: Tensor | list[Tensor] | None = None

    def hooks(self) -> list[Any]:
        """Puts hooks on the tower and the projector as they are now."""
        family, place = self.family, self.mixed.kind.place
        tower = self.model.get_submodule(_inside(family.tower))
        projector = self.model.get_submodule(_inside(family.projector))
        handles = [tower.register_forward_pre_hook(self._shown, with_kwargs=True)]
        if not family.projects_in_tower:
            handles.append(projector.register_forward_pre_hook(self._reads))
        if place == "input":
            handles.append(projector.register_forward_pre_hook(self._at_input))
        elif place == "linear" and family.first_linear is not None:
            found = _copies(projector, family.first_linear)
            handles += [layer.register_forward_hook(self._at_linear) for layer in found]
        elif family.projects_in_tower:
            handles.append(tower.register_forward_hook(self._behind_tower))
        else:
            handles.append(projector.register_forward_hook(self._at_output))
        return handles

    def _shown(self, tower: Any, args: Any, kwargs: Any) -> None:
        self.views = self.family.tower_views(self.model.config, args, kwargs)

    def _reads(self, projector: Any, args: Any) -> None:
        self.read = args[0]

    def _at_input(self, projector: Any, args: Any) -> Any:
        return self.mix(args[0], self.family.read_cells), *args[1:]

    def _at_linear(self, layer: Any, args: Any, output: Tensor) -> Tensor:
        order = self.family.linear_order(self.model.config, self.views)
        if order is None:
            return self.mix(output, self.family.cells)
        flat = torch.empty_like(output)
        flat[order] = output
        return self.mix(flat, self.family.cells)[order]

    def _at_output(self, projector: Any, args: Any, output: Tensor) -> Tensor:
        return self.mix(output, self.family.cells)

    def _behind_tower(self, tower: Any, args: Any, output: Any) -> Any:
        output.pooler_output = self.mix(image_entries(output), self.family.cells)
        return output

    def mix(self, x: Tensor, cells_of: Any) -> Tensor:
        """The tensor at the mixer's place, mixed; views of one shape are mixed together.

        Args:
            x: (V, N, d), or the rows of all views one behind the other; class tokens come first and stay as they are.
            cells_of: The family's rows and columns there for a view.
        """
        config, flat = self.model.config, x.flatten(0, -2)
        cells = [cells_of(config, view) for view in self.views]
        counts = [rows * columns for rows, columns in cells]
        classes, rest = divmod(len(flat) - sum(counts), len(counts))
        if rest or classes < 0:
            raise ValueError(f"{len(flat)} vectors where {len(counts)} views should have {sum(counts)}")
        parts = list(flat.split([count + classes for count in counts]))
        base = self._base(len(parts))
        along: list[Tensor] = parts[:]
        together: dict[Any, list[int]] = defaultdict(list)
        for number, view in enumerate(self.views):
            together[view.shape].append(number)
        for numbers in together.values():
            where = cells[numbers[0]]
            stacked = torch.stack([parts[number] for number in numbers])
            own, kept = self._map(base, numbers, stacked[:, classes:], where), list[Tensor]()
            sight = Sight(where, own, self._extra(numbers, where), kept if self.mixed.kind.after else None)
            mixed = self.mixed.mixer(stacked[:, classes:], sight)
            for rows in kept:
                for number, each in zip(numbers, rows, strict=True):
                    along[number] = torch.cat([each.new_zeros(classes, each.shape[-1]), each])
            joined = torch.cat([stacked[:, :classes], mixed], dim=1) if classes else mixed
            for number, tokens in zip(numbers, joined, strict=True):
                parts[number] = tokens
        if self.mixed.kind.after:
            self.rows = torch.cat(along)
        mixed = torch.cat(parts)
        return mixed.reshape(x.shape) if mixed.shape == flat.shape else mixed.unflatten(0, (len(parts), -1))

    def pack(self, features: Sequence[Tensor], pack: Callable[[list[Tensor], Tensor], Any]) -> None:
        """What goes along is laid out over tiles as the tokens are, with zeros for newlines.

        Args:
            features: Per image (views, tokens, d), before.
            pack: The model's own: of a list like `features` and a newline.
        """
        if isinstance(self.rows, Tensor):
            shapes = [each.shape[:2] for each in features]
            split = self.rows.split([_product((views, tokens)) for views, tokens in shapes])
            rows = [each.view(*shape, -1) for each, shape in zip(split, shapes, strict=True)]
            self.rows = list(pack(rows, self.rows.new_zeros(self.rows.shape[-1]))[0])

    def handed_on(self, output: Any) -> Any:
        """What `get_image_features` gives, with what goes along; a forward pass that runs takes that by itself."""
        if self.rows is None or not hasattr(output, "pooler_output"):
            return output
        if self.mixed.reading is not None:
            self.mixed.reading.rows = self.rows if isinstance(self.rows, Tensor) else torch.cat(self.rows)
            return output
        layers = getattr(output, "deepstack_features", None) or ()
        return with_deepstack(output, [*layers, entries_of(output, self.rows)])

    def _base(self, num_views: int) -> list[Tensor] | None:
        """What the projector reads of each view, without class tokens; None where it reads in an order of its own."""
        if self.read is None:
            return None
        flat = self.read.flatten(0, -2)
        counts = [_product(self.family.read_cells(self.model.config, view)) for view in self.views]
        classes = (len(flat) - sum(counts)) // num_views
        return [part[classes:] for part in flat.split([count + classes for count in counts])]

    def _map(self, base: list[Tensor] | None, numbers: list[int], x: Tensor, cells: tuple[int, int]) -> Map:
        if base is None:
            return Map(x, cells)
        read = self.family.read_cells(self.model.config, self.views[numbers[0]])
        return Map(torch.stack([base[number] for number in numbers]), read)

    def _extra(self, numbers: list[int], cells: tuple[int, int]) -> tuple[Map | None, ...]:
        own = self.mixed.own_pixels
        if own is not None and len(own) != len(self.views):
            raise ValueError(f"{EXTRA_PIXELS} has {len(own)} views, the model's own pixels {len(self.views)}")
        pixels = torch.stack([self.views[number] for number in numbers])
        return self.mixed.sees(pixels, None if own is None else own[numbers].to(pixels.device), cells, numbers)


def mixed_of(model: Any) -> MixedVision | None:
    """What is attached to a model (without its language head), or None."""
    return getattr(model, ATTRIBUTE, None)


@contextmanager
def switched_off(mixed: MixedVision, encoders: Collection[int] | None = None) -> Iterator[None]:
    """Inside, some further encoders (counted from 0), or with None the whole mixer, do not take part.

    Raises:
        ValueError: If there is no such encoder, or the mixer changes how many tokens an image becomes.
    """
    before = mixed.off, mixed.enabled
    if encoders is None:
        if not mixed.kind.keeps_tokens:
            raise ValueError(
                f"{type(mixed.kind).__name__} makes another number of tokens, for which prompts are laid out: it "
                "cannot be switched off; load the model without it"
            )
        mixed.enabled = False
    else:
        unknown = sorted(set(encoders) - set(range(len(mixed.encoders))))
        if unknown:
            raise ValueError(f"there is no further encoder {unknown[0]}, only 0 to {len(mixed.encoders) - 1}")
        mixed.off = frozenset(encoders)
    try:
        yield
    finally:
        mixed.off, mixed.enabled = before


def _inside(path: str) -> str:
    """A family's path, from the model without its language head."""
    return path.removeprefix("model.")


def _copies(projector: nn.Module, path: str) -> list[nn.Module]:
    """The layer at a path, in the projector and in every copy of it that PEFT keeps; one of them is run."""
    found = [layer for name, layer in projector.named_modules() if name == path or name.endswith(f".{path}")]
    if not found:
        raise ValueError(f"the projector has no layer {path!r}")
    return found


def _product(cells: tuple[int, int]) -> int:
    return cells[0] * cells[1]
