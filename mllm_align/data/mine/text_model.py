"""A chat model of transformers that reads text alone, as a `Speaker`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mllm_align.data.mine.speaking import Ask
from mllm_align.data.processes import processes


class TextModel:
    """A `Speaker` on any causal language model with a chat template: greedy, batched, padded on the left.

    Args:
        model: Hub id or folder.
        device: Where to; the process's own of `accelerate` by default.
        dtype: bfloat16 on a GPU, float32 elsewhere, by default.
        batch_size: Asks that are answered together; a batch holds asks of about one length.
        revision: Of the model on the Hub.

    Raises:
        ValueError: If there is no such model, or it has no chat template. On call: for an ask with pictures.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 16,
        revision: str | None = None,
    ) -> None:
        name = os.fspath(model)
        self.device = torch.device(device if device is not None else str(processes().device))
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.batch_size = batch_size
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision, padding_side="left")
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=self.dtype)
        except OSError as error:
            raise ValueError(f"there is no chat model {name}: {str(error).splitlines()[0]}") from error
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{name} has no chat template; name a model that was tuned to chat")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model: Any = loaded.to(self.device).eval()
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self._ends = sorted({*ends, self.tokenizer.eos_token_id} - {None}) or None
        commit = getattr(loaded.config, "_commit_hash", None) or revision
        self.identity = f"{name}{f'@{commit}' if commit else ''} in {str(self.dtype).removeprefix('torch.')}, greedy"

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        """The answer to each, without special tokens."""
        texts = [self._rendered(ask) for ask in asks]
        order = sorted(range(len(texts)), key=lambda number: (len(texts[number]), number))
        answers = [""] * len(texts)
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            found = self._generate([texts[number] for number in numbers], max_new_tokens)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer.rstrip() if asks[number].start else answer.strip()
        return answers

    def _rendered(self, ask: Ask) -> str:
        if ask.images:
            raise ValueError("this chat model reads text alone, and was asked about a picture")
        messages = [{"role": "system", "content": ask.system}] if ask.system else []
        messages.append({"role": "user", "content": ask.prompt})
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text + ask.start

    @torch.no_grad()
    def _generate(self, texts: list[str], max_new_tokens: int) -> list[str]:
        # Templates write BOS themselves.
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.device)
        output = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=self._ends,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)
