"""A trained encoder as a folder that `SentenceTransformer` loads with its own modules alone."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.utils.import_utils import is_torchvision_available

from mllm_align.contract import Embedding
from mllm_align.data.pixels import pixel_options
from mllm_align.encoding.chat_template import asking_template, check_tokens
from mllm_align.encoding.files import load_embedding
from mllm_align.encoding.loading import base_of
from mllm_align.encoding.stock_modules import Stock, write_modules
from mllm_align.families import Family, family_of
from mllm_align.families.image_only import IMAGE_ONLY
from mllm_align.models import load_model, load_processor, merge_and_export, model_path
from mllm_align.models.export import EMBEDDING_FILES, clear_folder, refuse_file
from mllm_align.models.mixing import find_mixer
from mllm_align.models.soft_prompts import read_soft_prompts, tell_processor
from mllm_align.signals.features import layer_of

logger = logging.getLogger(__name__)

POOLING = {"last": "lasttoken", "mean": "mean"}
# With a head for each modality the model lies below: one module that routes to both comes first.
BACKBONE = "backbone"


def export_sentence_transformers(
    folder: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    dimensions: int | None = None,
    base: str | None = None,
    dtype: str = "bfloat16",
    overwrite: bool = False,
    device: str | None = None,
) -> Path:
    """Writes a folder for `SentenceTransformer(output_dir)`, without code of ours and without `trust_remote_code`.

    LoRA is merged. The chat template is given the embedding's instructions: `encode` of an image (PIL, the path of an
    image file, or `{"image": ...}`) asks of it what training asked, `encode` of a text likewise; a conversation, or an
    image together with a text, is read as it is. Then come pooling, the linear heads, and unit length. Where the two
    modalities have heads of their own, one call of `encode` takes one modality. A model whose processor also reads
    video (Qwen-VL, InternVL, ...) is to be exported, and is loaded, where torchvision is installed.

    Args:
        folder: Of a run, a checkpoint or a merged export that has `embedding.json`.
        output_dir: Where to; must be empty or missing.
        dimensions: Leading numbers of a vector that are kept (Matryoshka); None for all.
        base: Hub id or folder of the base; the one the adapter names by default.
        dtype: Of the merged model.
        overwrite: Replace what is in `output_dir`.
        device: Where to merge.

    Returns:
        `output_dir`. Its chat template is for embeddings: it is no folder to generate from.

    Raises:
        ValueError: If there is no embedding, `output_dir` is a file or has something in it, or stock modules cannot do
            what the embedding does: learned-query pooling, tokens of the projector, responses to prompts, a mixer, the
            last layer without its norm.
    """
    source, target = Path(folder), Path(output_dir)
    refuse_file(target)
    occupied = target.exists() and any(target.iterdir())
    # An own folder has something in it, too, and wants another mend.
    if occupied and not overwrite and target.resolve() != source.resolve():
        raise ValueError(f"{str(target)!r} has something in it: name another folder or pass overwrite (--overwrite)")
    kept = load_embedding(source)
    embedding = kept.embedding
    check_stock(embedding)
    adapter = (source / "adapter_config.json").is_file()
    name = model_path(base or (base_of(str(source)) if adapter else source))
    if target.resolve() in (source.resolve(), Path(name).resolve()):
        raise ValueError(f"output_dir {str(target)!r} is where the model itself lies: name another")
    if find_mixer(source) is not None or find_mixer(name) is not None:
        raise ValueError(f"the model in {str(source)!r} has a mixer, which no stock model has: use Encoder")
    config = AutoConfig.from_pretrained(name)
    width, depth = config.get_text_config().hidden_size, config.get_text_config().num_hidden_layers
    heads, output = _heads(embedding, width, dimensions), _output(embedding, depth)
    place = target / BACKBONE if "image" in heads else target
    asking = _asking_processor(name, source, embedding, family_of(config))
    clear_folder(target)
    if adapter:
        merge_and_export(source, place, base=name, dtype=dtype, device=device)
    else:
        _copy_model(source, place, dtype, device)
    asking.save_pretrained(place)
    for file in EMBEDDING_FILES:  # with this chat template `Encoder` would ask twice
        (place / file).unlink(missing_ok=True)
    pooling = POOLING[embedding.features["text"].pooling]
    images = pixel_options(asking, kept.min_pixels, kept.max_pixels)
    write_modules(target, Stock(width, pooling, output, heads, BACKBONE, images))
    return target


def check_stock(embedding: Embedding) -> None:
    """Refuses an embedding that stock modules of sentence-transformers cannot make.

    Raises:
        ValueError: With the reason.
    """
    image, text = embedding.features["image"], embedding.features["text"]
    mend = "; use mllm_align.encoding.Encoder"
    for side, feature in (("image", image), ("text", text)):
        if feature.source == "projector":
            raise ValueError(f"the {side} side is of the projector's tokens, which stock modules do not see{mend}")
        if feature.source == "text":
            raise ValueError(f"the {side} side is of responses to prompts, which stock modules do not take{mend}")
        if feature.pooling not in POOLING:
            raise ValueError(f"the {side} side is pooled by a learned query, which is no stock module{mend}")
    if len([head for head in embedding.heads.values() if head.projection is not None]) == 1:
        raise ValueError(f"one side has a linear head and the other has none, which stock modules do not have{mend}")
    if (image.pooling, image.layer) != (text.pooling, text.layer):
        raise ValueError(f"the two sides are of different layers or poolings, stock modules have one{mend}")


def _heads(embedding: Embedding, width: int, dimensions: int | None) -> dict[str, Tensor]:
    """Linear maps (out, in): of each side where they have heads, else of "" where dimensions are left out."""
    weights = {
        side: head.projection.weight.detach().float() for side, head in embedding.heads.items() if head.projection
    }
    if not weights:
        return {} if dimensions is None else {"": torch.eye(width)[: _checked(dimensions, width)]}
    if dimensions is None:
        return weights
    return {side: weight[: _checked(dimensions, len(weight))] for side, weight in weights.items()}


def _output(embedding: Embedding, depth: int) -> list[str | int]:
    """Where transformers hands out the states that are read."""
    layer = layer_of(embedding.features["text"], depth)
    if layer == depth:
        raise ValueError(
            f"layer {layer} is the last, without the norm behind it, which transformers does not hand out: train with "
            "a layer below, or None for the normalised output"
        )
    return ["last_hidden_state"] if layer is None else ["hidden_states", layer]


def _checked(dimensions: int, width: int) -> int:
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= width:
        raise ValueError(f"dimensions must be a whole number from 1 to {width}, got {dimensions!r}")
    return dimensions


def _copy_model(source: Path, place: Path, dtype: str, device: Any) -> None:
    model, processor = load_model(source, device=device, dtype=dtype)
    model.save_pretrained(place)
    processor.save_pretrained(place)


def _asking_processor(name: str, source: Path, embedding: Embedding, family: Family) -> Any:
    """The model's processor with the asking template, once it is known to read the same tokens."""
    processor = load_processor(name)
    soft = read_soft_prompts(source)
    if soft is not None:
        tell_processor(processor, soft)
    replace = {} if soft is None else soft.replace
    asking = copy.deepcopy(processor)
    asking.chat_template = asking_template(processor, embedding, replace)
    check_tokens(processor, asking, family, embedding, replace)
    if type(processor).__name__ in {each.__name__ for each in IMAGE_ONLY.values()} and not is_torchvision_available():
        logger.warning(
            "%s also reads video, and torchvision is not installed: sentence-transformers will load the export only "
            "from a machine with torchvision, where it has to be made, too",
            type(processor).__name__,
        )
    return asking
