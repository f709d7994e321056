"""What a mixer and further encoders keep for the backward pass, from shapes alone: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from mllm_align.families import Family, family_of, inner
from mllm_align.trainers.activations import PLAIN, Precision, Stack, stack_of
from mllm_align.vision.mixed_vision import MixedVision, mixed_of
from mllm_align.vision.mixer_files import kind_name
from mllm_align.vision.mixers import Cells, Map, Mixer, Sight, make_mixer

# Patches along a view of a family that reads images of any size: everything here is in proportion to them.
PATCHES = 16


@dataclass(frozen=True)
class EncoderStack:
    """Layers of a further encoder.

    Attributes:
        stack: Of them.
        tokens: Of a view.
    """

    stack: Stack
    tokens: int


@dataclass(frozen=True)
class MixedBytes:
    """What a mixer with its encoders takes of one view; of any other as much more as that has patches.

    Attributes:
        patches: That the model's own tower reads of the view.
        more_tokens: Tokens with the mixer for each without it.
        kept: Bytes that autograd keeps of the mixer, with what it read of encoders.
        along: Bytes that go along with an image token into the language model, for layers of the mixer there.
        inserted: Bytes per image token that these keep.
        encoders: Their layers.
        before_projector: Whether a gradient goes back through the projector, trained or not, to the mixer.
        trains: Whether any of it trains.
    """

    patches: int = 1
    more_tokens: float = 1.0
    kept: int = 0
    along: int = 0
    inserted: int = 0
    encoders: tuple[EncoderStack, ...] = ()
    before_projector: bool = False
    trains: bool = False

    def activations(self, patches: int, checkpointing: bool) -> int:
        """Bytes kept for the backward pass of views with so many patches in all."""
        views = patches / self.patches
        total = views * self.kept
        for each in self.encoders:
            if not each.stack.trains:
                continue
            tokens = round(views * each.tokens)
            if checkpointing:
                total += each.stack.entries(tokens) + each.stack.largest_layer(tokens, each.tokens, PLAIN)
            else:
                total += each.stack.kept(tokens, each.tokens, PLAIN)
        return round(total)

    def at_work(self, patches: int) -> int:
        """Bytes alive for a moment while encoders run, one after another."""
        views = patches / self.patches
        return max((each.stack.forward_work(round(views * each.tokens)) for each in self.encoders), default=0)


def mixed_bytes(hf: Any, autocast: torch.dtype | None, *, tower_trains: bool, projector_trains: bool) -> MixedBytes:
    """Runs the mixer on tensors without numbers.

    Args:
        hf: The unwrapped model.
        autocast: The dtype of it, or None where it is off.
        tower_trains: Whether what the projector reads has a gradient.
        projector_trains: Whether the projector itself trains.
    """
    mixed, family = mixed_of(inner(hf)), family_of(hf)
    if mixed is None:
        return MixedBytes()
    cells, read = view_cells(hf.config, family)
    side, patch = _square(hf.config, family)
    kind = mixed.kind
    at = read if kind.place == "input" else cells
    trains = _trains(mixed)
    moves = (tower_trains, tower_trains or (projector_trains and kind.place != "input"))
    return MixedBytes(
        patches=(side // patch) ** 2,
        more_tokens=kind.num_tokens(cells) / (cells[0] * cells[1]),
        **_kept(mixed, at, cells if family.projects_in_tower else read, autocast, moves),
        encoders=tuple(
            _encoder(each, wanted, autocast) for each, wanted in zip(mixed.seeing, kind.wants(at), strict=True)
        ),
        before_projector=trains and kind.place != "output",
        trains=trains,
    )


def view_cells(config: Any, family: Family) -> tuple[Cells, Cells]:
    """Rows and columns of the tokens of one view without a mixer, and of what the projector reads.

    Of a family that shows its tower images of any size, those of a square with `PATCHES` along a side.

    Args:
        config: The model's.
        family: The model's.
    """
    side, _ = _square(config, family)
    view = torch.empty(3, side, side, device="meta")
    return family.cells(config, view), family.read_cells(config, view)


def _square(config: Any, family: Family) -> tuple[int, int]:
    """Pixels along that view's side, and along a patch's."""
    vision = config.vision_config
    side, patch = getattr(vision, "image_size", None), vision.patch_size
    patch = patch if isinstance(patch, int) else max(patch)
    side = max(side) if isinstance(side, list | tuple) else side
    return (PATCHES * patch if family.projects_in_tower or not side else side), patch


def _kept(
    mixed: MixedVision, at: Cells, read: Cells, autocast: torch.dtype | None, moves: tuple[bool, bool]
) -> dict[str, int]:
    """Of one view what its graph holds, parameters left out; of layers in the language model the same per token."""
    kind = mixed.kind
    own = next((p for p in mixed.mixer.parameters() if p.is_floating_point()), None)
    dtype, device = (own.dtype, own.device.type) if own is not None else (torch.float32, "cpu")
    given = autocast or dtype
    under = nullcontext() if autocast is None else torch.autocast(device, autocast)
    with torch.device("meta"):
        made = make_mixer(kind_name(kind), kind.widths, kind.options).eval()
    shapes = {name: value.shape for name, value in made.state_dict().items()}
    with FakeTensorMode(), torch.device(device):
        weights = {
            name: torch.empty(shape, dtype=dtype, requires_grad=_trains(mixed.mixer)) for name, shape in shapes.items()
        }
        base, placed = moves

        def drawn(of: Cells, width: int, kind_of: torch.dtype, gradient: bool) -> Tensor:
            return torch.empty(1, of[0] * of[1], width, dtype=kind_of, requires_grad=gradient)

        extra = tuple(
            Map(drawn(wanted, encoder.width, encoder.dtype, _trains(encoder)), wanted)
            for encoder, wanted in zip(map(_running, mixed.seeing), kind.wants(at), strict=True)
        )
        x = drawn(at, kind.widths.place, given, placed)
        along: list[Tensor] | None = [] if kind.after else None
        sight = Sight(at, Map(drawn(read, kind.widths.base, given, base), read), extra, along)
        known = {tensor.untyped_storage()._cdata for tensor in weights.values()}
        with under:
            found = {"kept": _held(lambda: functional_call(made, weights, (x, sight)), known)}
            if not along:
                return found
            rows = along[0].detach().flatten(0, 1).requires_grad_(along[0].requires_grad)
            states = torch.empty(len(rows), kind.widths.language, dtype=given, requires_grad=rows.requires_grad)
            own = {f"mixer.{name}": weight for name, weight in weights.items()}
            known.add(rows.untyped_storage()._cdata)
            inside = _held(lambda: functional_call(_Inserted(made), own, (states, rows)), known)
        return found | {"along": rows.nbytes // len(rows), "inserted": inside // len(rows)}


class _Inserted(nn.Module):
    """The layers of a mixer in the language model, one after another."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, states: Tensor, rows: Tensor) -> Tensor:
        for number in range(len(self.mixer.after)):
            states = self.mixer.insert(number, states, rows)
        return states


def _held(compute: Callable[[], Tensor], known: set[int]) -> int:
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = compute()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) if out.requires_grad else 0


def _encoder(encoder: Any, cells: Cells, autocast: torch.dtype | None) -> EncoderStack:
    own = _running(encoder)
    config = own.model.config
    frozen = own.spec.train == "frozen"
    # A frozen one computes in its own dtype under autocast, too.
    size = None if frozen or autocast is None else autocast.itemsize
    stack = stack_of(
        own,
        Precision(own.dtype.itemsize, size),
        heads=_heads(config),
        attention=getattr(config, "_attn_implementation", None) or "sdpa",
        input_trains=False,
    )
    height, width = own.shape(cells)
    reading = own.readings[0]
    return EncoderStack(stack, (height // reading.stride) * (width // reading.stride) + reading.prefix)


def _heads(config: Any) -> int:
    heads: int | Sequence[int] = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", 1)
    return heads if isinstance(heads, int) else max(heads)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _running(encoder: Any) -> Any:
    """The encoder that is run: of one that trains whole, PEFT's copy."""
    copies = getattr(encoder, "modules_to_save", None)
    return next(iter(copies.values())) if copies else encoder
