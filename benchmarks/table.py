"""The README's tables of costs, made of the benchmarks' results.

    python benchmarks/table.py                   # prints it
    python benchmarks/table.py --write           # puts it into the README

It is read from the JSON files beside this script; a benchmark without one is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- costs -->\n", "\n<!-- costs end -->"
# What is compared, by the name of its script; a suffix of the JSON's name tells results of one script apart.
COMPARISONS = {
    "svco_step": "S-VCO step, against the published plan",
    "dpo_vs_trl": "DPO step on images, against TRL {trl}",
}
MODELS = {"small": "24 M parameters, float32", "llava-1.5-7b": "LLaVA-1.5-7B, NF4, bfloat16"}
AXES = {
    "prompt": "prompt tokens",
    "response": "tokens of each response",
    "images": "images in the prompt",
    "views": "responses (views) of one prompt",
}
HEADER = (
    "| step | response tokens | times as fast | limit | of the limit | memory |",
    "|---|---|---|---|---|---|",
)


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    """The results of one script, the one without a suffix first."""
    paths = sorted(path for path in folder.glob(f"{name}*.json") if path.stem == name or path.stem[len(name)] == "_")
    return [json.loads(path.read_text()) for path in paths]


def table(folder: Path = FOLDER) -> str:
    """The tables in Markdown, and below them one line per machine that they were measured on."""
    lines, notes = list(HEADER), []
    for name, title in COMPARISONS.items():
        for result in results(folder, name):
            lines += rows(title.format(**result["versions"]), result)
            notes.append(note(result))
    for name, more in (("contrastive_memory", contrastive), ("scaling", growth)):
        for result in results(folder, name):
            lines += ["", *more(result)]
            notes.append(note(result))
    return "\n".join([*lines, "", *dict.fromkeys(notes)])


def contrastive(result: dict[str, Any]) -> list[str]:
    """Contrastive batches in one graph and with cached gradients."""
    model = MODELS[result["preset"]].split(",")[0]
    lines = [
        f"| InfoNCE, {model}: rows | one graph, MB | `cache_gradients`, MB | memory | times as long |",
        "|---|---|---|---|---|",
    ]
    for point in result["points"]:
        peaks = point["peak_mb"]
        cells = [f"{peaks['one_graph']:,.0f}", f"{peaks['cached']:,.0f}", f"{point['memory_ratio']:.2f}"]
        lines.append(f"| {point['rows']} | {' | '.join(cells)} | {point['slowdown']:.2f} |")
    each = result["mb_per_row"]
    return [*lines, f"| each further row | {each['one_graph']:.1f} | {each['cached']:.1f} | | |"]


def growth(result: dict[str, Any]) -> list[str]:
    """What shared prompts save as a step grows along one axis."""
    model = MODELS[result["preset"]].split(",")[0]
    lines = [
        f"| shared prompts against row by row, {model} | size | times as fast | memory |",
        "|---|---|---|---|",
    ]
    for axis, points in result["axes"].items():
        sizes = ", ".join(str(point["size"][axis]) for point in points)
        faster = ", ".join(f"{point['speedup']:.2f}" for point in points)
        memory = ", ".join(f"{point['memory_ratio']:.2f}" for point in points)
        lines.append(f"| {AXES[axis]} | {sizes} | {faster} | {memory} |")
    return lines


def rows(title: str, result: dict[str, Any]) -> list[str]:
    """A row per response length, and one more where our reference was cached."""
    lines = []
    model = MODELS[result["preset"]].split(",")[0]
    for suffix, name in (("", title), ("_cached_reference", f"{title}; our reference cached")):
        for length, speedup in result.get(f"speedup{suffix}", {}).items():
            limit, part = result[f"limit{suffix}"][length], result[f"of_limit{suffix}"][length]
            memory = "" if suffix else f"{result['memory_ratio'][length]:.2f}"
            numbers = (length, f"{speedup:.2f}", f"{limit:.2f}", f"{part:.0%}", memory)
            lines.append(f"| {name}, {model} | {' | '.join(numbers)} |")
    return lines


def note(result: dict[str, Any]) -> str:
    """Model and machine of a result."""
    machine, model = result["machine"], MODELS[result["preset"]]
    on_cpu = f"{machine['threads']} threads, {machine['processor']}"
    return f"- {model}: {on_cpu if result['device'] == 'cpu' else result['device']}."


def written(text: str) -> str:
    """The part of a README between the marks.

    Raises:
        ValueError: If it has no marks.
    """
    before, mark, rest = text.partition(BEGIN)
    part, end, _ = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"no {BEGIN.strip()} ... {END.strip()} in {before[:30]!r}...")
    return part


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or writes it into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it between the marks of the README")
    if parser.parse_args(arguments).write:
        text = README.read_text()
        README.write_text(text.replace(BEGIN + written(text) + END, BEGIN + table() + END))
    else:
        print(table())


if __name__ == "__main__":
    main()
