"""Processors of families that also read video, for machines without the video dependencies.

The stock classes of these families refuse to exist without torchvision (and SmolVLM's without num2words), even for
pictures alone. Each class here is the stock class less its video processor, or (Pixtral) does as the stock class whose
module cannot be imported. The names are kept, because `save_pretrained` writes the class name and a saved processor
must load as the stock class elsewhere. A constructor's arguments are what is kept when a processor is loaded.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoProcessor
from transformers.models.internvl import processing_internvl
from transformers.models.llava_onevision import processing_llava_onevision
from transformers.models.qwen2_5_vl import processing_qwen2_5_vl
from transformers.models.qwen2_vl import processing_qwen2_vl
from transformers.models.qwen3_vl import processing_qwen3_vl
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


class Qwen3VLProcessor(processing_qwen3_vl.Qwen3VLProcessor):
    """Qwen3-VL's processor for text and images."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs: Any) -> None:
        """As the stock class, less `video_processor`."""
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class InternVLProcessor(processing_internvl.InternVLProcessor):
    """InternVL's processor for text and images."""

    def __init__(
        self, image_processor=None, tokenizer=None, image_seq_length: int = 256, chat_template=None, **kwargs: Any
    ) -> None:
        """As the stock class, less `video_processor`."""
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template=chat_template)


class LlavaOnevisionProcessor(processing_llava_onevision.LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor for text and images."""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template=None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        vision_aspect_ratio: str = "anyres_max_9",
        **kwargs: Any,
    ) -> None:
        """As the stock class, less `video_processor`; what is not named here is lost when a processor is loaded."""
        super().__init__(
            image_processor,
            tokenizer,
            None,
            num_image_tokens,
            vision_feature_select_strategy,
            chat_template,
            image_token,
            video_token,
            vision_aspect_ratio,
        )


class PixtralProcessor(ProcessorMixin):
    """Pixtral's and Mistral3's processor.

    Its stock module cannot be imported without torchvision, so this one stands on its own.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template=None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **kwargs: Any,
    ) -> None:
        """Sides of images become multiples of `patch_size` x `spatial_merge_size`, which is one image token's side."""
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = (
            image_token,
            image_break_token,
            image_end_token,
        )
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(image_token)
        self.image_break_token_id = self.tokenizer.convert_tokens_to_ids(image_break_token)
        self.image_end_token_id = self.tokenizer.convert_tokens_to_ids(image_end_token)

    @property
    def image_token_ids(self) -> list[int]:
        """Ids of all tokens that an image becomes."""
        return [self.image_token_id, self.image_break_token_id, self.image_end_token_id]

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of the outputs."""
        return [*super().model_input_names, "image_sizes"]

    def _process_images(self, images: Any, **images_kwargs: Any) -> Any:
        images_kwargs["patch_size"] = self.patch_size * self.spatial_merge_size
        return super()._process_images(images, **images_kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """One image token per merged patch; a break ends each row of them, the end token the last."""
        side = self.patch_size * self.spatial_merge_size
        rows, columns = (int(length) // side for length in image_inputs["image_sizes"][image_idx])
        row = self.image_token * columns
        return (row + self.image_break_token) * (rows - 1) + row + self.image_end_token


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

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """The general chat rendering: the stock override asks the video processor for its frame rate."""
        return ProcessorMixin.apply_chat_template(self, conversation, chat_template, **kwargs)


IMAGE_ONLY = {
    "qwen2_vl": Qwen2VLProcessor,
    "qwen2_5_vl": Qwen2_5_VLProcessor,
    "qwen3_vl": Qwen3VLProcessor,
    "qwen3_vl_moe": Qwen3VLProcessor,
    "internvl": InternVLProcessor,
    "llava_onevision": LlavaOnevisionProcessor,
    "mistral3": PixtralProcessor,
    "pixtral": PixtralProcessor,
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
        config = AutoConfig.from_pretrained(name_or_path, **hub)
        # LLaVA's class has Pixtral's processor where it has Pixtral's tower.
        kind = config.vision_config.model_type if config.model_type == "llava" else config.model_type
        processor_class = IMAGE_ONLY.get(kind)
        if processor_class is not None:
            return processor_class.from_pretrained(name_or_path, **kwargs)
    return AutoProcessor.from_pretrained(name_or_path, **kwargs)
