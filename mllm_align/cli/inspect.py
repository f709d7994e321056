"""`inspect`: what a model with a mixer takes of each vision encoder, and what it loses without one."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from mllm_align.cli.commands import add_command
from mllm_align.cli.making import add_source, load_named


def add(commands: Any) -> None:
    """Adds `inspect`."""
    text = "show what a model with several vision encoders takes of each, and what it loses without one"
    inspect = add_command(commands, "inspect", _inspect, text)
    inspect.add_argument("model", help="exported model with a mixer, or the base of --adapter: Hub id or folder")
    inspect.add_argument("--adapter", metavar="RUN", help="folder of a run, with the mixer beside the adapter")
    inspect.add_argument(
        "--data", required=True, metavar="ROWS", help="a file, a folder, a dataset on the Hub, or world:pairs"
    )
    add_source(inspect)
    inspect.add_argument(
        "--num-rows", type=int, default=200, metavar="N", help="the first rows (default: %(default)s)"
    )
    inspect.add_argument("--encoders", nargs="+", metavar="FOLDER", help="where the further encoders are, if moved")
    inspect.add_argument("--load-in-4bit", action="store_true", help="NF4 with double quantisation")
    inspect.add_argument("--batch-size", type=int, default=8, help="rows at a time (default: %(default)s)")
    inspect.add_argument("--json", metavar="OUT", help="write everything there too")
    inspect.add_argument("--overwrite", action="store_true", help="replace that file")


def _inspect(arguments: argparse.Namespace) -> None:
    if arguments.json is not None and Path(arguments.json).exists() and not arguments.overwrite:
        raise FileExistsError(f"{arguments.json} exists: name another file, or --overwrite")
    for name in ("num_rows", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}")
    from tqdm.auto import tqdm

    from mllm_align.cli.ablation import Ablation, batches
    from mllm_align.families import inner, unwrap
    from mllm_align.models import load_model
    from mllm_align.vision.mixed_vision import mixed_of
    from mllm_align.vision.mixer_report import MixerMeter

    rows = load_named(arguments, arguments.data, arguments.num_rows)
    model, processor = load_model(
        arguments.model, arguments.adapter, load_in_4bit=arguments.load_in_4bit, encoders=arguments.encoders
    )
    if mixed_of(inner(unwrap(model))) is None:
        where = arguments.adapter or arguments.model
        raise ValueError(f"there is no mixer in {where!r}: name a run with one as --adapter, or a model with one")
    meter, ablation = MixerMeter(model), Ablation(model)
    number = math.ceil(len(rows) / arguments.batch_size)
    for batch in tqdm(batches(model, processor, rows, arguments.batch_size), "looking", number):
        meter.images(batch.images)
        for prefix in batch.prefixes:
            meter.text(prefix.input_ids)
        ablation.add(batch)
    report, changes = meter.report(), ablation.changes()
    if arguments.json is not None:
        found = report._asdict() | {
            "model": arguments.model,
            "adapter": arguments.adapter,
            "data": arguments.data,
            "num_rows": len(rows),
            "switched_off": {name: each._asdict() for name, each in changes.items()},
        }
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(json.dumps(_plain(found), indent=1) + "\n", encoding="utf-8")
    _print(report, changes)


def _plain(value: Any) -> Any:
    """The same with None for what is no number, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(report: Any, changes: Any) -> None:
    from rich.table import Table

    from mllm_align_eval.report.terminal import console

    def say(text: str) -> None:
        console().print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{report.kind}, {report.num_views} views")
    parts = list(dict.fromkeys(name.partition("/")[0] for name in report.watched if "/" in name))
    table = Table("encoder", *parts, "loss", "change", "rows worse", title="What is taken of each, and without it")
    rows = [(f"{number} {name}", number, f"encoder {number}") for number, name in enumerate(report.encoders)]
    for title, number, off in [*rows, ("all of them", None, "nothing"), ("without the mixer", None, "mixer")]:
        if number is not None or off in changes:
            taken = [report.watched.get(f"{part}/{number}") for part in parts]
            table.add_row(title, *("" if each is None else f"{each:.3f}" for each in taken), *_loss(changes, off))
    console().print(table)
    for name, value in report.watched.items():
        if "/" not in name:
            say(f"{name}: {value:.3f}")
    lengths = ", ".join(f"{name} {length:.2f}" for name, length in report.lengths.items())
    say(f"mean length of what the language model reads: {lengths}")
    alike = Table("", *report.names, title="Linear CKA of what lies in each cell")
    for name, values in zip(report.names, report.cka, strict=True):
        alike.add_row(name, *(f"{each:.2f}" for each in values))
    console().print(alike)
    if report.tokens_cka is not None:
        say(f"linear CKA of tokens with and without the mixer: {report.tokens_cka:.2f}")


def _loss(changes: Any, off: str) -> tuple[str, str, str]:
    """Cells of the table: the loss without something, its change with twice the standard error, rows that it costs."""
    if off not in changes:
        return "", "", ""
    found = changes[off]
    if off == "nothing":
        return f"{found.loss:.4f}", "", ""
    return f"{found.loss:.4f}", f"{found.change:+.4f} ± {2 * found.error:.4f}", f"{found.rows_worse:.0%}"
