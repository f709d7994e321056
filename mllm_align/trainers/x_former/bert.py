"""BERT's weights as the Q-Former's start, as BLIP-2 begins (arXiv:2301.12597, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BertForMaskedLM

from mllm_align.trainers.x_former.words import Words
from mllm_align.vision.mixers.q_former import QFormer
from mllm_align.vision.teacher_parts import first_line, quiet


@torch.no_grad()
def start_from_bert(q_former: QFormer, words: Words, name: str) -> None:
    """Puts BERT's weights into the layers, both feed-forward parts, the embeddings and the head.

    The queries and their attention to the image begin anew. What BERT adds to every token of a first sentence goes
    into the positions.

    Args:
        q_former: Of BERT's width and depth.
        words: With a vocabulary as large as BERT's.
        name: Of a BERT: Hub id or folder.

    Raises:
        ValueError: If there is none, or its sizes are others.
    """
    try:
        config: Any = AutoConfig.from_pretrained(name)
        if config.model_type != "bert":
            raise ValueError(f"it is a {config.model_type}")
        with quiet():
            bert: Any = BertForMaskedLM.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"no BERT could be loaded from {name!r}: {first_line(error)}") from None
    _check(config, q_former, words, name)
    embeddings, head = bert.bert.embeddings, bert.cls.predictions
    words.embedding.weight[: config.vocab_size] = embeddings.word_embeddings.weight
    positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    words.position.weight.copy_(positions[: len(words.position.weight)])
    _copy(embeddings.LayerNorm, words.norm)
    _copy(embeddings.LayerNorm, q_former.norm)
    _copy(head.transform.dense, words.dense)
    _copy(head.transform.LayerNorm, words.dense_norm)
    words.bias[: config.vocab_size] = head.bias
    layers: Any = q_former.layers
    for theirs, layer, fed in zip(bert.bert.encoder.layer, layers, words.feedforwards, strict=True):
        for part in ("query", "key", "value"):
            _copy(getattr(theirs.attention.self, part), getattr(layer.attention, part))
        _copy(theirs.attention.output.dense, layer.attention.output)
        _copy(theirs.attention.output.LayerNorm, layer.norm)
        for ours in (layer.feedforward, fed):
            _copy(theirs.intermediate.dense, ours.up)
            _copy(theirs.output.dense, ours.down)
            _copy(theirs.output.LayerNorm, ours.norm)


def _copy(theirs: nn.Module, ours: Any) -> None:
    ours.load_state_dict(theirs.state_dict())


def _check(config: Any, q_former: QFormer, words: Words, name: str) -> None:
    layer: Any = q_former.layers[0]
    queries: Tensor = q_former.queries
    sizes = {
        "width": (config.hidden_size, queries.shape[1]),
        "depth": (config.num_hidden_layers, len(q_former.layers)),
        "heads": (config.num_attention_heads, layer.attention.heads),
        "feed-forward width": (config.intermediate_size, layer.feedforward.up.out_features),
        "vocabulary": (config.vocab_size, words.vocabulary),
    }
    for what, (theirs, ours) in sizes.items():
        if theirs != ours:
            raise ValueError(f"{name!r} has a {what} of {theirs}, the Q-Former {ours}: they must be the same")
    if config.hidden_act != "gelu":
        raise ValueError(f"{name!r} has the activation {config.hidden_act!r}, the Q-Former gelu")
    longest = len(words.position.weight)
    if longest > config.max_position_embeddings:
        raise ValueError(f"{name!r} has {config.max_position_embeddings} positions: max_text_length is too large")
