"""Where the annotations of a benchmark are: `--data` names a folder of benchmarks, a benchmark's own, or one file."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.files import PictureFolder
from mllm_align_eval.items import Item

DATA_VARIABLE = "MLLM_ALIGN_DATA"


def read_benchmark(given: str | os.PathLike[str] | None, benchmark: Benchmark, pictures: PictureFolder) -> list[Item]:
    """The questions of a benchmark, from what `data_folder` takes or from one file of it.

    Raises:
        FileNotFoundError: If its files are not there; with their origin.
        ValueError: If a file is not the benchmark's, or two places hold the same one.
    """
    root = _root(given, benchmark)
    if not root.is_file():
        return benchmark.read(data_folder(root, benchmark), pictures)
    if not any(fnmatch(root.name, pattern) for pattern in benchmark.files):
        raise ValueError(
            f"{root} is no file of {benchmark.name} by its name: {_expected(benchmark)}. Rename it, or name another "
            f"--data; they come from {benchmark.origin}"
        )
    folder = _alone(root)
    try:
        return benchmark.read(folder, pictures)
    except FileNotFoundError as error:
        if str(folder) not in str(error):
            raise  # of pictures
        missing = str(error).replace(str(folder), str(root.parent))
        raise FileNotFoundError(
            f"{root} is one file and {benchmark.name} is read from several: name their folder ({missing})"
        ) from error
    except ValueError as error:
        raise ValueError(str(error).replace(str(folder), str(root.parent))) from error


def data_folder(given: str | os.PathLike[str] | None, benchmark: Benchmark) -> Path:
    """The folder with a benchmark's annotation files: the one of its name in what is given, or that itself.

    Args:
        given: A folder; `$MLLM_ALIGN_DATA` by default.
        benchmark: Whose files are looked for.

    Raises:
        FileNotFoundError: If there is no such folder, or none was named.
        ValueError: If both places hold the same file.
    """
    root = _root(given, benchmark)
    name = benchmark.folder or benchmark.name
    own = root / name
    here, there = ({path.name for path in _files(folder, benchmark)} for folder in (root, own))
    if twice := sorted(here & there):
        raise ValueError(
            f"--data {root} is ambiguous: {root / twice[0]} and {own / twice[0]} are both there. Name {own}, or "
            "remove the one that is not meant"
        )
    if there or (own.is_dir() and not here):
        return own
    if here:
        return root
    raise FileNotFoundError(
        f"no annotations of {benchmark.name} in {root}: there is no folder {own}, and {_expected(benchmark)} are not "
        f"in {root} itself. Put the annotations of {benchmark.name} there, from {benchmark.origin}"
    )


def folder_beside(given: str | os.PathLike[str] | None, benchmark: Benchmark) -> Path:
    """The folder in which the annotation files of a benchmark lie; the arguments and errors are `data_folder`'s."""
    root = _root(given, benchmark)
    return root.parent if root.is_file() else data_folder(root, benchmark)


def _root(given: str | os.PathLike[str] | None, benchmark: Benchmark) -> Path:
    name = benchmark.folder or benchmark.name
    root = given if given is not None else os.environ.get(DATA_VARIABLE)
    if not root:
        raise FileNotFoundError(
            f"no annotations of {benchmark.name}: get them from {benchmark.origin}, put them into a folder {name}/ "
            f"and name it, or the folder that holds it, with --data or {DATA_VARIABLE}"
        )
    if not Path(root).exists():
        where = "--data" if given is not None else f"${DATA_VARIABLE}"
        raise FileNotFoundError(
            f"there is no {root}, which {where} names: put the annotations of {benchmark.name} there, from "
            f"{benchmark.origin}"
        )
    return Path(root)


def _files(folder: Path, benchmark: Benchmark) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for pattern in benchmark.files for path in folder.glob(pattern) if path.is_file()]


def _expected(benchmark: Benchmark) -> str:
    return f"its files ({', '.join(benchmark.files)})"


def _alone(file: Path) -> Path:
    """A folder with a link to that file and nothing else; it stays, because pictures in it are read later."""
    folder = Path(tempfile.mkdtemp(prefix="mllm_align_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / file.name).symlink_to(file.resolve())
    return folder
