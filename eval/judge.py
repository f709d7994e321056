"""A language model that judges answers: asked in blocks, every reply kept on disk, one judge to a result.

judge = Judge(ChatEndpoint("http://localhost:8000/v1", "Qwen/Qwen3-32B"), "judge.jsonl", runs=3)
replies = judge.ask(TEMPLATE, {item.id: {"question": ..., "answer": ...}})

Another judge, or another version of the same, gives other scores: LLaVA-1.5's own answers to MM-Vet went from 31.1 to
27.9. So a reply is kept under a key of judge, text and run, and `card` names judge and template beside every score.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from mllm_align.data.mine.speaking import Ask, Speaker
from mllm_align_eval.cache import AnswerCache, content_key
from mllm_align_eval.items import Answer, Item
from mllm_align_eval.metrics import Measure, Measures, clusters_of, mean, share
from mllm_align_eval.statistics import Array, Metric

Replies = dict[str, tuple[str, ...]]


class Judge:
    """Asks a speaker about answers.

    Args:
        speaker: The judge; greedy, and named by its `identity`.
        cache: File of its replies; those there are not asked for again. None keeps them for this object's life.
        runs: How often each question is put. Judges at temperature 0 still differ from themselves.
        max_new_tokens: Of a reply.
        block_size: Questions that a kill can cost.

    Raises:
        ValueError: If `runs` or `block_size` is less than 1, or the file is no cache.
    """

    def __init__(
        self,
        speaker: Speaker,
        cache: str | os.PathLike[str] | None = None,
        runs: int = 1,
        max_new_tokens: int = 1024,
        block_size: int = 16,
    ) -> None:
        if runs < 1 or block_size < 1:
            raise ValueError(f"runs and block_size must be at least 1, not {runs} and {block_size}")
        self.speaker, self.runs = speaker, runs
        self.max_new_tokens, self.block_size = max_new_tokens, block_size
        self._kept: dict[str, str] = {}
        self._cache = AnswerCache(cache) if cache is not None else None
        self._templates: set[str] = set()

    def ask(self, template: str, fields: Mapping[str, Mapping[str, str]]) -> Replies:
        """The replies to a template filled in for each item, one per run.

        Args:
            template: Text with `{name}` where a field goes; other braces stay.
            fields: By item id the text of each field.
        """
        self._templates.add(hashlib.sha256(template.encode()).hexdigest())
        prompts = {item: fill(template, values) for item, values in fields.items()}
        wanted = {
            self._key(prompt, run): (item, prompt) for item, prompt in prompts.items() for run in range(self.runs)
        }
        missing = [(key, item, prompt) for key, (item, prompt) in wanted.items() if self._get(key) is None]
        for start in range(0, len(missing), self.block_size):
            block = missing[start : start + self.block_size]
            texts = self.speaker([Ask(prompt) for _, _, prompt in block], self.max_new_tokens)
            self._keep([(key, item, text) for (key, item, _), text in zip(block, texts, strict=True)])
        return {
            item: tuple(self._get(self._key(prompt, run)) or "" for run in range(self.runs))
            for item, prompt in prompts.items()
        }

    def card(self) -> dict[str, Any]:
        """Who judged, by which templates (SHA-256), how often: what belongs beside a score."""
        return {"judge": self.speaker.identity, "templates": sorted(self._templates), "runs": self.runs}

    def caption(self) -> str:
        """`card` in a few words."""
        templates = ", ".join(digest[:8] for digest in sorted(self._templates))
        return f"judged by {self.speaker.identity} (template {templates}, runs: {self.runs})"

    def _key(self, prompt: str, run: int) -> str:
        parts = {"judge": self.speaker.identity, "prompt": prompt, "run": run, "max_new_tokens": self.max_new_tokens}
        return content_key(parts)

    def _get(self, key: str) -> str | None:
        if self._cache is None:
            return self._kept.get(key)
        kept = self._cache.get(key)
        return kept.text if kept is not None else None

    def _keep(self, replies: Sequence[tuple[str, str, str]]) -> None:
        if self._cache is None:
            self._kept |= {key: text for key, _, text in replies}
        else:
            self._cache.add((key, Answer(item, text, None, False)) for key, item, text in replies)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """A template with `{name}` replaced by the field of that name, all at once: a field may hold braces itself."""
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)


def load_judge(
    name: str,
    model: str | None = None,
    key_env: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    runs: int = 1,
) -> Judge:
    """A judge at an address, or a chat model of transformers in this process.

    Args:
        name: Address up to and without `/chat/completions`, or Hub id or folder of a model.
        model: What the endpoint calls it.
        key_env: Environment variable with the endpoint's key.
        cache: As of `Judge`.
        runs: As of `Judge`.

    Raises:
        ValueError: If the model or the key is missing.
    """
    if name.startswith(("http://", "https://")):
        from mllm_align.data.mine.chat import ChatEndpoint

        if model is None:
            raise ValueError("--judge-model is missing: name the judge as the endpoint calls it")
        speaker: Any = ChatEndpoint(name, model, key_env)
    else:
        from mllm_align.data.mine.text_model import TextModel

        speaker = TextModel(name)
    return Judge(speaker, cache, runs)


def quality_measures(
    items: Sequence[Item], replies: Mapping[str, Sequence[str]], read: Callable[[str], Hashable | None]
) -> Measures:
    """How usable the replies are, whatever they say.

    `unparsed` is the share of replies that `read` makes nothing of (None); `self_consistency`, with several runs, the
    share of items on which all runs read the same.
    """
    seen = {item.id: [read(reply) for reply in replies[item.id]] for item in items}
    found = {
        "unparsed": share(items, lambda item: seen[item.id].count(None), lambda item: len(seen[item.id])),
    }
    if any(len(values) > 1 for values in seen.values()):
        found["self_consistency"] = mean(
            items, lambda item: float(None not in seen[item.id] and len(set(seen[item.id])) == 1)
        )
    return found


def correlation(items: Sequence[Item], first: Sequence[float], second: Sequence[float]) -> Measure:
    """Pearson's correlation of two numbers per item; undefined (NaN) where one does not vary.

    Judges may like long answers: the correlation of length and score belongs beside their scores.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (first, second))
    # Around the means, which keeps what is left of the sums exact.
    x, y = x - x.mean(), y - y.mean()

    def pearson(totals: Array) -> Array:
        n, sx, sy, sxx, syy, sxy = (totals[..., column] for column in range(6))
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.maximum(n * sxx - sx**2, 0) * np.maximum(n * syy - sy**2, 0)
            return np.where(spread > 1e-9, (n * sxy - sx * sy) / np.sqrt(spread), np.nan)

    columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    return Measure(Metric(columns, pearson), clusters_of(items))
