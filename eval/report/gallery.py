"""The gallery: pictures with a question, what is true, what language alone would say and what each arm answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

MAX_SIDE = 320
PIXEL_ART_SIDE = 128
GAP = 8
OPEN = "open"


@dataclass(frozen=True)
class GalleryEntry:
    """One question whose answers are worth looking at.

    Attributes:
        image: The picture asked about; None for a question about none.
        question: The question's text.
        truth: The right answer; "" for an open question, of which no single answer is.
        prior: What language alone would say, or None where that is not known.
        answers: Per arm, the answer as it was read (a choice), or the raw text where it could not be read.
        kind: What is asked for: existence, colour, ...
        split: The test it is from.
    """

    image: Image.Image | None
    question: str
    truth: str
    prior: str | None
    answers: Mapping[str, str]
    kind: str
    split: str

    def right(self, arm: str) -> bool:
        """Whether an arm's answer is the true one; case and a closing full stop do not count."""
        return _bare(self.answers[arm]) == _bare(self.truth)

    def by_prior(self, arm: str) -> bool:
        """Whether an arm's answer is what language alone would say."""
        return self.prior is not None and _bare(self.answers[arm]) == _bare(self.prior)

    def outcome(self, before: str, after: str) -> str:
        """What training did to this answer: fixed, broken, right (both times), wrong (both times), open or unknown."""
        if not self.truth:
            return OPEN
        if before not in self.answers or after not in self.answers:
            return "unknown"
        was, now = self.right(before), self.right(after)
        if was == now:
            return "right" if now else "wrong"
        return "fixed" if now else "broken"


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image | None:
    """One picture of all that a question shows, from left to right; None of none."""
    if len(pictures) < 2:
        return pictures[0] if pictures else None
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    joined = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        joined.paste(picture.convert("RGB"), (left, 0))
        left += picture.width + GAP
    return joined


def data_uri(image: Image.Image) -> str:
    """The picture as a PNG in a data URI, no side above 320 px."""
    picture = image.convert("RGB")
    if max(picture.size) > MAX_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def is_pixel_art(image: Image.Image) -> bool:
    """Whether a picture is so small that it should be enlarged without smoothing."""
    return max(image.size) <= PIXEL_ART_SIDE


def _bare(answer: str) -> str:
    return answer.strip().rstrip(".").strip().casefold()
