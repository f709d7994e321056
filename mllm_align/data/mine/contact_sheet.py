"""Pairs to look at: one HTML file with their pictures in it, which needs nothing else and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.files import as_text, write_whole
from mllm_align.data.images import load_image

SIDE = 240  # pixels of the longer side of a picture
QUALITY = 80

_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1d1d1b; --soft: #63635e; --line: #deded8;
  --visual: #2b6cb0; --semantic: #b4451f; }
@media (prefers-color-scheme: dark) { :root { --ground: #161616; --card: #212121; --ink: #ececea; --soft: #a5a5a0;
  --line: #3a3a38; --visual: #7db4ee; --semantic: #f0946f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1500px; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; }
.facts { color: var(--soft); margin: 0 0 20px; max-width: 85ch; overflow-wrap: anywhere; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 16px; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; min-width: 0; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
figure { margin: 0; min-width: 0; }
figure img, .none { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--ground);
  border-radius: 4px; }
.none { padding: 12px; color: var(--soft); font-size: 13px; overflow: hidden; }
figcaption { font-size: 12px; color: var(--soft); overflow-wrap: anywhere; margin-top: 4px; }
figcaption b { color: var(--ink); font-weight: normal; display: block; }
.numbers { display: flex; justify-content: space-between; gap: 8px; font-variant-numeric: tabular-nums;
  margin: 0 0 8px; font-size: 13px; }
.visual { color: var(--visual); } .semantic { color: var(--semantic); } .rank { color: var(--soft); }
@media print { article { break-inside: avoid; } }
"""


def write_contact_sheet(
    rows: Sequence[Mapping[str, Any]], path: Path, report: Mapping[str, Any], *, overwrite: bool = False
) -> int:
    """Writes the sheet of some rows, in their order, and returns how many there are.

    Args:
        rows: Pair rows with both similarities.
        path: The .html file.
        report: Of the search: `encoders`, `bounds`, `pairs`.
        overwrite: Whether a file that is there with another content may be replaced.

    Raises:
        FileExistsError: If it may not.
    """
    bounds = report["bounds"]
    names = [escape(as_text(str(report["encoders"][side]["encoder"]))) for side in ("look_alike", "meaning")]
    facts = (
        f"Alike (cosine above {bounds['above']:g}) to <span class=visual>{names[0]}</span>, unlike (below "
        f"{bounds['below']:g}) to <span class=semantic>{names[1]}</span>; the largest gap first. "
        f"{len(rows):,} of {report['pairs']:,} pairs among {report['compared']:,} images."
    )
    cards = "\n".join(_card(number, row) for number, row in enumerate(rows, 1))
    page = (
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n<title>CLIP-blind pairs</title>\n"
        f"<style>{_STYLE}</style>\n<h1>CLIP-blind pairs</h1>\n<p class=facts>{facts}</p>\n"
        f"<main>\n{cards or '<p>No pair was found.</p>'}\n</main>\n</html>\n"
    ).encode()
    if path.exists() and not overwrite and path.read_bytes() != page:
        raise FileExistsError(f"{path} is there with another content and is kept: name another output, or --overwrite")
    write_whole(path, page)
    return len(rows)


def _card(number: int, row: Mapping[str, Any]) -> str:
    sides = (
        ("image", row["made_of"], row.get("chosen")),
        ("contrast_image", row["contrast_made_of"], row.get("rejected")),
    )
    figures = "".join(_figure(row[column], name, text) for column, name, text in sides)
    return (
        f"<article><p class=numbers><span class=rank>{number}</span>"
        f"<span class=visual title='cosine of the encoder to which they look alike'>alike "
        f"{row['similarity_visual']:.3f}</span><span class=semantic title='cosine of the encoder of meaning'>meaning "
        f"{row['similarity_semantic']:.3f}</span></p><div class=two>{figures}</div></article>"
    )


def _figure(image: Any, name: str, text: str | None) -> str:
    name = escape(as_text(name))
    said = f"<b>{escape(as_text(text))}</b>" if text else ""
    try:
        shown = f"<img loading=lazy alt='{name}' src='{_inline(load_image(image, 'picture'))}'>"
    except DataError as error:
        shown = f"<div class=none>{escape(as_text(str(error)))}</div>"
    return f"<figure>{shown}<figcaption>{said}{name}</figcaption></figure>"


def _inline(picture: Image.Image) -> str:
    picture.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
