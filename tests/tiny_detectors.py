"""Tiny open-vocabulary detectors with processors, made from their real config classes, in folders as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
)

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", ".", "red", "ball", "dog", "a", "thing", "bench", "tree")


def _tokenizer(length: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        eos_token="[SEP]",
        model_max_length=length,
    )


def _owl(config_class: Any, model_class: Any) -> Any:
    text = SMALL | {"vocab_size": len(WORDS), "max_position_embeddings": 16, "pad_token_id": 0, "eos_token_id": 2}
    vision = SMALL | {"image_size": 64, "patch_size": 16}
    return model_class(config_class(text_config=text, vision_config=vision, projection_dim=32))


def _grounding_dino() -> Any:
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=4, out_indices=[2, 3, 4]
        ),
        text_config=BertConfig(**SMALL, vocab_size=len(WORDS)),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=6,
        num_feature_levels=3,
        max_text_len=16,
    )
    return GroundingDinoForObjectDetection(config)


def save_detector(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """A folder with random weights; kind is owlv2, owlvit or grounding-dino."""
    torch.manual_seed(seed)
    size = {"height": 64, "width": 64}
    if kind == "owlv2":
        model = _owl(Owlv2Config, Owlv2ForObjectDetection)
        processor: Any = Owlv2Processor(Owlv2ImageProcessorPil(size=size), _tokenizer(16))
    elif kind == "owlvit":
        model = _owl(OwlViTConfig, OwlViTForObjectDetection)
        images = OwlViTImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
        processor = OwlViTProcessor(images, _tokenizer(16))
    else:
        model = _grounding_dino()
        images = GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96})
        processor = GroundingDinoProcessor(images, _tokenizer(16))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
