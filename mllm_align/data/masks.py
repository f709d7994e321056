"""Where a response begins and ends in a rendered conversation, for any chat template.

Nothing is searched for: the same conversation is rendered with the response and with a one-letter probe that differs
from it in its first and its last character, and what the two renderings share in front and at the end is the
template's own.

- The prefix is what generation starts from (the rendering with the generation prompt), so that training scores the
  very tokens that generation would have to produce, a leading space included. Where the template writes more than
  white space between the generation prompt and the response (an empty think block), or leaves the generation prompt
  out again, the prefix is what the renderings share in front: text that the template wrote is no response. White
  space in which the two differ (LLaVA-OneVision's "assistant \\n") is that of the generation prompt.
- The response ends with what the template puts behind it, up to the last character that is not white space: the
  end-of-turn token. A template that puts nothing there gets the tokenizer's EOS, once.
- Without a chat template, the prompt is rendered as it is (image tokens in the place of image parts), the response is
  put behind it as it is, and EOS behind that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jinja2
from PIL import Image

from mllm_align.data.errors import DataError, quoted
from mllm_align.data.messages import Message
from mllm_align.data.remember import Remembered

_PROBES = "abc"
# Joints across which a tokenizer keeps apart what follows: a line break, or else a letter.
_JOINTS = ("\n", "a")


class ChatRenderer:
    """Renders conversations with the chat template of one processor.

    Args:
        processor: Its `apply_chat_template`, `image_token` and `tokenizer` are used.

    Raises:
        ValueError: If the tokenizer has no EOS token.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token: str = processor.image_token
        if self.tokenizer.eos_token is None:
            raise ValueError(f"{type(self.tokenizer).__name__} has no EOS token, so no response could end; set one")
        self.template = _template(processor)
        self._rendered = Remembered(self._render)
        self.takes_parts = True
        if self.template is not None:
            self.takes_parts = self._reads_parts()

    def render(
        self, messages: Sequence[Message], response: str, num_images: int, where: str = "row"
    ) -> tuple[str, str]:
        """The prompt text and the response text, as they follow one another.

        Args:
            messages: The prompt; contents are lists of image and text parts.
            response: What the assistant says.
            num_images: Image placeholders that the prompt must have after rendering.
            where: How errors speak of the row.

        Returns:
            (prefix, response): image placeholders in the prefix are not yet expanded; the response ends with its
            end-of-turn token.

        Raises:
            DataError: If the template refuses the conversation, leaves out or adds an image, or drops the response.
        """
        if self.template is None:
            prefix, scored = self._verbatim(messages, where), self._ended(response)
        else:
            prefix, scored = self._templated(messages, response, where)
        found = prefix.count(self.image_token)
        if found != num_images:
            raise DataError(
                f"{where}: the rendered prompt has {found} image token(s) {self.image_token!r} for {num_images} "
                "image(s); the prompt's text must not hold that token, and the chat template must render image parts"
            )
        if self.image_token in scored:
            raise DataError(f"{where}: the response holds the image token {self.image_token!r}; take it out")
        return prefix, scored

    def _templated(self, messages: Sequence[Message], response: str, where: str) -> tuple[str, str]:
        inside = response.strip()
        probe = next(letter for letter in _PROBES if letter not in (inside[:1], inside[-1:]))
        whole = self._apply([*messages, self._answer(response)], False, where)
        other = self._apply([*messages, self._answer(probe)], False, where)
        start = self._apply(messages, True, where)
        shared = _shared_beginning(whole, other)
        adds_text = bool(whole[len(start) : len(shared)].strip())
        if whole.startswith(start) and not adds_text:
            prefix = start
        elif start.split() == shared.split():
            prefix, whole = start, start + whole[len(shared) :]
        else:
            prefix = shared.rstrip(" ")
        end = _shared_beginning(whole[::-1], other[::-1])[::-1]
        scored = whole[len(prefix) : len(whole) - (len(end) - len(end.rstrip()))]
        if len(whole) - len(end) <= len(prefix):
            raise DataError(f"{where}: the chat template renders nothing of the response {quoted(response)}")
        return prefix, scored if end.strip() else self._ended(scored)

    def _apply(self, messages: Sequence[Message], generation: bool, where: str) -> str:
        chat = [message if self.takes_parts else self._flat(message) for message in messages]
        try:
            return self._rendered(json.dumps(chat), generation)
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"{where}: the chat template refuses a conversation of {roles}: {error}") from error

    def _render(self, chat: str, generation: bool) -> str:
        return self.processor.apply_chat_template(
            json.loads(chat), chat_template=self.template, add_generation_prompt=generation, tokenize=False
        )

    def _verbatim(self, messages: Sequence[Message], where: str) -> str:
        if [message["role"] for message in messages] != ["user"]:
            raise DataError(
                f"{where}: {type(self.processor).__name__} has no chat template, so a prompt can only be one plain "
                "text; set processor.chat_template to use system prompts or several turns"
            )
        return self._flat(messages[0])["content"]

    def _flat(self, message: Message) -> Message:
        """The message with text for content, image tokens in it."""
        parts = [self.image_token if part["type"] == "image" else part["text"] for part in message["content"]]
        return {"role": message["role"], "content": "".join(parts)}

    def _reads_parts(self) -> bool:
        """Whether the template reads lists of parts, rather than printing or refusing them."""
        try:
            text = self._apply([{"role": "user", "content": [{"type": "text", "text": "probe"}]}], True, "probe")
        except DataError:
            return False
        return "probe" in text and "'text'" not in text and '"text"' not in text

    @staticmethod
    def _answer(text: str) -> Message:
        return {"role": "assistant", "content": [{"type": "text", "text": text}]}

    def _ended(self, text: str) -> str:
        eos = self.tokenizer.eos_token
        return text if text.endswith(eos) else text + eos


