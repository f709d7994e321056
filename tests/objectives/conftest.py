"""Made-up measurements, so that objectives are tested without any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from mllm_align.contract import Needs, Ragged, Regions, Signals

# Of each row: the image and the id of each region. One thing is in one image alone, one has no id.
THINGS = ((0, "a"), (0, "b"), (0, ""), (1, "b"), (1, "a"), (1, "c"))
# Per pooling how many entries a row has, where it is not one.
ENTRIES = {"regions": len(THINGS), "negatives": 2 * len(THINGS), "tokens": 3}
ALL_SOURCES = ("pairs", "instructions")


def regions_of(rows: int, one_image: bool = False) -> Regions:
    """The same regions on the two images of every row, or on one, side by side."""
    boxes = tuple((n / 6, 0.0, (n + 1) / 6, 0.5) for n in range(len(THINGS)))
    return Regions(
        row=tuple(row for row in range(rows) for _ in THINGS),
        image=tuple(0 if one_image else image for image, _ in THINGS) * rows,
        boxes=boxes * rows,
        object_ids=tuple(name for _, name in THINGS) * rows,
        texts=tuple(f"thing {n} of row {row}" for row in range(rows) for n in range(len(THINGS))),
        kinds=("",) * rows * len(THINGS),
        negatives=tuple((f"no {n} of row {row}", f"not {n}") for row in range(rows) for n in range(len(THINGS))),
    )


@pytest.fixture
def make_signals() -> Callable[..., Signals]:
    """`make_signals(needs, counts_seed, value_seed, ...)`: random float64 signals that hold what `needs` declares.

    Equal `counts_seed`s give the same token counts and ids, as policy and reference on one batch have; a response is
    the same under every image. With few different ids, responses share runs and differ in others.
    """

    def make(
        needs: Needs,
        *,
        rows: int = 6,
        value_seed: int = 0,
        counts_seed: int = 0,
        dtype: torch.dtype = torch.float64,
        sources: Sequence[str] | None = None,
    ) -> Signals:
        views = needs.views + needs.optional
        # Nobody says of which of a row's images a token is.
        one_image = any(feature.pooling == "tokens" for feature in needs.features)
        counting = torch.Generator().manual_seed(counts_seed)
        told = {
            text: torch.randint(1, 9, (rows,), generator=counting) for text in dict.fromkeys(v.response for v in views)
        }
        ids = {text: [torch.randint(2, (n,), generator=counting).tolist() for n in own] for text, own in told.items()}
        counts = {view: told[view.response].clone() for view in views}
        for view in needs.optional:
            counts[view][::3] = 0
        drawing = torch.Generator().manual_seed(value_seed)
        per_token = {
            view: -torch.rand(int(count.sum()), generator=drawing, dtype=torch.float64) * 3
            for view, count in counts.items()
        }
        row = {view: torch.repeat_interleave(torch.arange(rows), count) for view, count in counts.items()}
        logps = {
            view: torch.zeros(rows, dtype=torch.float64).index_add(0, row[view], per_token[view]).to(dtype)
            for view in views
        }
        return Signals(
            logps={view: value.requires_grad_() for view, value in logps.items()},
            num_tokens=counts,
            token_logps={view: Ragged(per_token[view].to(dtype).requires_grad_(), row[view]) for view in views}
            if needs.tokens
            else {},
            features={
                feature.name: Ragged(torch.randn(len(row), 8, generator=drawing).to(dtype).requires_grad_(), row)
                for feature in needs.features
                for row in (torch.arange(rows).repeat_interleave(ENTRIES.get(feature.pooling, 1)),)
            },
            regions={f.column: regions_of(rows, one_image) for f in needs.features if f.pooling == "regions"},
            sources=tuple(sources or (ALL_SOURCES[index % 2] for index in range(rows))),
            host_token_ids={
                view: tuple(
                    tuple(own) if count else () for own, count in zip(ids[view.response], counts[view], strict=True)
                )
                for view in views
            }
            if needs.tokens
            else {},
        )

    return make
