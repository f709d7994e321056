"""A weighted sum of objectives, each for all rows or for those of its sources."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import or_
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mllm_align.contract import Needs, Objective, Outcome, Ragged, Signals, Term, needs_for

Key = TypeVar("Key")
Value = TypeVar("Value")


class Part(NamedTuple):
    """One objective of a `Weighted`: its name in the logs, its weight, and its sources (None: every row)."""

    name: str
    objective: Objective
    weight: float
    sources: tuple[str, ...] | None

    def takes(self, source: str) -> bool:
        """Whether rows of `source` are for this part."""
        return self.sources is None or source in self.sources


class Weighted(nn.Module):
    """A weighted sum of objectives, such as RPO (Pang et al., 2024), https://arxiv.org/abs/2404.19733.

    Each part sees the rows of its sources alone and is normalised by them: weight x (sum over its rows) / (its own
    global count). Adding instruction rows to a batch therefore changes nothing in the preference term. The needs are
    the union of the parts' needs, so what two parts read of one row is measured once.

    Args:
        *parts: (objective, weight) for every row, or (objective, weight, source) or (objective, weight, sources) for
            the rows of one source or of several. Weight 0 measures and logs a part without training it.

    Needs:
        The union over parts; `needs_for(source)` is the union over the parts that take `source`.

    Shapes:
        Signals of B rows with `sources` (B,). The terms of the parts one after another, weights multiplied. A term
        named as its objective takes the part's name ("svco"), any other is prefixed by it ("svco/anchor"), and so is
        every metric ("svco/margins/attend"). A part is named after its class; parts of one class add their sources
        ("next_token_pairs"), or else a number. A part without rows in the batch has terms of sum 0 and count 0 and
        metrics without entries.

    Example:
        >>> from mllm_align.objectives import DPO, NextToken
        >>> both = Weighted((DPO(), 1.0, "pairs"), (NextToken(), 0.5, ("instructions", "pairs")))
        >>> [str(view) for view in both.needs_for("instructions").views]
        ['chosen|image']
        >>> logps = {view: torch.tensor([-4.0, -2.0]) for view in both.needs.views}
        >>> counts = {view: torch.tensor([2, 1]) for view in both.needs.views}
        >>> signals = Signals(logps, counts, sources=("pairs", "instructions"))
        >>> [(term.name, term.weight, term.count.item()) for term in both(signals, signals).terms]
        [('dpo', 1.0, 1), ('next_token', 0.5, 3)]

    Relations:
        Takes any objective, another `Weighted` included. Parts that are modules are registered, so that their
        parameters are trained and saved with it.

    Deviations:
        RPO's code averages both terms over rows; here each keeps its own normaliser (`NextToken`: tokens).
    """

    def __init__(self, *parts: tuple[Objective, float] | tuple[Objective, float, str | Sequence[str]]) -> None:
        """Checks and names the parts."""
        super().__init__()
        if not parts:
            raise ValueError("Weighted: give at least one (objective, weight) or (objective, weight, sources)")
        checked = [_checked(part, place) for place, part in enumerate(parts)]
        self.parts = _uniquely_named(checked)
        self.modules_of_parts = nn.ModuleList(
            part.objective for part in self.parts if isinstance(part.objective, nn.Module)
        )

    @property
    def needs(self) -> Needs:
        """The union of what the parts need."""
        return reduce(or_, (part.objective.needs for part in self.parts))

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that parts name, in order of first mention."""
        return tuple(dict.fromkeys(source for part in self.parts for source in part.sources or ()))

    def needs_for(self, source: str) -> Needs:
        """The union of what the parts that take rows of `source` need of them."""
        asked = (needs_for(part.objective, source) for part in self.parts if part.takes(source))
        return reduce(or_, asked, Needs())

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The terms and metrics of all parts."""
        terms: list[Term] = []
        metrics: dict[str, Tensor] = {}
        for part in self.parts:
            outcome = part.objective(*_signals_of(part, policy, reference))
            own_name = class_to_name(type(part.objective))
            for term in outcome.terms:
                name = part.name if term.name == own_name else f"{part.name}/{term.name}"
                terms.append(term._replace(name=name, weight=part.weight * term.weight))
            metrics.update({f"{part.name}/{name}": value for name, value in outcome.metrics.items()})
        return Outcome(tuple(terms), metrics)

    def extra_repr(self) -> str:
        """One line per part."""
        of = {
            part.name: f"sources {', '.join(part.sources)}" if part.sources else "every source" for part in self.parts
        }
        return "\n".join(f"{part.name}: weight {part.weight}, {of[part.name]}" for part in self.parts)


# Names that are one word, whatever their capitals.
ONE_WORD = ("CoCa", "SigLIP")


def class_to_name(kind: type) -> str:
    """A class name in lower case, words apart: NextToken is next_token, SVCO svco, InfoNCE info_nce, CoCa coca."""
    if kind.__name__ in ONE_WORD:
        return kind.__name__.lower()
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()


def _checked(part: Any, place: int) -> Part:
    where = f"Weighted: part {place + 1}"
    if not isinstance(part, tuple | list) or len(part) not in (2, 3):
        raise TypeError(f"{where} must be (objective, weight) or (objective, weight, sources), got {part!r}")
    objective, weight, *rest = part
    if isinstance(objective, type) or not isinstance(objective, Objective):
        raise TypeError(f"{where}: {objective!r} is not an objective: it wants `needs` and a call (forgot the ()?)")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(f"{where}: weight must be a number of at least 0, got {weight!r}")
    sources = _sources(rest[0], where) if rest and rest[0] is not None else None
    return Part(class_to_name(type(objective)), objective, float(weight), sources)


def _sources(given: Any, where: str) -> tuple[str, ...]:
    sources = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else ()
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise ValueError(f"{where}: sources must be one name or several, got {given!r}; leave them out for every row")
    return sources


def _uniquely_named(parts: Sequence[Part]) -> tuple[Part, ...]:
    shared = Counter(part.name for part in parts)
    named: list[Part] = []
    taken: set[str] = set()
    for part in parts:
        base = "_".join((part.name, *(part.sources or ()))) if shared[part.name] > 1 else part.name
        name, number = base, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        named.append(part._replace(name=name))
    return tuple(named)


def _signals_of(part: Part, policy: Signals, reference: Signals | None) -> tuple[Signals, Signals | None]:
    """What one part gets to see: every view that it declares and no other, on the rows that are its own.

    Views that no row of the batch has may not have been measured; the part finds them as zeros without tokens.
    """
    needs = part.objective.needs
    own = _declared(policy, needs)
    frozen = _declared(reference or Signals({}, {}), needs) if needs.reference else None
    if part.sources is not None:
        rows = _rows_of(part, own)
        if len(rows) < _num_rows(own):
            own = own.select(rows)
            frozen = frozen.select(rows) if frozen is not None else None
    zeros = partial(_zeros, policy, _num_rows(own))
    own = _with_absent(own, needs, zeros)
    if frozen is None:
        return own, None
    for view in own.num_tokens:
        if view not in frozen.num_tokens and own.rows_with((view,)).numel():
            raise ValueError(f"Weighted: part {part.name!r} compares with a reference, which lacks {view}: measure it")
    return own, _with_absent(frozen, needs, zeros)


def _declared(signals: Signals, needs: Needs) -> Signals:
    views = needs.views + needs.optional
    return Signals(
        logps=_only(signals.logps, views),
        num_tokens=_only(signals.num_tokens, views),
        token_logps=_only(signals.token_logps, views) if needs.tokens else {},
        features=_only(signals.features, [feature.name for feature in needs.features]),
        sources=signals.sources,
        row_ids=signals.row_ids,
        regions=_only(signals.regions, [f.column for f in needs.features if f.of_regions]),
        host_num_tokens=_only(signals.host_num_tokens, views),
        host_feature_rows=_only(signals.host_feature_rows, [feature.name for feature in needs.features]),
        host_feature_ids=_only(signals.host_feature_ids, [feature.name for feature in needs.features]),
        host_token_ids=_only(signals.host_token_ids, views) if needs.tokens else {},
    )


def _only(mapping: Mapping[Key, Value], keys: Iterable[Key]) -> dict[Key, Value]:
    return {key: mapping[key] for key in keys if key in mapping}


def _num_rows(signals: Signals) -> int:
    counts = next(iter(signals.num_tokens.values()), None)
    return counts.numel() if counts is not None else len(signals.sources)


def _rows_of(part: Part, signals: Signals) -> list[int]:
    num_rows = _num_rows(signals)
    if len(signals.sources) != num_rows:
        raise ValueError(
            f"Weighted: part {part.name!r} is for rows of {', '.join(part.sources or ())}, but the signals tell the "
            f"source of {len(signals.sources)} of {num_rows} rows: give Signals(sources=...) one name per row"
        )
    return [row for row, source in enumerate(signals.sources) if part.takes(source)]


def _zeros(measured: Signals, num_rows: int) -> Tensor:
    """(num_rows,) zeros on the graph of what was measured, so that a loss made of them alone can go backward."""
    found = [*measured.logps.values(), *(ragged.values for ragged in measured.features.values())]
    # Where nothing was measured at all, nothing says on which device.
    return found[0].new_zeros(num_rows) + found[0][:0].sum() if found else torch.zeros(num_rows)


def _with_absent(signals: Signals, needs: Needs, make_zeros: Callable[[], Tensor]) -> Signals:
    """`signals` with the declared views that no row has."""
    absent = [view for view in needs.views + needs.optional if view not in signals.num_tokens]
    if not absent:
        return signals
    zeros = make_zeros()
    no_tokens = Ragged(zeros[:0], torch.zeros(0, dtype=torch.long, device=zeros.device))
    no_ids = ((),) * zeros.numel()
    return replace(
        signals,
        logps={**signals.logps, **dict.fromkeys(absent, zeros)},
        num_tokens={**signals.num_tokens, **dict.fromkeys(absent, torch.zeros_like(zeros, dtype=torch.long))},
        token_logps={**signals.token_logps, **(dict.fromkeys(absent, no_tokens) if needs.tokens else {})},
        host_num_tokens={**signals.host_num_tokens, **dict.fromkeys(absent, (0,) * zeros.numel())},
        host_token_ids={**signals.host_token_ids, **(dict.fromkeys(absent, no_ids) if needs.tokens else {})},
    )
