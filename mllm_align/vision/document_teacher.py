"""LayoutLMv3 as a teacher: the words of each object of a page, where they stand, and the page's picture."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from mllm_align.contract import Teacher
from mllm_align.families.grids import grid
from mllm_align.vision.teacher_parts import VERSION, Described, Pixels, quiet, states_of
from mllm_align.vision.vision_teacher import coverage, covered_mean

logger = logging.getLogger(__name__)

# The model counts positions on a page from 0 to this.
PAGE = 1000
WINDOWS_AT_ONCE = 16


class Piece(NamedTuple):
    """The tokens of one object, and the box that they share."""

    number: int
    token_ids: list[int]
    box: tuple[int, int, int, int]


class DocumentTeacher:
    """LayoutLMv3 (Huang et al., 2022), https://arxiv.org/abs/2204.08387, which reads words, their boxes and the page.

    An object is the mean of the output states of its words' tokens; one without words is the mean of the picture's
    patches by how much of each it covers. All words of an object stand in its box, as in the model's own training on
    segments. A page of more tokens than the model reads at a time (512) is read in several windows, objects in their
    order and never divided, each beside the whole picture; of an object that is longer than a window the end is not
    read, which a warning counts. An image is the mean of its patches, beside the words of its objects.

    Args:
        teacher: Which one.
        model: LayoutLMv3 with its vision side.
        pixels: How images are shown.

    Raises:
        ValueError: If there is no tokenizer, or the model sees images of another size alone.
    """

    def __init__(self, teacher: Teacher, model: Any, pixels: Pixels) -> None:
        where = f"teacher {str(teacher)!r}"
        config = model.config
        if not config.visual_embed or pixels.size != config.input_size:
            raise ValueError(
                f"{where} sees pages of {config.input_size} pixels alone, not of {pixels.size}: leave size out"
            )
        try:
            with quiet():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(teacher.model, revision=teacher.revision)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"{where} has no tokenizer: {str(error).splitlines()[0]}") from None
        self.teacher, self.model, self.pixels = teacher, model, pixels
        self.width = int(config.hidden_size)
        self.side = config.input_size // config.patch_size
        # Positions of words begin behind the padding's; two tokens are the first and the last.
        self.room = config.max_position_embeddings - config.pad_token_id - 1 - 2
        self.num_cut = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What, beside the weights, decides its numbers."""
        words = hashlib.blake2b(repr(sorted(self.tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()
        return {
            "kind": "document",
            "layer": self.teacher.layer,
            "version": VERSION,
            "vocabulary": words,
            "room": self.room,
            **self.pixels.facts,
        }

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image.Image], objects: Sequence[Sequence[Described]], pooling: str
    ) -> list[Tensor]:
        """Per image, on the host in float32: (objects on it, width) for "regions", (1, width) for "mean"."""
        pixels = self.pixels(images)
        work = [(page, window) for page, own in enumerate(objects) for window in self.windows(own)]
        words = [torch.zeros(len(own), self.width) for own in objects]
        patches = [torch.zeros(self.side**2, self.width) for _ in objects]
        share = [sum(page == number for page, _ in work) for number in range(len(objects))]
        for start in range(0, len(work), WINDOWS_AT_ONCE):
            some = work[start : start + WINDOWS_AT_ONCE]
            texts, pictures = self._read([window for _, window in some], pixels[[page for page, _ in some]])
            for (page, window), states, picture in zip(some, texts, pictures, strict=True):
                patches[page] += picture / share[page]
                place = 1
                for piece in window:
                    words[page][piece.number] = states[place : place + len(piece.token_ids)].mean(dim=0)
                    place += len(piece.token_ids)
        if pooling == "mean":
            return [own.mean(dim=0, keepdim=True) for own in patches]
        return [self._with_wordless(*each) for each in zip(words, patches, objects, strict=True)]

    def windows(self, objects: Sequence[Described]) -> list[list[Piece]]:
        """The objects that have words, in as few windows as their order allows; one without any for a page of none."""
        found: list[list[Piece]] = [[]]
        used = 0
        for number, each in enumerate(objects):
            words = each.text.split()
            if not words:
                continue
            box = page_box(each.box)
            ids = self.tokenizer(words, boxes=[list(box)] * len(words), add_special_tokens=False)["input_ids"]
            if len(ids) > self.room:
                self._tell_cut(len(ids))
                ids = ids[: self.room]
            if used + len(ids) > self.room:
                found.append([])
                used = 0
            found[-1].append(Piece(number, ids, box))
            used += len(ids)
        return found

    def _tell_cut(self, length: int) -> None:
        self.num_cut += 1
        if self.num_cut.bit_count() == 1:
            logger.warning(
                "an object has %d tokens, more than the %d that a teacher reads at a time; %d cut: divide such blocks",
                length,
                self.room,
                self.num_cut,
            )

    def _read(self, windows: Sequence[Sequence[Piece]], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The states (n, length, d) of the tokens of each window, and those (n, patches, d) of its picture."""
        first, last, pad = (getattr(self.tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad"))
        length = 2 + max(sum(len(piece.token_ids) for piece in window) for window in windows)
        ids = torch.full((len(windows), length), pad)
        boxes = torch.zeros(len(windows), length, 4, dtype=torch.long)
        for number, window in enumerate(windows):
            own = [first, *(token for piece in window for token in piece.token_ids), last]
            ids[number, : len(own)] = torch.tensor(own)
            there = [piece.box for piece in window for _ in piece.token_ids]
            boxes[number, 1 : 1 + len(there)] = torch.tensor(there, dtype=torch.long).reshape(-1, 4)
        device = next(self.model.parameters()).device
        output = self.model(
            input_ids=ids.to(device),
            bbox=boxes.to(device),
            attention_mask=(torch.arange(length) < 2 + _sizes(windows)[:, None]).long().to(device),
            pixel_values=pixels.to(device),
            output_hidden_states=self.teacher.layer is not None,
            return_dict=True,
        )
        states = states_of(output, self.teacher).float().cpu()
        return states[:, :length], states[:, states.shape[1] - self.side**2 :]

    def _with_wordless(self, words: Tensor, patches: Tensor, objects: Sequence[Described]) -> Tensor:
        bare = [number for number, each in enumerate(objects) if not each.text.split()]
        if bare:
            weights = coverage([objects[number] for number in bare], grid(self.side, self.side))
            words[bare] = covered_mean(patches, weights)
        return words


def page_box(box: Sequence[float]) -> tuple[int, int, int, int]:
    """A box in shares as LayoutLMv3 counts, 0 to 1000; what lies beyond the page is on its edge."""
    left, top, right, bottom = (round(min(max(side, 0.0), 1.0) * PAGE) for side in box)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _sizes(windows: Sequence[Sequence[Piece]]) -> Tensor:
    return torch.tensor([sum(len(piece.token_ids) for piece in window) for window in windows])
