"""The reference from disk: its log-probabilities were computed once, no model runs for them again."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from mllm_align.contract import Batch, Branch, Prefix, Ragged, Signals, View
from mllm_align.families.base import to_device
from mllm_align.signals.store import KEY_BYTES, LogpStore


def branch_keys(batch: Batch) -> list[bytes]:
    """Per branch a key of all that decides its log-probabilities under a given model: prompt, images, response.

    Rows with the same content share a key; neither the row's id nor its place in the data counts.

    Raises:
        ValueError: If the batch has images without `image_ids`.
    """
    if len(batch.image_ids) != len(batch.images):
        raise ValueError(
            f"the batch has {len(batch.images)} images and {len(batch.image_ids)} image_ids, so its images cannot be "
            "told apart on disk: build it with AlignCollator"
        )
    prefixes = [_prefix_state(batch, prefix) for prefix in batch.prefixes]
    keys = []
    for branch in batch.branches:
        state = prefixes[branch.prefix].copy()
        state.update(branch.token_ids.cpu().numpy().tobytes())
        keys.append(state.digest())
    return keys


def _prefix_state(batch: Batch, prefix: Prefix) -> Any:
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    parts = [prefix.input_ids.cpu().numpy().tobytes(), *(batch.image_ids[image].encode() for image in prefix.images)]
    for name in sorted(prefix.extras):
        parts += [name.encode(), prefix.extras[name].cpu().numpy().tobytes()]
    for part in parts:
        # With its length before each part, no two lists of parts read the same.
        state.update(len(part).to_bytes(8, "little") + part)
    return state


class CachedReference:
    """A reference whose log-probabilities are read from disk.

    Args:
        store: Of one reference model; the keys are those of `branch_keys`.
    """

    def __init__(self, store: LogpStore) -> None:
        self.store = store

    def missing(self, batch: Batch, scored: Collection[View] | None = None) -> dict[int, bytes]:
        """Indices and keys of the branches of referenced rows that the store does not have; of all views, or some."""
        keys = branch_keys(batch)
        wanted = [index for index, branch in enumerate(batch.branches) if _is_wanted(batch, branch, scored)]
        return {index: keys[index] for index in wanted if keys[index] not in self.store}

    def signals(self, batch: Batch, *, tokens: bool, device: Any, scored: Collection[View] | None = None) -> Signals:
        """What the live reference would measure: the rows that `batch.reference_rows` names, zero tokens elsewhere.

        Args:
            batch: Any batch of rows that were scored before.
            tokens: Whether to give per-token log-probabilities and the tokens' ids too.
            device: Where the tensors go.
            scored: Views whose log-probabilities are wanted; None for all that the batch has.

        Raises:
            ValueError: If a response was not scored before, naming its row.
        """
        found: dict[View, list[tuple[int, Tensor]]] = {view: [] for view in batch.views}
        for branch, key in zip(batch.branches, branch_keys(batch), strict=True):
            if _is_wanted(batch, branch, scored):
                values = self.store.get(key)
                if values is None:
                    raise ValueError(self._absent(batch.row_ids[branch.row], branch.view))
                found[branch.view].append((branch.row, values))
        logps, num_tokens, host_num_tokens, ragged = {}, {}, {}, {}
        for view, entries in found.items():
            values, row = _by_row(entries)
            counts = torch.bincount(row, minlength=len(batch))
            sums = torch.zeros(len(batch)).index_add(0, row, values)
            host_num_tokens[view] = tuple(counts.tolist())
            logps[view], num_tokens[view] = to_device(sums, device), to_device(counts, device)
            if tokens:
                ragged[view] = Ragged(to_device(values, device), to_device(row, device))
        return Signals(
            logps=logps,
            num_tokens=num_tokens,
            token_logps=ragged,
            sources=batch.sources,
            row_ids=batch.row_ids,
            host_num_tokens=host_num_tokens,
            host_token_ids=batch.token_ids(host_num_tokens) if tokens else {},
        )

    def _absent(self, row: str, view: View) -> str:
        return (
            f"row {row!r}, view {view}: this prompt, image and response were not scored under the reference before "
            f"training (kept in {self.store.files.folder}). If the image is drawn anew each epoch, draw it once for "
            "all of them; if the data is new, give it to the trainer as train_dataset or eval_dataset; or set "
            "precompute_ref_log_probs=False"
        )


def _is_wanted(batch: Batch, branch: Branch, scored: Collection[View] | None) -> bool:
    return batch.reference_rows[branch.row] and (scored is None or branch.view in scored)


def _by_row(entries: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """The tokens (N,) of some branches in order of row, and the row of each."""
    ordered = sorted(entries, key=lambda entry: entry[0])
    values = torch.cat([values for _, values in ordered]) if ordered else torch.zeros(0)
    lengths = torch.tensor([values.numel() for _, values in ordered], dtype=torch.long)
    return values, torch.repeat_interleave(torch.tensor([row for row, _ in ordered], dtype=torch.long), lengths)