def _template(processor: Any) -> str | None:
    """The processor's chat template, else its tokenizer's, else None; of several the one named default."""
    own = getattr(processor, "chat_template", None)
    found = own if own is not None else getattr(processor.tokenizer, "chat_template", None)
    return found.get("default") if isinstance(found, dict) else found


def _shared_beginning(one: str, other: str) -> str:
    return one[
        : next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ]


def render(processor: Any, messages: Sequence[Message], response: str, n_images: int) -> tuple[str, str]:
    """Prefix and response text of one conversation; see `ChatRenderer.render`."""
    return ChatRenderer(processor).render(messages, response, n_images)


def laid_out(processor: Any, prompt: str) -> str:
    """A rendered prompt as its processor lays it out before it expands images; most leave it as it is.

    PaliGemma's puts BOS behind the images and a line break behind the prompt. It refuses a prompt without an image,
    which is laid out here as with one, less that one.
    """
    token = processor.image_token
    count = prompt.count(token)
    shown = [[Image.new("RGB", (1, 1))] * max(1, count)]
    _, texts, *_ = processor.prepare_inputs_layout(images=shown, text=[prompt if count else token + prompt])
    return texts[0] if count else texts[0].replace(token, "", 1)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text and nothing else: no special tokens added, nothing cut or padded."""
    return tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]


def leading_ids(tokenizer: Any, text: str) -> list[int]:
    """What the tokenizer itself puts in front of a text (BOS), unless the text begins with it.

    What it puts behind a text (EOS) is left away: a prefix is not the end of anything.
    """
    if tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token):
        return []
    bare = plain_ids(tokenizer, "a")
    dressed = tokenizer("a", add_special_tokens=True, truncation=False, padding=False)["input_ids"]
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return dressed[:start]
    return []


def response_ids(tokenizer: Any, prefix: str, response: str) -> list[int]:
    """The ids of a response behind a prefix (image placeholders not expanded: both sides of them are the same).

    Those of the whole text behind those of the prefix; where a token would span both, the response is tokenised on
    its own, because generation, too, begins behind the prefix's last token.
    """
    before = plain_ids(tokenizer, prefix)
    whole = plain_ids(tokenizer, prefix + response)
    if whole[: len(before)] == before:
        return whole[len(before) :]
    for joint in _JOINTS:
        # Behind a joint, because some tokenizers put a space in front of a text of its own.
        joint_ids, joined = plain_ids(tokenizer, joint), plain_ids(tokenizer, joint + response)
        if joined[: len(joint_ids)] == joint_ids:
            return joined[len(joint_ids) :]
    return plain_ids(tokenizer, response)
