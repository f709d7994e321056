"""The draws of made images in a run: its seed, and once for all epochs where something is kept."""

from __future__ import annotations

import logging
from typing import Any

from mllm_align.contract import Objective, View, needs_for
from mllm_align.data import mosaic, routes
from mllm_align.data.corrupt import Mirror
from mllm_align.data.corrupt.dataset import Draws, draws_by_source, seeded, with_draws
from mllm_align.data.mosaic import Mosaics
from mllm_align.data.routes import Routes
from mllm_align.data.routing import with_routes
from mllm_align.data.schema import DEFAULT_SOURCE
from mllm_align.trainers.config import AlignConfig

logger = logging.getLogger(__name__)

MATCHED = View("contrast_image", "rejected")
# Settings that keep something of every image.
KEPT_PER_IMAGE = ("cache_pixels", "cache_image_features", "cache_encoder_features")


def settle_draws(args: AlignConfig, objective: Objective, train: Any, evaluation: Any) -> tuple[Any, Any]:
    """Training and evaluation data that draw with the seed of the run; what was given stays as it is.

    Evaluation data is drawn once. So is a source of the training data that a setting forbids to change, with a
    warning that says which.

    Args:
        args: Settings of the run.
        objective: Of the run; one that takes a made image for what the rejected response is about is warned of.
        train: Training data after `join_sources`, or None.
        evaluation: Evaluation data after `label_sources`, or None.
    """
    seed = args.data_seed if args.data_seed is not None else args.seed
    for source, draws in draws_by_source(train).items():
        _warn_of_matching(objective, source, draws)
        reasons = _reasons_for_once(args, objective, draws) if draws.by_epoch else []
        if reasons:
            logger.warning(
                "contrast images%s by %r are drawn once, not anew in every epoch: %s. Set redraw to false to say so "
                "yourself, or leave that setting out",
                f" of source {source!r}" if source else "",
                draws.corruption,
                "; ".join(reasons),
            )
    train = with_draws(train, lambda draws: seeded(draws, seed, once=bool(_reasons_for_once(args, objective, draws))))
    train = _with_mosaics(args, objective, train, seed)
    train = _with_captions(args, objective, train, seed)
    if isinstance(evaluation, dict):
        return train, {name: _once(dataset, seed) for name, dataset in evaluation.items()}
    return train, _once(evaluation, seed)


def _warn_of_matching(objective: Objective, source: str, draws: Draws) -> None:
    """A crop of the row's image is not the image that its rejected response describes; one in the mirror may be."""
    needs = needs_for(objective, source or DEFAULT_SOURCE)
    if MATCHED in (*needs.views, *needs.optional) and not isinstance(draws.corruption, Mirror):
        logger.warning(
            "the objective takes the rejected response for right where the contrast image is shown (view %s), but "
            "that image%s is made by %r: give next_token matched=False, or use an objective of (contrast_image, "
            "chosen) views, such as mdpo",
            MATCHED,
            f" of source {source!r}" if source else "",
            draws.corruption,
        )


def _with_mosaics(args: AlignConfig, objective: Objective, train: Any, seed: int) -> Any:
    kept = [name for name in KEPT_PER_IMAGE if getattr(args, name)]
    if args.precompute_teachers and any(feature.source == "teacher" for feature in objective.needs.features):
        kept.append("precompute_teachers")

    def change(options: Mosaics) -> Mosaics:
        if kept and options.redraw:
            logger.warning(
                "which images are one mosaic is drawn once, not anew in every epoch: %s would keep all of them. Set "
                "redraw to false to say so yourself, or leave that setting out",
                " and ".join(kept),
            )
        return mosaic.seeded(options, seed, once=bool(kept))

    return mosaic.with_mosaics(train, change)


def _with_captions(args: AlignConfig, objective: Objective, train: Any, seed: int) -> Any:
    fixed = ["max_tokens_per_batch"] if args.max_tokens_per_batch is not None else []
    if args.precompute_ref_log_probs and objective.needs.reference:
        fixed.append("precompute_ref_log_probs")

    def change(options: Routes) -> Routes:
        if fixed and options.redraw:
            logger.warning(
                "which of a row's captions is shown is drawn once, not anew in every epoch: %s would have to know all "
                "of them. Set redraw to false to say so yourself, or leave that setting out",
                " and ".join(fixed),
            )
        return routes.seeded(options, seed, once=bool(fixed))

    return with_routes(train, change)


def _once(dataset: Any, seed: int) -> Any:
    drawn = with_draws(dataset, lambda draws: seeded(draws, seed, once=True))
    laid = mosaic.with_mosaics(drawn, lambda options: mosaic.seeded(options, seed, once=True))
    return with_routes(laid, lambda options: routes.seeded(options, seed, once=True))


def _reasons_for_once(args: AlignConfig, objective: Objective, draws: Draws) -> list[str]:
    """The settings under which what is made of a row must stay as it is."""
    reasons = []
    if args.precompute_ref_log_probs:
        reasons.append("precompute_ref_log_probs scores them before training")
    taught = [feature for feature in objective.needs.features if feature.source == "teacher"]
    if args.precompute_teachers and any(feature.column == "contrast_image" for feature in taught):
        reasons.append("precompute_teachers shows them to a teacher before training")
    for name in KEPT_PER_IMAGE:
        if getattr(args, name):
            reasons.append(f"{name} would keep all of them, and grow with every epoch")
    if args.max_tokens_per_batch is not None and not draws.corruption.keeps_size:
        reasons.append("max_tokens_per_batch needs to know how many tokens they have")
    return reasons
