"""Processors of families that also read video, for machines without the video dependencies.

The stock classes of these families refuse to exist without torchvision (and SmolVLM's without num2words), even for
pictures alone. Each class here is the stock class less its video processor. The names are kept, because
`save_pretrained` writes the class name and a saved processor must load as the stock class elsewhere.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoProcessor
from transformers.models.qwen2_5_vl import processing_qwen2_5_vl
from transformers.models.qwen2_vl import processing_qwen2_vl
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin
from transformers.utils.import_utils import is_torchvision_available


class Qwen2VLProcessor(processing_qwen2_vl.Qwen2VLProcessor):
    """Qwen2-VL's processor for text and images."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs: Any) -> None:
        """As the stock class, less `video_processor`."""
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class Qwen2_5_VLProcessor(processing_qwen2_5_vl.Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor for text and images."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs: Any) -> None:
        """As the stock class, less `video_processor`."""
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class SmolVLMProcessor(processing_smolvlm.SmolVLMProcessor):
    """SmolVLM's processor for text and images."""

    def __init__(
        self, image_processor, tokenizer, image_seq_len: int = 169, chat_template: str | None = None, **kwargs: Any
    ) -> None:
        """As the stock class, less `video_processor`."""
        # The stock constructor stops without num2words, which only video prompts use: it is passed over.
        self.fake_image_token = "<fake_token_around_image>"
        self.image_token = "<image>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.end_of_utterance_token = "<end_of_utterance>"
        self.global_image_token = "<global-img>"
        self.video_token = "<video>"
        self.image_seq_len = image_seq_len
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """The general chat rendering: the stock override asks the video processor for its frame rate."""
        return ProcessorMixin.apply_chat_template(self, conversation, chat_template, **kwargs)


IMAGE_ONLY = {
    "qwen2_vl": Qwen2VLProcessor,
    "qwen2_5_vl": Qwen2_5_VLProcessor,
    "smolvlm": SmolVLMProcessor,
}


def load_processor(name_or_path: str, **kwargs: Any) -> ProcessorMixin:
    """The processor of a checkpoint, without its video half where torchvision is not installed.

    Args:
        name_or_path: Hub id or folder.
        **kwargs: Handed to `from_pretrained` (`revision`, `min_pixels`, ...).
    """
    if not is_torchvision_available():
        hub = {key: kwargs[key] for key in ("revision", "trust_remote_code", "cache_dir", "token") if key in kwargs}
        processor_class = IMAGE_ONLY.get(AutoConfig.from_pretrained(name_or_path, **hub).model_type)
        if processor_class is not None:
            return processor_class.from_pretrained(name_or_path, **kwargs)
    return AutoProcessor.from_pretrained(name_or_path, **kwargs)
