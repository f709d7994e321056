"""Settings of a run: those of `transformers.TrainingArguments`, defaults that suit alignment, and our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

OVERFLOW = ("error", "drop", "truncate")
PACKING = ("auto", "off")


@dataclass
class AlignConfig(TrainingArguments):
    """Settings of `AlignTrainer`; every field of `TrainingArguments` works too.

    Args:
        overwrite_output_dir: Allow an output folder with something in it; checkpoints of the earlier run are removed.
        max_length: Longest prompt plus response in tokens, image tokens counted; None for no limit.
        on_overflow: What happens to a longer row: "error" refuses it, "drop" leaves it out and counts it,
            "truncate" shortens its response. Image tokens are never cut.
        min_pixels: Smallest size of an image, for processors that resize by area.
        max_pixels: Largest size of an image, likewise.
        projector_learning_rate: Learning rate of whatever trains in the projector; None for `learning_rate`.
        mixer_learning_rate: Learning rate of modules that join several vision encoders; None for `learning_rate`.
        head_learning_rate: Learning rate of the objective's own parameters; None for `learning_rate`.
        packing: "auto" shares prompts between responses where the model allows it, "off" scores row by row.
        logits_chunk_size: Response positions whose logits exist at one time.
        disable_dropout: Set every dropout rate to zero, so that policy and reference differ by what was learned alone.
        check_data: Read every row of a map-style dataset once before training and refuse what cannot be trained on.
        model_init_kwargs: Fields of `ModelArguments`, where the trainer is given a model's name.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "Shape of the learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up, or below 1 a share of all steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bfloat16 autocast; on by default where the GPU has it."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass; on by default on a GPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: rows are read by column."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained parameter takes part on every rank."}
    )

    overwrite_output_dir: bool = field(default=False, metadata={"help": "Allow an output folder that is not empty."})
    max_length: int | None = field(default=None, metadata={"help": "Longest row in tokens."})
    on_overflow: str = field(default="error", metadata={"help": "error, drop or truncate."})
    min_pixels: int | None = field(default=None, metadata={"help": "Smallest image area."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest image area."})
    projector_learning_rate: float | None = field(default=None, metadata={"help": "Of the projector."})
    mixer_learning_rate: float | None = field(default=None, metadata={"help": "Of mixers."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "Of the objective's parameters."})
    packing: str = field(default="auto", metadata={"help": "auto or off."})
    logits_chunk_size: int = field(default=1024, metadata={"help": "Positions of logits held at one time."})
    disable_dropout: bool = field(default=True, metadata={"help": "Set all dropout rates to zero."})
    check_data: bool = field(default=True, metadata={"help": "Check every row before training."})
    model_init_kwargs: dict | None = field(default=None, metadata={"help": "Fields of ModelArguments."})

    def __post_init__(self) -> None:
        """Fills in what depends on the machine, and refuses settings that cannot work.

        Raises:
            ValueError: If a setting is out of its range or would break the measuring.
        """
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            self.bf16 = on_gpu and not self.fp16 and torch.cuda.is_bf16_supported()
        if self.gradient_checkpointing is None and self.activation_checkpointing is None:
            self.activation_checkpointing = on_gpu
        elif self.activation_checkpointing is None:
            # transformers renamed the switch; both names are accepted here.
            self.activation_checkpointing, self.gradient_checkpointing = self.gradient_checkpointing, None
        if self.activation_checkpointing_kwargs is None and self.gradient_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        if self.data_seed is None:
            # Else the order of rows would hang on whatever seeded torch last, and a resumed run might see another.
            self.data_seed = self.seed
        super().__post_init__()
        accelerator: Any = self.accelerator_config
        if accelerator.dispatch_batches is None:
            accelerator.dispatch_batches = False
        self._check_choices()

    def _check_choices(self) -> None:
        if self.on_overflow not in OVERFLOW:
            raise ValueError(f"on_overflow {self.on_overflow!r} is none of {', '.join(OVERFLOW)}")
        if self.packing not in PACKING:
            raise ValueError(f"packing {self.packing!r} is none of {', '.join(PACKING)}")
        if self.logits_chunk_size < 1:
            raise ValueError(f"logits_chunk_size must be at least 1, not {self.logits_chunk_size}")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be off: it would drop the images and responses")
        accelerator: Any = self.accelerator_config
        if accelerator.dispatch_batches:
            raise ValueError("dispatch_batches must be off: it would cut batches in the middle of their rows")
        if self.torch_compile:
            raise ValueError("torch_compile must be off: the measuring calls parts of the model, not its forward")
