"""What a mixer is given and what it says of itself; the mixers are pure tensor maths and know no model family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

Cells = tuple[int, int]  # rows, columns
Place = Literal["input", "linear", "output"]


class Map(NamedTuple):
    """What one encoder sees of V views of equal shape.

    Attributes:
        values: (V, rows * columns, width), row by row, patches alone.
        cells: Rows and columns.
    """

    values: Tensor
    cells: Cells


class Sight(NamedTuple):
    """What a mixer is given beside the tensor at its place.

    Attributes:
        cells: Rows and columns of the tokens at its place.
        base: Of the model's own encoder: what the projector reads, or, in families whose projector reads merged
            patches, the projector's output.
        extra: Of each further encoder; None for one that is switched off: the mixer then does as if it were not there.
        along: None, or a list to which a mixer with layers in the language model adds what goes along with the tokens
            for these, (V, M, its own width).
    """

    cells: Cells
    base: Map
    extra: tuple[Map | None, ...]
    along: list[Tensor] | None = None


class Widths(NamedTuple):
    """How wide the vectors are.

    Attributes:
        base: Of `Sight.base`.
        place: Of the tensor at the mixer's place.
        language: Of the tokens that the language model reads.
        extra: Of each further encoder.
    """

    base: int
    place: int
    language: int
    extra: tuple[int, ...]


class Seen(NamedTuple):
    """One further encoder that takes part.

    Attributes:
        index: Which of them, from 0.
        values: As in its `Map`, in the dtype of the mixer's parameters.
        weight: One, or zero where encoder dropout leaves it out of this batch. What it adds is multiplied by that, so
            that its parameters have gradients, of zero: DistributedDataParallel waits for those of every parameter.
    """

    index: int
    values: Tensor
    weight: float


class Mixer(nn.Module):
    """Joins what several vision encoders see into the tokens that the language model reads.

    Class attributes:
        place: What it changes: "input", what the projector reads (V, N, C), one vector per patch; "linear", what the
            projector's first linear layer gives (V, N, D), which is where concatenated channels end up; "output", the
            tokens behind the projector (V, N, H).
        starts_as_identity: Whether a new one leaves the model's outputs exactly as they were. Ask the instance: with
            some kinds it depends on the options.

    Attributes:
        replaces: Whether the tokens behind the model's own projector are read no more, so that it has no gradient.
        on_grid: Whether its tokens lie where those without it lay, `num_tokens((1, 1))` of them in each cell.
        after: Numbers of the language model's layers behind which the mixer has one of its own, see `insert`; these
            are in its `inserted`.
        options: All options but for those left out; with the widths they build it anew (`make_mixer`). Numbers,
            strings, booleans, None, and lists of them, so that JSON holds them.
        watched: None, or a dictionary in which each forward pass writes what is worth a look, detached tensors without
            dimensions, over what stood there. Names end in the encoder's number: 0 is the model's own, the further
            ones count from 1. Lengths are means over tokens. Means per kind:

            - "attention/k" (window, sva): how much of the attention goes to it; these add up to one.
            - "gate/k" (gated): mean absolute value of tanh(gate); "gate" (sva with `residual`).
            - "added/k" (gated): length of what it adds, as a part of the length of what is there; "added" (window;
              sva with `residual`): of all together.
            - "added/k" (concat): length of what it adds, as a part of that and the length of what is there.
            - "norm/k" (additive, interleave): length of its vectors where they are joined, before they are weighted;
              "share/k" (additive): the weight.

    Args:
        widths: How wide the vectors are; one further encoder at the least.
        encoder_dropout: How likely it is that a further encoder is left out of a batch in training, each by itself, as
            in BRAVE (Kar et al., 2024), https://arxiv.org/abs/2404.07204. The model's own always stays, and nothing is
            scaled up for it: a batch without an encoder is what a model with that encoder switched off sees.
        options: Those of the kind.

    A subclass takes `(widths, **options)`, each option by name, hands them on, and has a `forward(x, sight)` that
    gives a tensor like `x`, in its dtype, at "output" with `num_tokens` tokens. What the further encoders see it takes
    from `seen`, where the switched-off ones are missing and dropout is seen to.
    """

    place: ClassVar[Place]
    replaces: bool = False
    on_grid: bool = True
    after: tuple[int, ...] = ()
    starts_as_identity: bool = True

    def __init__(self, widths: Widths, *, encoder_dropout: float = 0.0, **options: object) -> None:
        super().__init__()
        if not widths.extra:
            raise ValueError("a mixer needs one further encoder at the least")
        if isinstance(encoder_dropout, bool) or not (
            isinstance(encoder_dropout, int | float) and 0 <= encoder_dropout < 1
        ):
            raise ValueError(f"encoder_dropout must be at least 0 and below 1, not {encoder_dropout!r}")
        self.widths = widths
        self.options: dict[str, object] = {**options, "encoder_dropout": encoder_dropout}
        self.encoder_dropout = float(encoder_dropout)
        self.watched: dict[str, Tensor] | None = None

    def wants(self, cells: Cells) -> Sequence[Cells]:
        """The rows and columns in which each further encoder is to be read, for tokens in `cells`."""
        return [cells] * len(self.widths.extra)

    def num_tokens(self, cells: Cells) -> int:
        """How many tokens the language model reads of a view that had `cells` without a mixer."""
        return cells[0] * cells[1]

    @property
    def keeps_tokens(self) -> bool:
        """Whether an image becomes the tokens that it becomes without a mixer, in the same places."""
        return self.on_grid and self.num_tokens((1, 1)) == 1

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """(V, N, d) to (V, M, d); class tokens are not among them."""
        raise NotImplementedError

    def insert(self, number: int, states: Tensor, rows: Tensor) -> Tensor:
        """What the mixer makes of the states of image tokens behind layer `after[number]` of the language model.

        Args:
            number: Which of the mixer's layers there, from 0.
            states: (M, H), in the dtype of the language model.
            rows: (M, width of `Sight.along`), what went along with these tokens; zeros for those of no cell.
        """
        raise NotImplementedError

    def seen(self, x: Tensor, sight: Sight) -> list[Seen]:
        """The further encoders that take part, checked, with this batch's draw of encoder dropout.

        Raises:
            ValueError: If a tensor has another shape than the mixer was built for or asked for.
        """
        if len(sight.extra) != len(self.widths.extra):
            raise ValueError(f"built for {len(self.widths.extra)} further encoders, given {len(sight.extra)}")
        rows, columns = sight.cells
        if x.shape[1:] != (rows * columns, self.widths.place):
            expected = f"{rows} x {columns} vectors of {self.widths.place}"
            raise ValueError(f"{expected} expected, given {tuple(x.shape[1:])}")
        weights = [1.0] * len(sight.extra)
        if self.training and self.encoder_dropout:
            # On the CPU whatever the device: nobody waits for it, and a recomputed forward pass draws the same.
            weights = (torch.rand(len(weights)) >= self.encoder_dropout).double().tolist()
        found = []
        for index, (each, cells) in enumerate(zip(sight.extra, self.wants(sight.cells), strict=True)):
            if each is None:
                continue
            expected = (len(x), cells[0] * cells[1], self.widths.extra[index])
            if each.cells != tuple(cells) or each.values.shape != expected:
                raise ValueError(
                    f"further encoder {index + 1}: values {expected} in {cells[0]} x {cells[1]} cells expected, given "
                    f"{tuple(each.values.shape)} in {each.cells[0]} x {each.cells[1]}"
                )
            found.append(Seen(index, self.own(each.values), weights[index]))
        return found

    def own(self, x: Tensor) -> Tensor:
        """In the dtype of the parameters, where there are any."""
        first = next((each for each in self.parameters() if each.is_floating_point()), None)
        return x if first is None else x.to(first.dtype)
