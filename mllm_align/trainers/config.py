"""Settings of a run: those of `transformers.TrainingArguments`, defaults that suit alignment, and our own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from mllm_align.data.shares import Shares
from mllm_align.trainers.term_gradients import check_settings
from mllm_align.vision.regions import BOX_WEIGHTS

OVERFLOW = ("error", "drop", "truncate")
PACKING = ("auto", "off")
MOST_WORKERS = 4
SHARDED = (
    "{} holds the model in parts, for which all processes must make the same passes at the same time; here each makes "
    "as many as its own rows need: leave it out, so that every device has a whole model (torchrun alone). "
    "load_in_4bit, use_peft, activation_checkpointing and cache_gradients make that fit"
)


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
        vision_learning_rate: The same of whatever trains in the model's own vision tower, whole or by LoRA.
        mixer_learning_rate: Learning rate of modules that join several vision encoders; None for `learning_rate`.
        head_learning_rate: Learning rate of the objective's own parameters; None for `learning_rate`.
        float32_master_weights: Keep a float32 master of every weight that trains in bfloat16 (a copied projector or
            tower, or the whole model, as it was loaded; LoRA layers are float32 anyway). The optimiser steps the
            masters and the model has what they round to; else most steps of a small learning rate are rounded away.
            Costs 4 bytes a weight, the optimiser's states in float32 (with AdamW 4 bytes a weight more than in
            bfloat16), and during the step 4 bytes for its gradient; a checkpoint holds masters too. Off with
            deepspeed, which keeps masters of its own, with LOMO, layer-wise and schedule-free optimisers, and where
            `optim_args` asks for Kahan summation or stochastic rounding.
        packing: "auto" shares prompts between responses where the model allows it, "off" scores row by row.
        logits_chunk_size: Response positions whose logits exist at one time.
        max_tokens_per_forward: Padded tokens of one forward pass; a batch with more is run in several. A prompt with
            all its responses is never split: such a pack runs alone, however long it is.
        max_tokens_per_batch: Fill batches up to this many tokens (prompts that are shared count once, padding
            counted) with rows of similar length, in place of `per_device_train_batch_size` rows; None for off.
        batch_column: Column whose value the rows of a batch (of all processes) have in common as far as possible, such
            as a cluster's number: rows that are alike are then each other's negatives. With a column that tells how
            long or how detailed the texts are, no batch is easy for that alone. None for any rows.
        mine_batches_every: Fill batches with rows that are near to one another, as Sample4Geo does: which those are is
            mined anew after so many epochs, from what the objective embeds by then (one with `embedding`). All rows
            come once an epoch. None for off.
        mine_batches_from: Which rows are near before that: a column (a cluster, or a list of ids of the nearest rows),
            a .npy or .npz file with a vector for each row or for each row's image and text, or "model" for what the
            model says at the beginning. None for random batches. Without `mine_batches_every` it stays so.
        mine_batches_neighbours: Near rows that come with a row: one half the nearest, one half drawn from
            the others of twice as many.
        mine_batches_id: Column with what rows of one batch must not have in common, such as an image's id; None for
            their pictures.
        source_weights: Share of an epoch's rows by source name, relative to the others, exact and evenly spread: a
            small source repeats, all its rows once before any comes twice, of a large one every epoch has others. A
            source without one counts with the number of its rows; 0 leaves it out. None for every row once an epoch.
        source_caps: Rows of a source that are used at the most, by source name, drawn by the seed.
        redraw_caps: Draw other rows of a capped source in every epoch.
        epoch_rows: Rows of an epoch; None for as many as the sources have, after caps.
        region_pooling: How a box pools image tokens: "coverage", by how much of each it covers, or "roi_align", from
            evenly spread points in it.
        gather_negatives: Show the objective the rows of all processes at once, as one batch, so that what it compares
            within a batch it compares across all of them; gradients are those of one process with that batch. None
            for on where the objective reads features. Evaluation keeps to each process's own rows.
        cache_gradients: Measure first, then run each group of sequences again, one at a time, with the gradients of
            the objective with respect to what was measured: any batch fits, for one more forward pass.
        recompute_without_image: Keep no activations of sequences without an image; they are run again in the backward
            pass, which costs little where they are the short ones.
        precompute_ref_log_probs: Score the data under the reference once, before training, and keep the result on
            disk for every later epoch and run.
        precompute_ref_batch_size: Rows scored at one time then; None for the evaluation batch size.
        precompute_teachers: Run the teachers of an objective over the data once, before training, and keep what they
            say on disk; else they stay in memory and run as rows are collated, in the process that trains.
        cache_image_features: Keep on disk what the frozen vision tower makes of each image.
        cache_encoder_features: Keep on disk what the frozen further encoders of a mixer see of each image; tower,
            projector and mixer may train.
        cache_pixels: Keep on disk what the processor makes of each image.
        cache_dir: Where all of that is kept; None for `~/.cache/mllm_align`, or `$MLLM_ALIGN_CACHE`.
        memory_budget: Gigabytes of device memory that the run may take: switches that save memory are turned on
            until its estimate fits, and the log says which and why. None leaves all as they are.
        disable_dropout: Set every dropout rate to zero, so that policy and reference differ by what was learned alone.
        log_term_gradients_every: Log how hard each term pulls at each part of what trains, once in so many optimiser
            steps, from the first on: the L2 norm of the gradient of that term alone, over the whole batch and all
            processes, without its weight and before clipping, as "grad_norm/PART/TERM" (vision, projector, language,
            mixer, encoders; "head" is the objective's own). It changes nothing of the training; such a step takes a
            further backward pass for each term, and room for one more set of gradients (with accumulation one for
            each term). None for never.
        check_data: Read every row of a map-style dataset once before training and refuse what cannot be trained on.
        model_init_kwargs: Fields of `ModelArguments`, where the trainer is given a model's name.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "Shape of the learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up, or below 1 a share of all steps."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast; on by default where the GPU has it."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass; on by default on a GPU."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: rows are read by column."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained parameter takes part on every rank."}
    )
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that collate; by default none on a CPU, up to 4 beside a GPU."}
    )
    dataloader_persistent_workers: bool | None = field(
        default=None, metadata={"help": "Keep them from epoch to epoch; on by default where there are any."}
    )
    dataloader_pin_memory: bool | None = field(
        default=None, metadata={"help": "Pixels in page-locked memory; on by default beside a GPU."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Looking at every loss would wait for the device; the log tells the truth."}
    )

    overwrite_output_dir: bool = field(default=False, metadata={"help": "Allow an output folder that is not empty."})
    max_length: int | None = field(default=None, metadata={"help": "Longest row in tokens."})
    on_overflow: str = field(default="error", metadata={"help": "error, drop or truncate."})
    min_pixels: int | None = field(default=None, metadata={"help": "Smallest image area."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest image area."})
    projector_learning_rate: float | None = field(default=None, metadata={"help": "Of the projector."})
    vision_learning_rate: float | None = field(default=None, metadata={"help": "Of the vision tower."})
    mixer_learning_rate: float | None = field(default=None, metadata={"help": "Of mixers."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "Of the objective's parameters."})
    float32_master_weights: bool = field(
        default=True, metadata={"help": "Float32 masters of weights that train in bfloat16."}
    )
    packing: str = field(default="auto", metadata={"help": "auto or off."})
    logits_chunk_size: int = field(default=256, metadata={"help": "Positions of logits held at one time."})
    max_tokens_per_forward: int | None = field(
        default=None,
        metadata={
            "help": "Padded tokens of one forward pass; a prompt with all its responses is never split: such a pack "
            "runs alone."
        },
    )
    max_tokens_per_batch: int | None = field(default=None, metadata={"help": "Fill batches by tokens, not by rows."})
    batch_column: str | None = field(default=None, metadata={"help": "Fill a batch with rows of one value of this."})
    mine_batches_every: int | None = field(default=None, metadata={"help": "Epochs until near rows are mined anew."})
    mine_batches_from: str | None = field(default=None, metadata={"help": "Near rows: a column, a file, or model."})
    mine_batches_neighbours: int = field(default=64, metadata={"help": "Near rows that come with a row."})
    mine_batches_id: str | None = field(default=None, metadata={"help": "Column of which no batch has a value twice."})
    source_weights: dict[str, float] | None = field(default=None, metadata={"help": "Share of each source."})
    source_caps: dict[str, int] | None = field(default=None, metadata={"help": "Most rows of a source."})
    redraw_caps: bool = field(default=False, metadata={"help": "Other rows of a capped source in every epoch."})
    epoch_rows: int | None = field(default=None, metadata={"help": "Rows of an epoch."})
    region_pooling: str = field(default="coverage", metadata={"help": "coverage or roi_align."})
    gather_negatives: bool | None = field(
        default=None, metadata={"help": "The objective sees the rows of all processes; on where it reads features."}
    )
    cache_gradients: bool = field(default=False, metadata={"help": "Gradients group by group, for any batch size."})
    recompute_without_image: bool = field(default=False, metadata={"help": "Run views without image twice."})
    precompute_ref_log_probs: bool = field(default=False, metadata={"help": "Score the reference once, on disk."})
    precompute_ref_batch_size: int | None = field(default=None, metadata={"help": "Rows scored at one time then."})
    precompute_teachers: bool = field(default=True, metadata={"help": "Run teachers once, before training."})
    cache_image_features: bool = field(default=False, metadata={"help": "Keep the frozen tower's output on disk."})
    cache_encoder_features: bool = field(default=False, metadata={"help": "Keep further encoders' output on disk."})
    cache_pixels: bool = field(default=False, metadata={"help": "Keep processed images on disk."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where caches are kept."})
    memory_budget: float | None = field(default=None, metadata={"help": "Gigabytes the run may take."})
    disable_dropout: bool = field(default=True, metadata={"help": "Set all dropout rates to zero."})
    log_term_gradients_every: int | None = field(
        default=None, metadata={"help": "Steps between two measurings of each term's own gradient."}
    )
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
        self._choose_workers(on_gpu)
        super().__post_init__()
        accelerator: Any = self.accelerator_config
        if accelerator.dispatch_batches is None:
            accelerator.dispatch_batches = False
        if self.dataloader_pin_memory:
            accelerator.non_blocking = True
        self._check_numbers()
        self._check_choices()
        self._check_sharding()
        check_settings(self)
        self._check_shares()
        self._check_reporting()

    @property
    def output_folder(self) -> str:
        """`output_dir`, which is never None once the settings are built."""
        assert self.output_dir is not None
        return self.output_dir

    @property
    def shares(self) -> Shares:
        """What is taken of each source."""
        seed = self.data_seed if self.data_seed is not None else self.seed
        return Shares(self.source_weights or {}, self.source_caps or {}, self.redraw_caps, self.epoch_rows, seed)

    def _choose_workers(self, on_gpu: bool) -> None:
        self.workers_by_default = self.dataloader_num_workers is None
        if self.dataloader_num_workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            self.dataloader_num_workers = max(1, min(MOST_WORKERS, share)) if on_gpu else 0
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if self.dataloader_prefetch_factor is None and self.dataloader_num_workers > 0:
            self.dataloader_prefetch_factor = 2
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = on_gpu

    def _check_numbers(self) -> None:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logits_chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate >= 0:
            raise ValueError(f"learning_rate must not be negative, but is {self.learning_rate}")

    def _check_shares(self) -> None:
        if not self.shares.draws:
            return
        settings = ("source_weights", "epoch_rows", "redraw_caps")
        given = " and ".join(name for name in settings if getattr(self, name))
        for name in ("max_tokens_per_batch", "batch_column"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{given} and {name} both say which rows come when: set per_device_train_batch_size in place of "
                    f"{name}, or keep to source_caps without redraw_caps, which goes with it"
                )
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy {self.train_sampling_strategy!r} does not go with {given}, which says "
                "itself which rows come when: leave it at 'random', or use 'sequential'"
            )
        if self.dataloader_drop_last:
            raise ValueError(f"dataloader_drop_last must be off with {given}, whose shares are those of whole epochs")

    def _check_reporting(self) -> None:
        usable = get_available_reporting_integrations()
        for name in self.report_to or ():
            if name not in usable:
                raise ValueError(
                    f"report_to {name!r} is not installed, or no such integration (installed are: "
                    f"{', '.join(usable) or 'none'}); install it, or set report_to to none"
                )

    def _check_sharding(self) -> None:
        if self.fsdp:
            raise ValueError(SHARDED.format("fsdp"))
        if self.cache_gradients and self.deepspeed:
            raise ValueError(
                "cache_gradients sends gradients back pass by pass, which deepspeed does not see: use DDP, or leave "
                "it out"
            )

    def _check_choices(self) -> None:
        if self.on_overflow not in OVERFLOW:
            raise ValueError(f"on_overflow {self.on_overflow!r} is none of {', '.join(OVERFLOW)}")
        if self.packing not in PACKING:
            raise ValueError(f"packing {self.packing!r} is none of {', '.join(PACKING)}")
        if self.region_pooling not in BOX_WEIGHTS:
            raise ValueError(f"region_pooling {self.region_pooling!r} is none of {', '.join(BOX_WEIGHTS)}")
        budget = self.memory_budget
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0):
            raise ValueError(f"memory_budget is a number of gigabytes above 0, not {budget!r}")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be off: it would drop the images and responses")
        accelerator: Any = self.accelerator_config
        if accelerator.dispatch_batches:
            raise ValueError("dispatch_batches must be off: it would cut batches in the middle of their rows")
        if self.mine_batches_neighbours < 1:
            raise ValueError(f"mine_batches_neighbours must be at least 1, not {self.mine_batches_neighbours}")
        for name in ("max_tokens_per_forward", "max_tokens_per_batch", "mine_batches_every"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1 or None, not {limit}")
        if self.max_tokens_per_batch is not None and self.dataloader_drop_last:
            raise ValueError("dataloader_drop_last must be off with max_tokens_per_batch, which uses every row")
