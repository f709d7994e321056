"""Time and memory of one DPO step on images: `AlignTrainer` against TRL's `DPOTrainer`, side by side.

    python benchmarks/dpo_vs_trl.py --json benchmarks/dpo_vs_trl.json
    python benchmarks/dpo_vs_trl.py --preset llava-1.5-7b --json benchmarks/dpo_vs_trl_gpu.json

Both trainers get the same model, LoRA, rows and settings (sigmoid loss, beta 0.1, reference by adapters off), and
collate with their own collator. A step is `training_step`: inputs to the device, policy, reference, loss, logged
metrics, backward. Collation (image processing, tokenising) is outside on both sides, as is the optimiser, whose work
is the same.

Written to the JSON, keyed by response length: `speedup` (peer seconds / our seconds), `limit` (the same ratio of
floating point operations), `of_limit` (speedup / limit), `memory_ratio` (our peak / the peer's, both above the loaded
model).
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from trl import DPOConfig, DPOTrainer

from comparison import Case, compare, print_comparison
from mllm_align.objectives import DPO
from mllm_align.trainers import AlignConfig, AlignTrainer
from results import finish, parser_of, shape_of
from shapes import Shape, build_base, build_processor, fill_adapters, lora, preference_rows

disable_progress_bars()


def settings(shape: Shape, folder: str) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": shape.batch,
        "gradient_checkpointing": shape.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": shape.dtype == torch.bfloat16,
        "use_cpu": shape.device == "cpu",
        "report_to": [],
        "disable_tqdm": True,
    }


class _Trainer:
    """A trainer set up as its `train` would, so that `training_step` can be called."""

    def __init__(self, shape: Shape, trainer: Any) -> None:
        self.shape, self.trainer, self.model = shape, trainer, trainer.model
        fill_adapters(self.model)
        if shape.checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trainer.current_gradient_accumulation_steps = 1
        trainer.model_wrapped = trainer.accelerator.prepare_model(self.model)

    def rows(self, case: Case) -> list[dict[str, Any]]:
        return preference_rows(self.shape, case.length)

    def step(self, data: Any) -> float:
        """One `training_step`."""
        return float(self.trainer.training_step(self.trainer.model_wrapped, data))


class Ours(_Trainer):
    """`AlignTrainer` with `DPO`."""

    def __init__(self, shape: Shape) -> None:
        base = build_base(shape)
        self.folder = tempfile.TemporaryDirectory()
        trainer = AlignTrainer(
            base,
            DPO(),
            AlignConfig(**settings(shape, self.folder.name), check_data=False),
            processing_class=build_processor(shape),
            train_dataset=Dataset.from_list(preference_rows(shape, shape.lengths[0])),
            peft_config=lora(shape, base),
        )
        super().__init__(shape, trainer)

    def prepare(self, case: Case) -> Any:
        """One collated batch, as the training loop draws it."""
        collated = self.trainer.data_collator(self.rows(case))
        (batch,), _ = self.trainer.get_batch_samples(iter([collated]), 1, self.trainer.args.device)
        return batch


class Peer(_Trainer):
    """TRL's `DPOTrainer` with its default loss."""

    def __init__(self, shape: Shape) -> None:
        base = build_base(shape)
        self.folder = tempfile.TemporaryDirectory()
        trainer = DPOTrainer(
            base,
            args=DPOConfig(**settings(shape, self.folder.name), beta=0.1, max_length=None),
            processing_class=build_processor(shape),
            train_dataset=Dataset.from_list(preference_rows(shape, shape.lengths[0])),
            peft_config=lora(shape, base),
        )
        super().__init__(shape, trainer)

    def prepare(self, case: Case) -> Any:
        """One collated batch; the collator writes into the rows."""
        return self.trainer.data_collator(copy.deepcopy(self.rows(case)))


def main() -> None:
    """Runs both sides and prints a table; see the module's text."""
    arguments = parser_of(__doc__).parse_args()
    result = compare(Ours, Peer, shape_of(arguments.preset), rounds=arguments.rounds, threads=arguments.threads)
    print_comparison(result)
    finish(result, arguments)


if __name__ == "__main__":
    main()
