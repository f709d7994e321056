"""Models that speak without seeing: a chat endpoint at a URL, and a language model of transformers.

speaker = ChatEndpoint("http://localhost:8000/v1", "Qwen/Qwen3-8B")       # vLLM, SGLang, llama.cpp, Ollama, ...
speaker = ChatEndpoint("https://api.openai.com/v1", "gpt-4o", key_env="OPENAI_API_KEY")
speaker = TextModel("Qwen/Qwen3-1.7B")
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from mllm_align.data.mine.speaking import Ask

_WORTH_ANOTHER_TRY = frozenset((408, 409, 425, 429, 500, 502, 503, 504))


class EndpointError(ValueError):
    """A chat endpoint that cannot be reached, refuses, or answers something else."""


class ChatEndpoint:
    """A `Speaker` behind an OpenAI-compatible `/chat/completions`.

    Decoding is greedy (temperature 0, a fixed seed); how far the same question then gets the same answer is up to
    the server. Requests go out over the standard library: `huggingface_hub.InferenceClient` refuses even a server on
    this machine where HF_HUB_OFFLINE is set.

    Args:
        url: Up to and without `/chat/completions`.
        model: As the server calls it.
        key_env: The environment variable that holds the key; None for a server that wants none.
        num_threads: Requests under way at one time.
        num_retries: Further tries after a refused connection, a time-out or an error of the server's own.
        first_wait: Seconds before the first further try; every next wait is twice as long, and a server that says
            how long to wait is obeyed.
        timeout: Seconds for one answer.

    Raises:
        EndpointError: If `url` is no address, or `key_env` names a variable that is not set. On call: if nothing
            answers at the address, the server refuses, or its answer is no chat completion.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str | None = None,
        num_threads: int = 8,
        num_retries: int = 4,
        first_wait: float = 1.0,
        timeout: float = 120.0,
    ) -> None:
        self.url = url.rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise EndpointError(f"{url} is no address of a chat endpoint; one begins with http:// or https://")
        self.model = model
        self.num_threads, self.num_retries = num_threads, num_retries
        self.first_wait, self.timeout = first_wait, timeout
        self._headers = {"Content-Type": "application/json"}
        if key_env is not None:
            if not os.environ.get(key_env):
                raise EndpointError(f"the key for {self.url} is read from {key_env}, which is not set")
            self._headers["Authorization"] = f"Bearer {os.environ[key_env]}"

    @property
    def identity(self) -> str:
        """Address and model; the key is no part of it."""
        return f"{self.model} at {self.url}"

    def __call__(self, asks: Sequence[Ask], max_new_tokens: int) -> list[str]:
        """The answer to each. One with `start` needs a server that takes `continue_final_message` (vLLM, SGLang)."""
        if not asks:
            return []
        with ThreadPoolExecutor(min(self.num_threads, len(asks))) as threads:
            running = [threads.submit(self._answer, ask, max_new_tokens) for ask in asks]
            try:
                return [future.result() for future in running]
            except BaseException:
                for future in running:
                    future.cancel()
                raise

    def _answer(self, ask: Ask, max_new_tokens: int) -> str:
        body = {
            "model": self.model,
            "messages": _messages(ask),
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "seed": 0,
        }
        if ask.start:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        reply = self._post(json.dumps(body).encode())
        try:
            text = json.loads(reply)["choices"][0]["message"]["content"] or ""
            return text.removeprefix(ask.start) if ask.start else text
        except (ValueError, LookupError, TypeError, AttributeError):
            raise EndpointError(f"{self.url} answered what is no chat completion: {reply[:200]!r}") from None

    def _post(self, body: bytes) -> bytes:
        wait = self.first_wait
        for tries_left in range(self.num_retries, -1, -1):
            request = urllib.request.Request(f"{self.url}/chat/completions", body, self._headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                said = error.read()[:300].decode(errors="replace")
                if error.code not in _WORTH_ANOTHER_TRY or not tries_left:
                    raise EndpointError(f"{self.url} refuses with status {error.code}: {said}") from None
                wait = max(wait, _seconds(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException) as error:
                if not tries_left:
                    reason = getattr(error, "reason", error)
                    raise EndpointError(
                        f"nothing answers at {self.url} ({reason}); is the server running, and is this its address?"
                    ) from None
            time.sleep(wait)
            wait *= 2
        raise AssertionError("the last try returns or raises")


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdigit() else 0.0


def _messages(ask: Ask) -> list[dict[str, Any]]:
    content: Any = ask.prompt
    if ask.images:
        pictures = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in ask.images]
        content = [*pictures, {"type": "text", "text": ask.prompt}]
    messages = [{"role": "system", "content": ask.system}] if ask.system else []
    messages.append({"role": "user", "content": content})
    return [*messages, {"role": "assistant", "content": ask.start}] if ask.start else messages


def _data_url(image: Image.Image) -> str:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"
