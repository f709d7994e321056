from __future__ import annotations

from typing import Any

import datasets
import pytest

from mllm_align.data.collator import AlignCollator
from mllm_align.data.corrupt import corrupted
from mllm_align.data.schema import DataError
from mllm_align.objectives.dpo import DPO
from mllm_align.objectives.next_token import NextToken
from mllm_align.objectives.weighted import Weighted
from mllm_align.trainers.data import join_sources, label_sources, refuse_bad_data, rows_per_source
from mllm_align.trainers.setup import NeedsOfSources
from runs import pair_rows
from tiny import tiny

MIXED = Weighted((DPO(), 1.0, "pairs"), (NextToken(), 1.0, "web"))
TEXT = pair_rows(3, images=False)


def stream(rows: list[dict[str, Any]]) -> datasets.IterableDataset:
    return datasets.Dataset.from_list(rows).to_iterable_dataset()


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [
        ({"pairs": TEXT, "web": TEXT[:1]}, {"pairs": 3, "web": 1}),
        ({"pairs": stream(TEXT), "web": TEXT[:1]}, {"pairs": None, "web": 1}),
        (datasets.Dataset.from_list(TEXT), {"default": 3}),
        (datasets.Dataset.from_list([{**TEXT[0], "source": "web"}]), {"web": 1}),
        ([TEXT[0], {**TEXT[1], "source": "web"}], {"default": 1, "web": 1}),
        (stream(TEXT), {"default": None}),
        (corrupted(datasets.Dataset.from_list(TEXT), "crop"), {"default": 3}),
        (corrupted([TEXT[0], {**TEXT[1], "source": "web"}], "crop"), {"default": 1, "web": 1}),
        (corrupted(stream(TEXT), "crop"), {"default": None}),
        ({"pairs": corrupted(stream(TEXT), "crop"), "web": corrupted(TEXT, "crop")}, {"pairs": None, "web": 3}),
        (None, {}),
    ],
)
def test_rows_per_source(dataset: Any, rows: dict[str, int | None]) -> None:
    assert rows_per_source(join_sources(dataset)) == rows


def test_rows_tell_their_source() -> None:
    mixed = join_sources({"pairs": TEXT, "web": TEXT[:1]})
    assert [row["source"] for row in mixed] == ["pairs"] * 3 + ["web"]
    apart = label_sources({"pairs": TEXT, "web": TEXT[:1]})
    assert [row["source"] for row in apart["web"]] == ["web"]


def refuse(objective: Any, train: Any, evaluation: Any = None, check_rows: bool = True) -> None:
    _, processor = tiny("llava")
    collator = AlignCollator(processor, NeedsOfSources(objective), ("pixel_values",))
    data = join_sources(train), label_sources(evaluation)
    refuse_bad_data(objective, collator, *data, check_rows=check_rows, progress=False)


def test_good_data_passes() -> None:
    refuse(MIXED, {"pairs": TEXT, "web": TEXT}, {"web": TEXT})
    refuse(MIXED, {"pairs": stream(TEXT), "web": stream(TEXT)})
    refuse(DPO(), None)


def test_bad_rows_name_their_dataset() -> None:
    broken = [*TEXT, {"prompt": "?", "chosen": "yes"}]
    with pytest.raises(DataError, match=r"train_dataset: row 3"):
        refuse(DPO(), broken)
    with pytest.raises(DataError, match=r"eval_dataset\['pairs'\]: row 3"):
        refuse(MIXED, {"pairs": TEXT, "web": TEXT}, {"pairs": broken})
    refuse(DPO(), broken, check_rows=False)


def test_unknown_sources_are_found_in_streams_too() -> None:
    rows = [{**row, "source": "pear"} for row in TEXT]
    with pytest.raises(ValueError, match="no part of the objective takes rows of source 'pear'"):
        refuse(MIXED, stream(rows))
