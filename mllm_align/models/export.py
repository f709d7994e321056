"""What to serve: the adapter alone, or one merged 16-bit model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from peft import PeftConfig

from mllm_align.families import inner, unwrap
from mllm_align.models.arguments import ModelArguments
from mllm_align.models.composite import check_composite, make_composite
from mllm_align.models.loading import load_model, load_processor
from mllm_align.models.soft_prompts import soft_prompts_of, tell_processor
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixer_files import save_mixer
from mllm_align.vision.object_expert import SETTINGS_FILE, WEIGHTS_FILE

# Of a trained embedding, beside the weights (`mllm_align.encoding` writes and reads them).
EMBEDDING_FILES = ("embedding.json", "embedding.safetensors")
TRAINING_FILES = ("optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "objective.safetensors")


def merge_and_export(
    adapter: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    base: str | None = None,
    dtype: str = "bfloat16",
    merge: bool = True,
    overwrite: bool = False,
    device: str | None = None,
    encoders: Sequence[str] | None = None,
    composite: bool = False,
) -> Path:
    """Writes a folder that needs nothing of ours to be served.

    A kept object expert goes along, as files beside the weights (`vision.load_expert`); so does what makes embeddings
    (`encoding.Encoder`), and a mixer, which `load_model` attaches again. Without ours such a folder loads as a stock
    model that mixes nothing; a composite one is loaded by `transformers` alone once `mllm_align.vision.composite` has
    been imported, and not at all before. Soft prompts are tokens of it like any other, whose text `soft_prompts.json`
    tells.

    Args:
        adapter: Folder of a trained adapter.
        output_dir: Where to; must be empty or missing.
        base: Hub id or folder of the base; the one the adapter names by default.
        dtype: Of the merged model. The base is loaded anew in it, never merged into quantised weights.
        merge: True for one merged model, False for the adapter with its processor, without the run's state.
        overwrite: Replace what is in `output_dir`.
        device: Where to merge.
        encoders: Where the further vision encoders of a mixer are now, if they were moved.
        composite: Put the further encoders of a mixer into the tower, with all their weights (`make_composite`).

    Returns:
        `output_dir`.

    Raises:
        ValueError: If there is no adapter, its base is another one, `output_dir` is a file or has something in it,
            LoRA is to be merged into an encoder of 4 bits, or a composite cannot be made of such a model.
    """
    source, target = Path(adapter), Path(output_dir)
    if not (source / "adapter_config.json").is_file():
        raise ValueError(f"no adapter in {str(source)!r}: adapter_config.json is missing")
    if target.resolve() == source.resolve():
        raise ValueError(f"output_dir {str(target)!r} is the adapter's own folder: name another")
    refuse_file(target)
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise ValueError(f"{str(target)!r} has something in it: name another folder or pass overwrite (--overwrite)")
    name = base or PeftConfig.from_pretrained(str(source)).base_model_name_or_path
    if composite and not merge:
        raise ValueError("a composite is one merged model: export with merge (--merge), or leave composite out")
    if merge:
        arguments = ModelArguments(model_name_or_path=name, dtype=dtype)
        model, processor = load_model(arguments, source, device=device, encoders=encoders)
        mixed = mixed_of(inner(unwrap(model)))
        if mixed is not None and any(each.spec.load_in_4bit and each.spec.train == "lora" for each in mixed.seeing):
            raise ValueError(
                "an encoder has 4-bit weights and LoRA layers of its own, which do not become one without a loss: "
                "export without --merge, or train the encoder with load_in_4bit off"
            )
        merged = model.merge_and_unload()
        before = make_composite(merged, processor) if composite else None
        clear_folder(target)
        merged.save_pretrained(target)
        # As it was before a mixer told it of another number of tokens: without the mixer the model is a stock one.
        stock = load_processor(str(name))
        soft = soft_prompts_of(merged)
        if soft is not None:
            tell_processor(stock, soft)
            soft.merged().save(target)
        stock.save_pretrained(target)
        if mixed_of(inner(merged)) is not None:
            save_mixer(merged, target, processor)
        # An object expert stays, and cannot be merged; so do the heads of an embedding.
        for name in (WEIGHTS_FILE, SETTINGS_FILE, *EMBEDDING_FILES):
            if (source / name).is_file():
                shutil.copy2(source / name, target / name)
        if before is not None:
            check_composite(target, stock, before, dtype=merged.dtype, device=merged.device)
    else:
        clear_folder(target)
        _copy_adapter(source, target)
    return target


def refuse_file(target: Path) -> None:
    """Refuses a folder that cannot be made, because it or one above it is a file.

    Raises:
        ValueError: Naming the file, which is kept.
    """
    found = next((path for path in (target, *target.parents) if path.exists()), target)
    if found.exists() and not found.is_dir():
        raise ValueError(f"{str(found)!r} is a file and is kept: name a folder to write to")


def clear_folder(target: Path) -> None:
    """An empty folder at `target`; only an earlier export is ever deleted."""
    if target.exists() and any(target.iterdir()):
        if not any((target / name).is_file() for name in ("config.json", "adapter_config.json", "modules.json")):
            raise ValueError(f"{str(target)!r} holds something else than a model and is kept: name another folder")
        shutil.rmtree(target)
    target.mkdir(parents=True, exist_ok=True)


def _copy_adapter(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in TRAINING_FILES and not file.name.startswith("rng_state"):
            shutil.copy2(file, target / file.name)
