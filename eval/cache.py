"""Answers on disk, one JSON line each, under a key of everything that could change them."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from mllm_align_eval.items import Answer

FORMAT = 1


def image_digest(image: Image.Image) -> str:
    """SHA-256 of mode, size and pixels."""
    head = f"{image.mode}|{image.size}|".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def content_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `parts` and of the cache's format."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerCache:
    """Answers by content key in one append-only JSONL file.

    A killed run leaves at most a broken last line, which is dropped when the file is opened again; everything before
    it is used. Lines of another shape further up mean that the file is something else, and are an error.

    Processes that share the work write a file each, and read those of all, so that a run goes on with another number
    of them.

    Args:
        path: The file; made with its folders at the first answer. Process n > 0 writes `<stem>.rank<n><suffix>`.
        rank: Which process this is.

    Raises:
        ValueError: If a file is not an answer cache.
    """

    def __init__(self, path: str | os.PathLike[str], rank: int = 0) -> None:
        first = Path(path)
        self.path = first if rank == 0 else first.with_name(f"{first.stem}.rank{rank}{first.suffix}")
        self._answers: dict[str, Answer] = {}
        for file in (first, *sorted(first.parent.glob(f"{glob.escape(first.stem)}.rank*{first.suffix}"))):
            if file.exists():
                self._read(file)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer stored under a key, or None."""
        return self._answers.get(key)

    def add(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Appends answers and waits until they are on the disk."""
        entries = list(answers)
        lines = [json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n" for key, answer in entries]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self._answers.update(entries)

    def _read(self, path: Path) -> None:
        whole = path.read_bytes()
        kept = 0
        for number, line in enumerate(whole.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            try:
                fields = json.loads(line)
                key = fields.pop("key")
                self._answers[key] = Answer(**{**fields, "scores": tuple(fields["scores"])})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {number}, is not a cached answer ({error}): name another file or delete it"
                ) from error
            kept += len(line)
        if kept < len(whole) and path == self.path:
            with path.open("r+b") as file:
                file.truncate(kept)
