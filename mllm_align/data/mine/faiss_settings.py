"""FAISS, where it is installed, and its settings that are global, set for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NEVER = 2**31 - 1  # a size that no product has


def load_faiss() -> Any:
    """The module.

    Raises:
        ImportError: If it is not installed; says how to.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError("this needs FAISS: pip install mllm-align[mining]") from None
    return faiss


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """That many threads of FAISS; None for as many as before."""
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def without_blas() -> Iterator[None]:
    """Products one by one: those of a matrix product differ in the last bit with its size."""
    settings = load_faiss().cvar
    before = settings.distance_compute_blas_threshold
    settings.distance_compute_blas_threshold = NEVER
    try:
        yield
    finally:
        settings.distance_compute_blas_threshold = before
