"""Make a vision-language model look at the image: objectives, engine, trainer and recipes.

Names are imported when they are first used, so that `import mllm_align` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mllm_align.encoding import Encoder, load_encoder
    from mllm_align.models import load_model
    from mllm_align.recipe import load_recipe
    from mllm_align.trainers import AlignConfig, AlignTrainer

__version__ = "0.1.0"
__all__ = ["AlignConfig", "AlignTrainer", "Encoder", "__version__", "load_encoder", "load_model", "load_recipe"]

_HOMES = {
    "AlignConfig": "mllm_align.trainers",
    "AlignTrainer": "mllm_align.trainers",
    "Encoder": "mllm_align.encoding",
    "load_encoder": "mllm_align.encoding",
    "load_model": "mllm_align.models",
    "load_recipe": "mllm_align.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
