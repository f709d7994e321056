"""Files named so that a folder which moved, as a whole, names them as before."""

from __future__ import annotations

import os
from collections.abc import Iterable


def common_folder(paths: Iterable[str | os.PathLike[str]], folder: str | None = None) -> str | None:
    """The lowest folder in which all files lie, and another folder; None for no files, or files on several drives."""
    for path in paths:
        own = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
        try:
            folder = own if folder is None else os.path.commonpath([folder, own])
        except ValueError:
            return None
    return folder


def name_below(path: str | os.PathLike[str], folder: str | None) -> str:
    """The path below a folder that it lies in, with slashes; the whole path where there is no folder."""
    whole = os.path.abspath(os.path.expanduser(path))
    return os.path.relpath(whole, folder).replace(os.sep, "/") if folder is not None else whole
