"""What lies beside the saved weights: the objective's state, what it keeps, the base's identity, recipe, card."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mllm_align.encoding.files import embedding_of, save_embedding
from mllm_align.families import family_of, inner, unwrap
from mllm_align.models.export import EMBEDDING_FILES
from mllm_align.models.identity import save_base_identity
from mllm_align.models.soft_prompts import soft_prompts_of
from mllm_align.trainers.card import CardFacts, model_card
from mllm_align.trainers.checkpoint import save_objective
from mllm_align.trainers.heads import kept_experts
from mllm_align.trainers.mined_batches import save_mined
from mllm_align.trainers.mixer_memory import view_cells
from mllm_align.trainers.shares import source_shares
from mllm_align.trainers.teachers import Teachers
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixer_files import inserted_places, kind_name, part_name, save_mixer
from mllm_align.vision.object_expert import ExpertFacts, write_expert

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
CARD_FILE = "README.md"


def facts_of_experts(objective: Any, teachers: Teachers) -> list[ExpertFacts]:
    """What is saved of each expert that an objective keeps, beside its adapter; while its teacher is in memory.

    Raises:
        ValueError: If it is no vision model, or there are two; or two embeddings that are not the same.
    """
    embedding_of(objective)  # what could not be saved is refused before anything trains
    kept = kept_experts(objective)
    if len(kept) > 1:
        raise ValueError(
            f"parts of the objective keep {len(kept)} vision experts, one can be saved beside the model: leave one"
        )
    return [ExpertFacts.of(teachers.loaded(each.teacher), type(objective).__name__) for each in kept]


def save_beside_model(trainer: AlignTrainer, folder: str) -> None:
    """Everything but the weights, the processor and the trainer's state."""
    save_objective(trainer.objective, folder)
    for kept, facts in zip(kept_experts(trainer.objective), trainer.experts, strict=True):
        write_expert(folder, kept.adapter, facts, pool_first=True)
    embedding = embedding_of(trainer.objective)
    if embedding is not None:
        args = trainer.args
        save_embedding(embedding, folder, min_pixels=args.min_pixels, max_pixels=args.max_pixels)
    else:
        for name in EMBEDDING_FILES:  # of an earlier run, in a folder that is written over
            (Path(folder) / name).unlink(missing_ok=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if mixed_of(inner(unwrap(model))) is not None:
        whole = not trainer.is_deepspeed_enabled
        if not whole:
            _say_unchecked()
        carried = getattr(unwrap(model), "carried_weights", ())
        save_mixer(model, folder, trainer.processing_class if whole else None, carried=carried)
    soft = soft_prompts_of(model)
    if soft is not None:
        (soft if isinstance(model, PeftModel) else soft.merged()).save(folder)
    if isinstance(model, PeftModel):
        save_base_identity(trainer.base_probe, trainer.base_name, folder)
    if Path(folder).name.startswith(PREFIX_CHECKPOINT_DIR):
        # For a run that is resumed; what is exported has no use for it.
        if trainer.averaged is not None:
            trainer.averaged.save(folder)
        save_mined(trainer.sampler, folder)
    if trainer.recipe:
        (Path(folder) / RECIPE_FILE).write_text(trainer.recipe, encoding="utf-8")
    write_card(trainer, folder)


@cache
def _say_unchecked() -> None:
    """Once a process, not at every checkpoint."""
    logger.warning(
        "the mixer is saved without a fingerprint of the model's outputs, since deepspeed may hold the model in "
        "parts: load_model will not compare its outputs with those of this run; compare an evaluation of both"
    )


def write_card(trainer: AlignTrainer, folder: str) -> None:
    """Writes the model card, over one that PEFT may have left."""
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model)
    quantization = getattr(unwrap(model).config, "quantization_config", None)
    facts = CardFacts(
        base_model=trainer.base_name,
        objective=trainer.objective,
        sources=trainer.source_rows,
        settings=args,
        batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        adapter=model.active_peft_config if isinstance(model, PeftModel) else None,
        parts=_parts(model),
        quantization=_quantization(quantization),
        steps=trainer.state.global_step,
        log=trainer.state.log_history,
        recipe=trainer.recipe,
        decisions=tuple(map(str, trainer.decisions)),
        shares=tuple(map(str, source_shares(trainer.train_dataset))),
        mixer=_mixer(unwrap(model)),
    )
    (Path(folder) / CARD_FILE).write_text(model_card(facts), encoding="utf-8")


def _parts(model: Any) -> dict[str, str]:
    """What the adapter's trained copies are together, where a part of the model is copied with nothing left out."""
    config = getattr(model, "active_peft_config", None)
    hf, whole = unwrap(model), getattr(config, "modules_to_save", None) or ()
    scope_of = family_of(hf).scope_of
    left = {
        scope_of(name)
        for name, _ in hf.named_parameters()
        if ".modules_to_save." not in name and ".original_module." not in name
    }
    words = {"vision": "the vision tower", "projector": "the projector"}
    scopes = {name: scope_of(name) for name in whole}
    parts = {name: words[scope] for name, scope in scopes.items() if scope in words and scope not in left}
    mixed = mixed_of(inner(hf))
    if mixed is not None:
        parts |= {name: part_name(mixed, name) for name, scope in scopes.items() if scope in ("mixer", "encoders")}
    return parts


def _quantization(config: object) -> str | None:
    if config is None:
        return None
    if getattr(config, "load_in_4bit", False):
        double = ", double quantisation" if getattr(config, "bnb_4bit_use_double_quant", False) else ""
        return f"4 bits ({getattr(config, 'bnb_4bit_quant_type', '?')}{double})"
    return str(getattr(config, "quant_method", "a quantised form"))


def _mixer(hf: Any) -> str | None:
    """Kind, encoders with the revision that was loaded, and tokens of a view."""
    mixed = mixed_of(inner(hf))
    if mixed is None:
        return None
    encoders = []
    for each in mixed.seeing:
        own = getattr(each, "original_module", each)  # PEFT keeps a trained copy beside it
        commit = getattr(own.model.config, "_commit_hash", None)
        spec = own.spec if own.spec.revision or not commit else own.spec._replace(revision=commit)
        encoders.append(f"`{spec}`")
    cells = view_cells(hf.config, family_of(hf))[0]
    before, after = cells[0] * cells[1], mixed.kind.num_tokens(cells)
    told = "as many image tokens as without it" if after == before else f"{after} image tokens per view, not {before}"
    told += f", and layers of its own {inserted_places(mixed.kind)}" if mixed.kind.after else ""
    return f"{kind_name(mixed.kind)} of the model's own vision tower and {', '.join(encoders)}; {told}"
