"""Nearest neighbours among many vectors with FAISS (`pip install mllm-align[mining]`), the same whoever asks.

| kind | finds | one query looks at | memory |
|---|---|---|---|
| `exact` | the neighbours that a loop over all pairs finds | N vectors | 4 N d bytes, memory-mapped |
| `ivf` | most of them | `num_lists` centroids and `probes` N / `num_lists` vectors | the same |
| `hnsw` | most of them | some thousand vectors, whatever N | the same and 8 `links` N bytes |

What a search returns does not depend on the number of threads, nor on how vectors were cut into blocks when the index
was built, nor on which queries are asked together.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllm_align.data.mine.drawing import Sample, equal_chunks
from mllm_align.data.mine.faiss_settings import load_faiss, threads, without_blas
from mllm_align.data.mine.scan import MARGIN, nearest, ranked

KINDS = ("auto", "exact", "ivf", "hnsw")
EXACT_UP_TO = 100_000  # vectors that "auto" still searches exactly
MAX_TRAINING = 400_000  # vectors that centroids are placed by
TRAINING_PER_LIST = 40
ADDED_AT_ONCE = 32768
CONSTRUCTION = 64  # vectors that an insertion into a graph keeps in mind
SEARCH_BYTES = 2**26  # of candidates in memory


class VectorIndex:
    """Vectors 0 to N - 1, to be searched by cosine similarity: made by `build_index`, or loaded.

    Args:
        index: A FAISS index with inner product: flat, IVF-flat or HNSW-flat.
        device: Where "exact" takes its products; the others use the CPU.

    Attributes:
        kind: "exact", "ivf" or "hnsw".
    """

    def __init__(self, index: Any, device: torch.device | str = "cpu") -> None:
        faiss = load_faiss()
        kinds = {"exact": faiss.IndexFlat, "ivf": faiss.IndexIVFFlat, "hnsw": faiss.IndexHNSWFlat}
        found = [kind for kind, made in kinds.items() if isinstance(index, made)]
        if not found or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{type(index).__name__} is none of the indices that build_index makes")
        self.kind = found[0]
        self.device = device
        self._index = index

    def __len__(self) -> int:
        """N."""
        return self._index.ntotal

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._index.d

    @property
    def identity(self) -> str:
        """Tells it apart from every other that would find others among the same vectors."""
        if self.kind == "ivf":
            return f"ivf of {self._index.nlist} lists, {self._index.nprobe} probed"
        if self.kind == "hnsw":
            hnsw = self._index.hnsw
            return (
                f"hnsw of {hnsw.nb_neighbors(1)} links, built {hnsw.efConstruction} and searched {hnsw.efSearch} wide"
            )
        return "exact"

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar vectors of each query, most similar first, equal ones by number.

        Args:
            queries: (Q, d) unit vectors.
            k: How many.

        Returns:
            Numbers (Q, k) int64, -1 where no more were found, and similarities (Q, k) float64, -inf there. A
            similarity is that of the two vectors, taken in float64, whatever the kind.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries of shape {queries.shape} in an index of vectors of length {self.dim}")
        numbers = np.full((len(queries), k), -1, np.int64)
        similarities = np.full((len(queries), k), -np.inf)
        found = min(k, len(self))
        size = max(1, min(1024, SEARCH_BYTES // (4 * self.dim * (found + MARGIN))))
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            numbers[part, :found], similarities[part, :found] = self._search(queries[part], found)
        return numbers, similarities

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self.kind == "exact":
            return nearest(self.vectors(), queries, k, self.device)
        with without_blas():
            _, numbers, vectors = self._index.search_and_reconstruct(queries, min(k + MARGIN, len(self)))
        numbers, similarities = ranked(numbers, vectors, queries)
        return numbers[:, :k], similarities[:, :k]

    def vectors(self) -> np.ndarray:
        """(N, d) float32, a view of what an "exact" index holds."""
        flat = load_faiss().rev_swig_ptr(self._index.get_xb(), len(self) * self.dim)
        return flat.reshape(len(self), self.dim)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file, whole or not at all; FAISS itself reads it too."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            load_faiss().write_index(self._index, str(draft))
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> VectorIndex:
        """What `save` wrote, memory-mapped, so that the processes of one machine share it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no index, or one of another kind.
        """
        faiss = load_faiss()
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no index {path}")
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ValueError(f"{path} is not an index that FAISS can read ({error}); build it again") from None
        return cls(index, device)


def build_index(
    blocks: Iterable[np.ndarray],
    kind: str = "auto",
    *,
    num_lists: int | None = None,
    probes: int | None = None,
    links: int = 32,
    breadth: int = 128,
    seed: int = 0,
) -> VectorIndex:
    """An index over (n, d) arrays of unit vectors: an `Embeddings`, or a list of arrays.

    Args:
        blocks: Read once ("exact", "hnsw") or twice ("ivf", "auto"), one at a time.
        kind: "exact", "ivf" (inverted lists), "hnsw" (a graph, built by one thread), or "auto": exact up to 100,000
            vectors, else hnsw (`benchmarks/retrieval_scale.py` says why).
        num_lists: Lists of "ivf"; 4 sqrt(N) by default.
        probes: Lists that a query of "ivf" visits; 64 by default.
        links: Of a vector of "hnsw".
        breadth: Vectors that a search of "hnsw" keeps in mind.
        seed: Of the sample that "ivf" places its centroids by.

    Raises:
        ImportError: If FAISS is not installed.
        ValueError: If there is no vector, or one whose length is not 1.
    """
    if kind not in KINDS:
        raise ValueError(f"kind of index must be one of {', '.join(KINDS)}, not {kind!r}")
    faiss = load_faiss()
    if kind in ("auto", "ivf") and iter(blocks) is blocks:
        raise ValueError(f"kind {kind!r} reads the blocks twice: give a list or Embeddings, not a generator")
    if kind == "auto":
        kind = "exact" if sum(map(len, blocks)) <= EXACT_UP_TO else "hnsw"
    sample = Sample(blocks, MAX_TRAINING, seed) if kind == "ivf" else None
    chunks = equal_chunks(blocks, ADDED_AT_ONCE)
    first = next(chunks, None)
    if first is None:
        raise ValueError("there are no vectors to index")
    dim = first.shape[1]
    if sample is not None:
        index = _trained(sample, dim, num_lists, probes)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = CONSTRUCTION, breadth
    else:
        index = faiss.IndexFlatIP(dim)
    # Threads that insert into a graph race, and the graph would be another one each time.
    with threads(1 if kind == "hnsw" else None):
        index.add(first)
        for chunk in chunks:
            index.add(chunk)
    return VectorIndex(index)


def _trained(sample: Sample, dim: int, num_lists: int | None, probes: int | None) -> Any:
    faiss = load_faiss()
    lists = num_lists or max(1, round(4 * math.sqrt(sample.seen)))
    vectors = sample.first(TRAINING_PER_LIST * lists)
    lists = min(lists, len(vectors))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True
    index.cp.niter = 10
    index.cp.seed = 1
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 2**30  # the sample is drawn here
    index.nprobe = min(probes or 64, lists)
    index.train(vectors)
    return index
