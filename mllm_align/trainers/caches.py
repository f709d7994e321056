"""The caches of a run: which settings can work together, where they are, what they belong to."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from mllm_align.contract import Objective
from mllm_align.data.tensor_files import TensorFiles
from mllm_align.families import family_of, inner, unwrap
from mllm_align.models.fingerprint import Fingerprint, base_fingerprint, reference_fingerprint, weights_digest
from mllm_align.signals import Reference
from mllm_align.signals.cached_reference import CachedReference
from mllm_align.signals.encoder_cache import EncoderCache
from mllm_align.signals.feature_cache import FeatureCache, check_frozen_vision
from mllm_align.signals.store import LogpStore
from mllm_align.signals.vision import is_trained
from mllm_align.trainers.config import AlignConfig
from mllm_align.trainers.data import named_datasets
from mllm_align.vision.encoders import encoder_facts
from mllm_align.vision.mixed_vision import mixed_of

logger = logging.getLogger(__name__)

REFERENCE = "Log-probabilities of responses under one reference model. Safe to delete: they are computed again."
TEACHERS = "What one teacher makes of images and the objects on them. Safe to delete: it is made again."
ENCODERS = "What one vision encoder sees of images, one file each per view. Safe to delete: it is made again."
FEATURES = "Image tokens as one model's vision side makes them, one file each. Safe to delete: they are made again."


def cache_root(args: AlignConfig) -> Path:
    """The folder of all caches: `cache_dir`, else `$MLLM_ALIGN_CACHE`, else `~/.cache/mllm_align`."""
    return Path(args.cache_dir or os.environ.get("MLLM_ALIGN_CACHE") or "~/.cache/mllm_align").expanduser()


def pixel_folder(args: AlignConfig) -> Path | None:
    """Where processed images are kept, or None."""
    return cache_root(args) / "pixels" if args.cache_pixels else None


def feature_cache(args: AlignConfig, policy: nn.Module) -> FeatureCache | None:
    """The cache of image tokens, where one is asked for.

    Raises:
        ValueError: If the vision side trains.
    """
    if not args.cache_image_features:
        return None
    check_frozen_vision(policy)
    return FeatureCache(
        _files(args, "features", FEATURES, base_fingerprint(policy, precision(args), vision_only=True))
    )


def encoder_cache(args: AlignConfig, policy: nn.Module) -> EncoderCache | None:
    """The cache of what frozen further encoders see, where one is asked for.

    Raises:
        ValueError: If there is no mixer, or none of its encoders is frozen.
    """
    if not args.cache_encoder_features:
        return None
    hf: Any = unwrap(policy)
    mixed = mixed_of(inner(hf))
    frozen = {} if mixed is None else {n: each for n, each in enumerate(mixed.seeing) if not is_trained(each)}
    if mixed is None or not frozen:
        what = "the model has no mixer" if mixed is None else "every further encoder trains"
        raise ValueError(
            f"cache_encoder_features keeps what frozen further encoders of a mixer see, but {what}: leave it out"
        )
    # Pixels reach an encoder in the dtype of the tower, and without the statistics of its own.
    pixels = {"pixels": str(family_of(hf).module(hf, family_of(hf).tower).dtype), **mixed.statistics._asdict()}
    return EncoderCache(
        {number: _files(args, "encoders", ENCODERS, _of_encoder(each, pixels)) for number, each in frozen.items()}
    )


def _of_encoder(encoder: Any, facts: dict[str, Any]) -> Fingerprint:
    told = encoder_facts(encoder) | {
        "dtype": str(encoder.dtype),
        "weights": weights_digest(encoder.state_dict().items()),
    }
    return Fingerprint({**facts, **told, "transformers": version("transformers")}, encoder.spec.model)


def teacher_files(args: AlignConfig, fingerprint: Fingerprint) -> TensorFiles:
    """Where what a teacher makes of images is kept."""
    return _files(args, "teachers", TEACHERS, fingerprint)


def cached_reference(args: AlignConfig, reference: Reference, policy: nn.Module) -> CachedReference:
    """What is known already of a reference; `trainers.precompute` adds to it.

    Raises:
        ValueError: If it cannot be told what the reference is.
    """
    fingerprint = reference_fingerprint(reference, policy, precision(args))
    return CachedReference(LogpStore(_files(args, "reference", REFERENCE, fingerprint)))


def check_precompute(args: AlignConfig, objective: Objective, train: Any, evaluation: Any) -> bool:
    """Whether the reference is to be computed once before training; refuses streams for teachers, too.

    Args:
        args: Settings of the run.
        objective: It may want no reference at all, which is a warning.
        train: Training data, or None.
        evaluation: Evaluation data, a dict of several, or None.

    Raises:
        ValueError: If data is streamed, or the batch size is out of range.
    """
    datasets = list(named_datasets(train, evaluation))
    if args.precompute_teachers and any(feature.teacher is not None for feature in objective.needs.features):
        refuse_streams("precompute_teachers", datasets)
    if not args.precompute_ref_log_probs:
        return False
    if not objective.needs.reference:
        logger.warning("precompute_ref_log_probs has no effect: the objective wants no reference")
        return False
    size = args.precompute_ref_batch_size
    if size is not None and size < 1:
        raise ValueError(f"precompute_ref_batch_size must be at least 1 or None, not {size}")
    refuse_streams("precompute_ref_log_probs", datasets)
    return True


def refuse_streams(setting: str, datasets: Iterable[tuple[str, Any]]) -> None:
    """Refuses a setting that needs the same rows twice, where some data is a stream.

    Raises:
        ValueError: Naming the data and the mend.
    """
    for name, dataset in datasets:
        if not hasattr(dataset, "__len__"):
            raise ValueError(
                f"{setting} reads the data once before training, but {name} is a stream, which need not give the same "
                f"rows again: load it without streaming, or set {setting}=False"
            )


def precision(args: AlignConfig) -> str:
    """The autocast of the run, by accelerate's name."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "no"


def _files(args: AlignConfig, kind: str, what: str, fingerprint: Fingerprint) -> TensorFiles:
    about = {"what": what, "model": fingerprint.name, **fingerprint.facts}
    return TensorFiles(cache_root(args) / kind / fingerprint.digest, about)
