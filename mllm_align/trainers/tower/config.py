"""Settings of tuning a tower: those of `transformers.TrainingArguments`, and what the stages need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

STARTS = ("original", "previous")


@dataclass
class TowerConfig(TrainingArguments):
    """Settings of `train_stages`; every field of `TrainingArguments` works too, and holds for each stage.

    Args:
        num_stages: Towers in the end, whose features are integrated. The first is the model as given (stage 0 of MCL's
            CLIP is the pretrained one), unless `train_first`.
        num_clusters: Of the k-means of each stage's features (MCL: 10); joined, the clusters of two stages are up to
            the square of it.
        min_cluster_rows: Rows of a joined cluster; a smaller one is put with the nearest of the same cluster of the
            stages before. None for a batch of all processes, so that batches can be filled.
        train_first: Train the first stage, too, with the other rows of the whole batch as negatives.
        start_from: Where a stage starts, at the model as given ("original", as the paper) or the stage before it
            ("previous").
        random_negatives: Draw batches and negatives from everywhere in every stage: the control, as many stages and
            steps without the clusters.
        text_column: Column of the captions.
        per_device_eval_batch_size: Pictures or captions at a time where vectors are made of all of them.
        overwrite_output_dir: Start again in a folder with stages of other settings.
    """

    num_stages: int = field(default=3, metadata={"help": "Towers in the end, the given one counted."})
    num_clusters: int = field(default=10, metadata={"help": "Of the k-means of each stage's features."})
    min_cluster_rows: int | None = field(default=None, metadata={"help": "Rows of a joined cluster."})
    train_first: bool = field(default=False, metadata={"help": "Train the first stage, too."})
    start_from: str = field(default="original", metadata={"help": "Where a stage starts: original or previous."})
    random_negatives: bool = field(default=False, metadata={"help": "The control without clusters."})
    text_column: str = field(default="chosen", metadata={"help": "Column of the captions."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start again in a folder of other settings."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows of a process's batch."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "Shape of the learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up, or below 1 a share of all."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept of a stage."})
    report_to: Any = field(default="none", metadata={"help": "Where the log goes."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: rows are read by column."})

    def __post_init__(self) -> None:
        """Refuses what makes no stages."""
        super().__post_init__()
        least = 1 if self.train_first else 2
        if self.num_stages < least:
            raise ValueError(
                f"num_stages {self.num_stages} trains nothing: the first is the model as given; set it to {least} or "
                "more (train_first trains the first, too)"
            )
        if self.num_clusters < 2:
            raise ValueError(f"num_clusters must be at least 2, not {self.num_clusters}")
        if self.min_cluster_rows is not None and self.min_cluster_rows < 2:
            raise ValueError(f"min_cluster_rows must be at least 2 or None, not {self.min_cluster_rows}")
        if self.start_from not in STARTS:
            raise ValueError(f"start_from {self.start_from!r} is none of {', '.join(STARTS)}")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be off: it would drop the images")
        if self.dataloader_drop_last:
            raise ValueError("dataloader_drop_last must be off: a batch of what is left of clusters is kept")

    @property
    def global_batch_size(self) -> int:
        """Rows that find negatives in each other: of all processes at one time."""
        return self.per_device_train_batch_size * self.world_size

    @property
    def cluster_rows(self) -> int:
        """Rows of a joined cluster at the least."""
        return self.min_cluster_rows or self.global_batch_size
