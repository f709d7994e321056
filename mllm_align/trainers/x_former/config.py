"""Settings of X-Former's first stage: those of `transformers.TrainingArguments`, and what the stage needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from mllm_align.trainers.x_former.model import LOSSES


@dataclass
class XFormerConfig(TrainingArguments):
    """Settings of `train_x_former`; every field of `TrainingArguments` works too.

    The paper trains for 9 epochs of 14 million pairs, masks half of the patches, and adds the four losses; so much of
    it we know. The rest of the defaults is BLIP-2's (arXiv:2301.12597, section 3.4), but for the batch, which is what
    one GPU holds.

    Args:
        num_queries: Tokens per image that the language model will read.
        width: Of the queries.
        depth: Layers of the Q-Former.
        heads: Of each attention.
        cross_every: Every how many layers the own encoder's features are read.
        mask_ratio: Share of patches that the autoencoder does not see.
        itc_weight: Of image-text contrast.
        itm_weight: Of image-text matching.
        itg_weight: Of image-grounded generation.
        reconstruction_weight: Of the reconstruction; 0 is the paper's ablation that collapses.
        smoothing: Of the contrast's targets.
        max_text_length: Tokens of a text; longer ones are cut.
        text_column: Column of the captions.
    """

    num_queries: int = field(default=32, metadata={"help": "Tokens per image for the language model."})
    width: int = field(default=768, metadata={"help": "Of the queries."})
    depth: int = field(default=12, metadata={"help": "Layers of the Q-Former."})
    heads: int = field(default=12, metadata={"help": "Of each attention."})
    cross_every: int = field(default=2, metadata={"help": "Every how many layers the image is read."})
    mask_ratio: float = field(default=0.5, metadata={"help": "Share of patches that are not seen."})
    itc_weight: float = field(default=1.0, metadata={"help": "Of image-text contrast."})
    itm_weight: float = field(default=1.0, metadata={"help": "Of image-text matching."})
    itg_weight: float = field(default=1.0, metadata={"help": "Of generation."})
    reconstruction_weight: float = field(default=1.0, metadata={"help": "Of the reconstruction."})
    smoothing: float = field(default=0.1, metadata={"help": "Of the contrast's targets."})
    max_text_length: int = field(default=32, metadata={"help": "Tokens of a text."})
    text_column: str = field(default="chosen", metadata={"help": "Column of the captions."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of AdamW."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Of AdamW."})
    num_train_epochs: float = field(default=9, metadata={"help": "Passes over the rows."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows of a process's batch."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "Shape of the learning rate schedule."})
    warmup_steps: float = field(default=0.02, metadata={"help": "Steps of warm-up, or below 1 a share of all."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept."})
    report_to: Any = field(default="none", metadata={"help": "Where the log goes."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: rows are read by column."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Must stay on: all ranks need equal batches."})

    def __post_init__(self) -> None:
        """Refuses what trains nothing."""
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be above 0 and below 1, not {self.mask_ratio}")
        if min(self.loss_weights.values()) < 0 or not any(self.loss_weights.values()):
            raise ValueError(f"weights of losses must be 0 or more, and one above 0, not {self.loss_weights}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, not {self.smoothing}")
        if self.max_text_length < 1:
            raise ValueError(f"max_text_length must be at least 1, not {self.max_text_length}")
        if self.per_device_train_batch_size < 2:
            raise ValueError("per_device_train_batch_size must be at least 2: wrong partners come from the batch")
        if self.remove_unused_columns or not self.dataloader_drop_last:
            raise ValueError("remove_unused_columns must be off and dataloader_drop_last on")

    @property
    def loss_weights(self) -> dict[str, float]:
        """By the name of the loss."""
        return {name: float(getattr(self, f"{name}_weight")) for name in LOSSES}

    @property
    def mixer_options(self) -> dict[str, int]:
        """Of the X-Former."""
        return {name: getattr(self, name) for name in ("num_queries", "width", "depth", "heads", "cross_every")}
