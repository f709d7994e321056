"""What teachers make of a run's images: computed once before training and kept on disk, or as rows are collated."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm.auto import tqdm

from mllm_align.contract import Feature, Objective, Teacher, needs_for
from mllm_align.data.images import image_key, load_image
from mllm_align.data.objects import ImageObject
from mllm_align.data.schema import Row, parse_row
from mllm_align.models.fingerprint import Fingerprint, weights_digest
from mllm_align.signals.store import LogpStore
from mllm_align.trainers import caches
from mllm_align.trainers.config import AlignConfig
from mllm_align.vision.teachers import LoadedTeacher, load_teacher

logger = logging.getLogger(__name__)

# Work that a killed run loses at the most.
SHARD_SECONDS, SHARD_PAGES = 30.0, 4096
READERS = 4


class Page(NamedTuple):
    """One image and the objects on it, as a teacher is shown them."""

    key: bytes
    image: Any
    objects: tuple[ImageObject, ...]
    where: str


class Known(NamedTuple):
    """What is known of a teacher that need not be in memory."""

    width: int
    reads_objects: bool
    files: Any


class Teachers:
    """The teachers of an objective. Picklable: another process reads what is on disk.

    Args:
        args: Settings of the run.
        objective: Its features of teachers are looked at; one without any makes this do nothing.

    Raises:
        ValueError: If a teacher cannot be loaded, or settings do not go with it.
    """

    def __init__(self, args: AlignConfig, objective: Objective) -> None:
        self.args, self.objective = args, objective
        self.features = tuple(f for f in objective.needs.features if f.teacher is not None)
        self.known: dict[Teacher, Known] = {}
        self._live: dict[Teacher, LoadedTeacher] = {}
        self._stores: dict[Teacher, LogpStore] = {}
        self._seen: list[Any] = []
        if self.features and not args.precompute_teachers:
            _without_workers(args)
        for feature in self.features:
            self._load(feature.teacher)

    @property
    def widths(self) -> dict[str, int]:
        """Per feature how wide it is."""
        return {feature.name: self.known[feature.teacher].width for feature in self.features if feature.teacher}

    def __call__(self, feature: Feature, images: Sequence[Any], objects: Sequence[ImageObject], where: str) -> Tensor:
        """(objects, d) for pooling "regions", (1, d) for "mean"; float32, on the host.

        Raises:
            ValueError: If there is nothing on disk, and no teacher in this process.
        """
        assert feature.teacher is not None
        pages = self._pages(feature, images, objects, where)
        found = [self._kept(feature, page) for page in pages]
        absent = [page for page, own in zip(pages, found, strict=True) if own is None]
        made = iter(self._make(feature, absent)) if absent else iter(())
        values = [next(made) if own is None else own for own in found]
        if feature.pooling == "mean":
            return torch.stack([own[0] for own in values]).mean(dim=0, keepdim=True)
        table = torch.zeros(len(objects), self.known[feature.teacher].width)
        for page, own in zip(pages, values, strict=True):
            table[[number for number, each in enumerate(objects) if each.image == page.objects[0].image]] = own
        return table

    def compute(self, dataset: Any, name: str) -> None:
        """Makes sure that all rows of a dataset are on disk; ranks share the work (a collective).

        What is finished stays, also if this is interrupted. A dataset object is read once.

        Raises:
            ValueError: If the dataset is a stream, or ranks do not see the same cache folder.
        """
        if not self.features or not self.args.precompute_teachers or dataset is None:
            return
        if any(dataset is seen for seen in self._seen):
            return
        caches.refuse_streams("precompute_teachers", [(name, dataset)])
        state = PartialState()
        size = self.args.per_device_eval_batch_size
        starts = range(state.process_index * size, len(dataset), state.num_processes * size)
        own = [range(start, min(start + size, len(dataset))) for start in starts]
        hidden = self.args.disable_tqdm or not state.is_main_process
        writer, computed = _Writer(self), 0
        try:
            with (
                ThreadPoolExecutor(READERS) as readers,
                tqdm(total=sum(map(len, own)), desc=f"teachers, {name}", unit="row", disable=hidden) as bar,
            ):
                for rows in own:
                    parsed = [parse_row(dataset[number], number) for number in rows]
                    for feature in self.features:
                        computed += writer.add(feature, self._absent(feature, parsed, writer), readers)
                    bar.update(len(rows))
        finally:
            writer.write()
        self._wait_for_all(name)
        self._seen.append(dataset)
        # What is asked from here on lies on disk.
        self._live.clear()
        logger.info("teachers of %s: %d images computed, the others were on disk", name, computed)

    def loaded(self, teacher: Teacher) -> LoadedTeacher:
        """A teacher in memory; loaded anew where it was let go."""
        return self._load(teacher)

    def make(self, feature: Feature, pages: Sequence[Page], images: Sequence[Any]) -> list[Tensor]:
        """What the teacher of a feature makes of some pages, whose images are read already."""
        live = self._load(feature.teacher)
        live.model.to(self.args.device)
        return live(images, [page.objects for page in pages], feature.pooling)

    def store(self, teacher: Teacher) -> LogpStore:
        """What is on disk of a teacher."""
        if teacher not in self._stores:
            self._stores[teacher] = LogpStore(self.known[teacher].files)
        return self._stores[teacher]

    def keep(self, teacher: Teacher, entries: Mapping[bytes, Tensor]) -> None:
        """Writes to the disk, and lets go: what is asked for is read from there, memory-mapped."""
        self.store(teacher).add(entries)
        del self._stores[teacher]

    def _absent(self, feature: Feature, rows: Sequence[Row], writer: _Writer) -> list[Page]:
        """The pages of rows that are not on disk yet, each once."""
        assert feature.teacher is not None
        found = {}
        for row in rows:
            images = row.images_of(feature.column)
            if images and feature in needs_for(self.objective, row.source).features:
                for page in self._pages(feature, images, row.objects.get(feature.column, ()), row.name):
                    if page.key not in self.store(feature.teacher) and not writer.has(feature.teacher, page.key):
                        found[page.key] = page
        return list(found.values())

    def _pages(
        self, feature: Feature, images: Sequence[Any], objects: Sequence[ImageObject], where: str
    ) -> list[Page]:
        """The images of a row with what is on them; for pooling "regions" those alone that have objects."""
        assert feature.teacher is not None
        shown = feature.pooling == "regions" or self.known[feature.teacher].reads_objects
        pages = []
        for number, image in enumerate(images):
            own = tuple(each for each in objects if each.image == number) if shown else ()
            if own or feature.pooling != "regions":
                where_image = f"{where}, column {feature.column!r}"
                pages.append(Page(_key(feature, image, own, where_image), image, own, where_image))
        return pages

    def _kept(self, feature: Feature, page: Page) -> Tensor | None:
        assert feature.teacher is not None
        if not self.args.precompute_teachers:
            return None
        found = self.store(feature.teacher).get(page.key)
        return None if found is None else found.reshape(-1, self.known[feature.teacher].width)

    def _make(self, feature: Feature, pages: Sequence[Page]) -> list[Tensor]:
        if get_worker_info() is not None:
            raise ValueError(
                f"{pages[0].where}: nothing is kept of what teacher {str(feature.teacher)!r} makes of it; images that "
                "change while training need precompute_teachers=False"
            )
        return self.make(feature, pages, [load_image(page.image, page.where) for page in pages])

    def _load(self, teacher: Teacher | None) -> LoadedTeacher:
        assert teacher is not None
        if teacher not in self._live:
            loaded = load_teacher(teacher)
            facts = {
                "class": type(loaded.model).__name__,
                "weights": weights_digest((n, t) for n, t in loaded.model.state_dict().items() if t.numel()),
                "transformers": version("transformers"),
                **loaded.facts,
            }
            files = caches.teacher_files(self.args, Fingerprint(facts, str(teacher)))
            self.known[teacher] = Known(loaded.width, facts["kind"] == "document", files)
            self._live[teacher] = loaded
        return self._live[teacher]

    def _wait_for_all(self, name: str) -> None:
        state = PartialState()
        state.wait_for_everyone()
        for teacher in self.known:
            self.store(teacher).refresh()
        if state.num_processes > 1:
            sizes = gather_object([[len(self.store(teacher)) for teacher in self.known]])
            if any(size != sizes[0] for size in sizes):
                raise ValueError(
                    f"the ranks see different teachers' files after {name} ({sizes} entries): set cache_dir to a "
                    "folder that all of them share"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_live": {}, "_stores": {}, "_seen": []}


class _Writer:
    """What is computed, on its way to the disk."""

    def __init__(self, teachers: Teachers) -> None:
        self.teachers = teachers
        self.pending: dict[Teacher, dict[bytes, Tensor]] = {}
        self.since = time.monotonic()

    def has(self, teacher: Teacher, key: bytes) -> bool:
        return key in self.pending.get(teacher, {})

    def add(self, feature: Feature, pages: Sequence[Page], readers: ThreadPoolExecutor) -> int:
        """Computes some pages; returns how many."""
        size = self.teachers.args.per_device_eval_batch_size
        for start in range(0, len(pages), size):
            some = pages[start : start + size]
            images = list(readers.map(lambda page: load_image(page.image, page.where), some))
            made = self.teachers.make(feature, some, images)
            own = self.pending.setdefault(feature.teacher, {})  # type: ignore[arg-type]
            own |= {page.key: values.flatten() for page, values in zip(some, made, strict=True)}
        waiting = sum(map(len, self.pending.values()))
        if waiting >= SHARD_PAGES or time.monotonic() - self.since >= SHARD_SECONDS:
            self.write()
        return len(pages)

    def write(self) -> None:
        for teacher, entries in self.pending.items():
            self.teachers.keep(teacher, entries)
        self.pending.clear()
        self.since = time.monotonic()


def _key(feature: Feature, image: Any, objects: Sequence[ImageObject], where: str) -> bytes:
    """Of an image's content and the objects on it."""
    told = [(each.text, each.box, each.mask is not None) for each in objects]
    state = hashlib.blake2b(repr((image_key(image, where), feature.pooling, told)).encode(), digest_size=16)
    for each in objects:
        if each.mask is not None:
            state.update(repr(each.mask.shape).encode() + each.mask.tobytes())
    return state.digest()


def _without_workers(args: AlignConfig) -> None:
    """Rows are collated in this process, where the teachers are.

    Raises:
        ValueError: If the user asked for workers.
    """
    if args.dataloader_num_workers and not args.workers_by_default:
        raise ValueError(
            "precompute_teachers=False runs teachers where rows are collated, in the process that trains: set "
            f"dataloader_num_workers to 0 (it is {args.dataloader_num_workers}), or leave precompute_teachers on"
        )
    args.dataloader_num_workers, args.dataloader_persistent_workers = 0, False
    args.dataloader_prefetch_factor = None
