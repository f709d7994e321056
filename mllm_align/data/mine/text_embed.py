"""Texts to vectors: any encoder of transformers with mean pooling, as sentence-transformers' models are made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from mllm_align.data.processes import processes

DEFAULT = "sentence-transformers/all-mpnet-base-v2"
MAX_TOKENS = 384
DIGITS = 5


class TextEmbedder:
    """Cosines of texts under an encoder.

    Args:
        model: Hub id or folder.
        device: Where to; the process's own of `accelerate` by default.
        batch_size: Texts of one forward pass.
        revision: Of the model on the Hub.

    Attributes:
        identity: Tells it apart from every other that would give other vectors.

    Raises:
        ValueError: If there is no such encoder.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        revision: str | None = None,
    ) -> None:
        name = os.fspath(model)
        self.device = torch.device(device) if device is not None else processes().device
        self.batch_size = batch_size
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision)
            loaded = AutoModel.from_pretrained(name, revision=revision, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"there is no text encoder {name}: {str(error).strip().splitlines()[0]}") from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        self.max_tokens = min(MAX_TOKENS, self.tokenizer.model_max_length)
        self.model: Any = loaded.to(self.device).eval()
        commit = getattr(loaded.config, "_commit_hash", None) or revision
        self.identity = f"{name}{f'@{commit}' if commit else ''}, mean of {self.max_tokens} tokens at most"

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, d) float32 on the host, every row of length 1: the mean of the last hidden states of a text's tokens."""
        order = sorted(range(len(texts)), key=lambda number: (len(texts[number]), number))
        found: dict[int, torch.Tensor] = {}
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            inputs = self.tokenizer(
                [texts[number] for number in numbers],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
            ).to(self.device)
            hidden = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors = torch.nn.functional.normalize(mean, dim=-1).cpu()
            found |= dict(zip(numbers, vectors, strict=True))
        width = self.model.config.hidden_size
        return torch.stack([found[n] for n in range(len(texts))]) if texts else torch.zeros(0, width)

    def similarities(self, first: Sequence[str], second: Sequence[str]) -> list[float]:
        """The cosine of each pair, rounded to five digits."""
        both = self([*first, *second])
        cosines = (both[: len(first)] * both[len(first) :]).sum(-1)
        return [round(value, DIGITS) for value in cosines.double().tolist()]
