"""Stage 1 and stage 2 of the packaged recipes of mixers, made small: what a stage hands on, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mllm_align.families import family_of, unwrap
from mllm_align.models import ModelArguments, load_model
from mllm_align.recipe import build_trainer, load_recipe, run_recipe
from mllm_align.vision.drawing import draw_image
from mllm_align.vision.mixer_files import WEIGHTS_FILE, carried_by
from tiny import save_tiny
from tiny_encoders import save_encoder
