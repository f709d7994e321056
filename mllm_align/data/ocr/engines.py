"""OCR engines: an installed Tesseract, or a function of the user's own."""

from __future__ import annotations

import csv
import hashlib
import importlib
import inspect
import io
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any, Protocol

from PIL import Image

from mllm_align.data.errors import DataError
from mllm_align.data.ocr.words import Word, read_words

WORD_LEVEL = 5


class Engine(Protocol):
    """What finds words on pages; `identity` tells it apart from every other that would find others."""

    identity: str

    def __call__(self, page: Image.Image, where: str) -> list[Word]:
        """The words of an upright RGB page.

        Raises:
            DataError: If it fails on this page.
        """
        ...


def engine_from(name: str, language: str = "eng", min_confidence: float = 30.0) -> Engine:
    """An engine by name: "tesseract", or the import path "module:function" of one's own.

    Such a function is given the upright RGB page as a PIL image, and returns a list of `{"text", "box"}`, boxes in
    pixels or as shares of the page; language and confidence are its own affair.

    Raises:
        DataError: If it is not installed, lacks the language, or cannot be imported.
    """
    if name == "tesseract":
        return Tesseract(language, min_confidence)
    module_name, separator, function_name = name.partition(":")
    if not separator:
        raise DataError(f"unknown OCR engine {name!r}: say tesseract, or module:function for one of your own")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ModuleNotFoundError as error:
        raise DataError(f"OCR engine {name!r}: no module {error.name!r}; is it installed or on PYTHONPATH?") from error
    if not callable(function):
        raise DataError(f"OCR engine {name!r}: {module_name} has no function {function_name!r}")
    return OwnEngine(name, function)


class OwnEngine:
    """A function of the user's as an engine; another source code of it is another engine."""

    def __init__(self, name: str, function: Callable[[Image.Image], Any]) -> None:
        self.function = function
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):
            source = ""
        self.identity = f"{name} {hashlib.blake2b(source.encode(), digest_size=8).hexdigest()}"

    def __call__(self, page: Image.Image, where: str) -> list[Word]:
        """The words of an upright RGB page."""
        return read_words(self.function(page), page.size, where)


class Tesseract:
    """The program `tesseract`, as it is installed.

    Args:
        language: Of the page, by Tesseract's three letters; several joined by "+".
        min_confidence: Words below it, of 100, are left out.

    Raises:
        DataError: If the program, or the data of the language, is not installed.
    """

    def __init__(self, language: str = "eng", min_confidence: float = 30.0) -> None:
        self.program = shutil.which("tesseract")
        if self.program is None:
            raise DataError(
                "tesseract is not installed: apt-get install tesseract-ocr (Debian, Ubuntu), brew install tesseract "
                "(macOS), or name another engine, as --engine my_module:my_function"
            )
        self.language, self.min_confidence = language, min_confidence
        version, there = (self._run([option]) for option in ("--version", "--list-langs"))
        absent = [name for name in language.split("+") if name not in there.split()]
        if absent:
            raise DataError(
                f"tesseract has no data for language {absent[0]!r}: install tesseract-ocr-{absent[0]}, or say one of "
                f"{', '.join(there.split(':', 1)[-1].split())}"
            )
        release = version.split()[1] if len(version.split()) > 1 else "?"
        self.identity = f"tesseract {release} {language} {min_confidence:g}"

    def __call__(self, page: Image.Image, where: str) -> list[Word]:
        """The words of an upright RGB page."""
        sink = io.BytesIO()
        page.save(sink, "PNG")
        try:
            table = self._run(["stdin", "stdout", "-l", self.language, "tsv"], sink.getvalue())
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        return read_words(_words_of(table, self.min_confidence), page.size, where)

    def _run(self, arguments: list[str], given: bytes = b"") -> str:
        assert self.program is not None
        # Pages are read side by side: each by one thread.
        environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
        done = subprocess.run(
            [self.program, *arguments], input=given, capture_output=True, env=environment, check=False
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise DataError(f"tesseract failed: {said[-1] if said else f'status {done.returncode}'}")
        return done.stdout.decode(errors="replace")


def _words_of(table: str, min_confidence: float) -> list[dict[str, Any]]:
    """The words of Tesseract's table."""
    lines = csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE)
    words = []
    for line in lines:
        if line["level"] == str(WORD_LEVEL) and float(line["conf"]) >= min_confidence:
            left, top, width, height = (int(line[name]) for name in ("left", "top", "width", "height"))
            words.append({"text": line["text"] or "", "box": [left, top, left + width, top + height]})
    return words
