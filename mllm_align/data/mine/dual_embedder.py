"""Both sides of a dual encoder of transformers: images and the texts that it compares with them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from mllm_align.data.errors import DataError
from mllm_align.data.mine.encoder import ImageEmbedder

_OF_IMAGES = ("vision_model", "visual_projection")
_NO_LIMIT = 100_000  # a tokenizer without a limit names an astronomic one


def text_length(config: Any, tokenizer: Any) -> int | None:
    """Tokens that the text side of a dual encoder takes; None where neither its config nor its tokenizer says."""
    own = getattr(config, "text_config", config)
    said = (getattr(own, "max_position_embeddings", None), tokenizer.model_max_length)
    return min((length for length in said if length is not None and length < _NO_LIMIT), default=None)


class DualEmbedder(ImageEmbedder):
    """CLIP, SigLIP, or another model of transformers with `get_image_features` and `get_text_features`.

    Args:
        model: Name on the Hub, or folder.
        device: Where it runs; by default the process's own of `accelerate`.
        dtype: Of its weights, such as "bfloat16"; float32 by default.
        batch_size: Images or texts of a forward pass.

    Attributes:
        name: How it is called in few words.

    Raises:
        DataError: If there is no such model, or it has not both sides.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        batch_size: int = 32,
    ) -> None:
        super().__init__(model, device, dtype, batch_size)
        name = os.fspath(model)
        if not hasattr(self._model, "get_text_features"):
            raise DataError(
                f"{name} is a {type(self._model).__name__}, which embeds no texts beside images: name a dual encoder "
                "(CLIP, SigLIP), or give vectors of both sides"
            )
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"{name} has no tokenizer, so no text side that could embed: {error}") from None
        self.name = os.path.basename(os.path.normpath(name))
        # The image side was loaded without what reads texts.
        self._texts: Any = AutoModel.from_pretrained(name, dtype=self.dtype)
        for part in _OF_IMAGES:
            if hasattr(self._texts, part):
                setattr(self._texts, part, None)
        self._texts.to(self.device).eval()
        takes = inspect.signature(self._texts.get_text_features).parameters
        self._reads = {key for key, parameter in takes.items() if parameter.kind is not parameter.VAR_KEYWORD}

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, d) float32, every row of length 1. Texts are padded to the length that the model takes, and cut to it.

        Raises:
            DataError: If the model gives nothing finite for a text.
        """
        length = text_length(self._texts.config, self._tokenizer)
        found = []
        for start in range(0, len(texts), self.batch_size):
            part = list(texts[start : start + self.batch_size])
            read = self._tokenizer(
                part,
                padding="max_length" if length else True,
                truncation=length is not None,
                max_length=length,
                return_tensors="pt",
            )
            output = self._texts.get_text_features(
                **{key: value.to(self.device) for key, value in read.items() if key in self._reads}
            )
            vectors = (output if isinstance(output, torch.Tensor) else output.pooler_output).double().cpu().numpy()
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)).all(1))
            if len(bad):
                raise DataError(f"the model gives no finite vector for the text {part[bad[0]]!r}; try dtype float32")
            found.append((vectors / norms).astype(np.float32))
        return np.concatenate(found) if found else np.empty((0, self.dim), np.float32)
