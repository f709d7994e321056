"""What lies beside the saved weights: the objective's state, the base's identity, the recipe, the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel

from mllm_align.families import unwrap
from mllm_align.models.identity import save_base_identity
from mllm_align.trainers.card import CardFacts, model_card
from mllm_align.trainers.checkpoint import save_objective

if TYPE_CHECKING:
    from mllm_align.trainers.trainer import AlignTrainer

RECIPE_FILE = "recipe.yaml"
CARD_FILE = "README.md"


def save_beside_model(trainer: AlignTrainer, folder: str) -> None:
    """Everything but the weights, the processor and the trainer's state."""
    save_objective(trainer.objective, folder)
    if isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        save_base_identity(trainer.base_probe, trainer.base_name, folder)
    if trainer.recipe:
        (Path(folder) / RECIPE_FILE).write_text(trainer.recipe, encoding="utf-8")
    write_card(trainer, folder)


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
        quantization=_quantization(quantization),
        steps=trainer.state.global_step,
        log=trainer.state.log_history,
        recipe=trainer.recipe,
        decisions=tuple(map(str, trainer.decisions)),
    )
    (Path(folder) / CARD_FILE).write_text(model_card(facts), encoding="utf-8")


def _quantization(config: object) -> str | None:
    if config is None:
        return None
    if getattr(config, "load_in_4bit", False):
        double = ", double quantisation" if getattr(config, "bnb_4bit_use_double_quant", False) else ""
        return f"4 bits ({getattr(config, 'bnb_4bit_quant_type', '?')}{double})"
    return str(getattr(config, "quant_method", "a quantised form"))
