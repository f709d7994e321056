"""The files that sentence-transformers reads: which of its own modules follow one another, with what settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

# Since 6.1 images are turned into messages, and the modules have these names.
VERSION = "6.1.0"
PACKAGE = "sentence_transformers"
TRANSFORMER = f"{PACKAGE}.base.modules.transformer.Transformer"
POOLING = f"{PACKAGE}.sentence_transformer.modules.pooling.Pooling"
DENSE = f"{PACKAGE}.base.modules.dense.Dense"
NORMALIZE = f"{PACKAGE}.base.modules.normalize.Normalize"
ROUTER = f"{PACKAGE}.base.modules.router.Router"
VECTOR = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


class Stock(NamedTuple):
    """What the modules do.

    Attributes:
        width: d of the language model.
        pooling: "lasttoken" or "mean".
        output: Where in the model's output the states are: names and places, one inside the other.
        heads: Linear maps (out, d): of "image" and "text", of "" for both, or none.
        backbone: Folder of the model where each modality has a head of its own.
        images: Options of the image processor.
    """

    width: int
    pooling: str
    output: Sequence[str | int]
    heads: Mapping[str, Tensor]
    backbone: str
    images: Mapping[str, Any]


def write_modules(folder: Path, stock: Stock) -> None:
    """Writes what lies beside a model that is there already."""
    settings = {
        "__version__": {PACKAGE: VERSION},
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write(folder / "config_sentence_transformers.json", settings)
    first = _write_router(folder, stock) if "image" in stock.heads else _write_plain(folder, stock)
    modules = [*first, ("Normalize", NORMALIZE, VECTOR)]
    listed = []
    for number, (name, kind, config) in enumerate(modules):
        path = f"{number}_{name}" if number else ""
        if number:
            _write(folder / path / "config.json", config)
        listed.append({"idx": number, "name": str(number), "path": path, "type": kind})
    _write(folder / "modules.json", listed)


def _write_plain(folder: Path, stock: Stock) -> list[tuple[str, str, dict[str, Any]]]:
    """Model, pooling, and where there is one the head for both modalities."""
    _write(folder / "sentence_bert_config.json", _transformer(stock))
    modules = [("Transformer", TRANSFORMER, {}), ("Pooling", POOLING, _pooling(stock))]
    if "" in stock.heads:
        modules.append(("Dense", DENSE, _dense(stock.heads[""])))
        _write_weights(folder / "2_Dense", stock.heads[""])
    return modules


def _write_router(folder: Path, stock: Stock) -> list[tuple[str, str, dict[str, Any]]]:
    """One module with a route for images and one for texts, both of the one model and the one pooling."""
    _write(folder / stock.backbone / "sentence_bert_config.json", _transformer(stock))
    _write(folder / "pooling" / "config.json", _pooling(stock))
    types = {stock.backbone: TRANSFORMER, "pooling": POOLING}
    structure = {}
    for side, weight in stock.heads.items():
        types[f"{side}_head"] = DENSE
        structure[side] = [stock.backbone, "pooling", f"{side}_head"]
        _write(folder / f"{side}_head" / "config.json", _dense(weight))
        _write_weights(folder / f"{side}_head", weight)
    # Without a default: a call with both modalities is refused, not read with the wrong head.
    parameters = {"default_route": None, "allow_empty_key": False}
    _write(folder / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    return [("Router", ROUTER, {})]


def _transformer(stock: Stock) -> dict[str, Any]:
    output = list(stock.output) if len(stock.output) > 1 else stock.output[0]
    through = {"method": "forward", "method_output_name": output}
    processing: dict[str, Any] = {"text": {"truncation": False}}  # the end, where the vector is read, must not be cut
    if stock.images:
        processing["image"] = dict(stock.images)
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": through,
            "image": through,
            "image+text": through,
            "message": {**through, "format": "structured"},
        },
        "module_output_name": "token_embeddings",
        "processing_kwargs": processing,
    }


def _pooling(stock: Stock) -> dict[str, Any]:
    return {"embedding_dimension": stock.width, "pooling_mode": stock.pooling, "include_prompt": True}


def _dense(weight: Tensor) -> dict[str, Any]:
    return {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
        **VECTOR,
    }


def _write_weights(folder: Path, weight: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"linear.weight": weight.detach().float().cpu().contiguous()}, folder / "model.safetensors")


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
