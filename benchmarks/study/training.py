"""What the runs of all studies are trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WARMUP = 0.1


def settings_of(folder: Path, **own: Any) -> dict[str, Any]:
    """Arguments of `AlignConfig`: a cosine after a warm-up, in float32, without checkpoints, checks and reports.

    Args:
        folder: Of the run.
        **own: What a study sets besides, or in place of that.
    """
    shared = {
        "output_dir": str(folder),
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARMUP,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 20,
        "disable_tqdm": True,
        "check_data": False,
        "use_cpu": True,
        "bf16": False,
        "cache_pixels": True,
    }
    return shared | own
