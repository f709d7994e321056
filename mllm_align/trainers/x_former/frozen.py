"""The two frozen encoders of X-Former's first stage: the vision-language model's own, and a masked autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, ViTMAEForPreTraining

from mllm_align.families import family_of
from mllm_align.trainers.x_former.model import Masked
from mllm_align.vision.encoder_reading import shown
from mllm_align.vision.mixed_vision import MixedVision
from mllm_align.vision.teacher_parts import first_line, quiet
from mllm_align.vision.vision_encoder import VisionEncoder


class Enough(Exception):
    """What the projector would read is known: nothing more is to be computed."""


class OwnEncoder:
    """What the projector of a vision-language model reads, as `attach` hands it to a mixer.

    Args:
        model: With the mixer attached, which takes no part here; only its tower is kept.
        mixed: What was attached.
    """

    def __init__(self, model: Any, mixed: MixedVision) -> None:
        self.model, self.family, self.statistics = model, family_of(model), mixed.statistics
        mixed.enabled = False
        model.requires_grad_(False)
        for path in (self.family.language_model, "lm_head"):
            model.set_submodule(path, nn.Identity())
        self.views: list[Tensor] = []
        self.read: Tensor | None = None
        self.family.module(model, self.family.tower).register_forward_pre_hook(self._shown, with_kwargs=True)
        self.family.module(model, self.family.projector).register_forward_pre_hook(self._reads)

    def _shown(self, tower: Any, args: Any, kwargs: Any) -> None:
        self.views = self.family.tower_views(self.model.config, args, kwargs)

    def _reads(self, projector: Any, args: Any) -> None:
        self.read = args[0]
        raise Enough

    @torch.no_grad()
    def __call__(self, images: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """(B, N, C) features of patches, and (B, 3, h, w) float32 pixels in 0..1 that they are of.

        Args:
            images: Per image the processor's tensors.

        Raises:
            ValueError: If an image is shown to the tower as several views.
        """
        self.model.eval()
        with suppress(Enough):
            self.family.encode_images(self.model, images)
        read, views = self.read, self.views
        assert read is not None
        if len(views) != len(images) or len({view.shape for view in views}) > 1:
            raise ValueError(
                f"{self.family.name} shows its tower {len(views)} views of {len(images)} images: the first stage of "
                "X-Former needs one view of one size per image; take a model that cuts no tiles"
            )
        rows, columns = self.family.read_cells(self.model.config, views[0])
        features = read.reshape(len(views), -1, read.shape[-1])[:, -rows * columns :]
        mean, std = self.statistics
        pixels = torch.stack(views).float()
        planes = [pixels[:, c] * s + m for c, (m, s) in enumerate(zip(mean, std, strict=True))]
        return features, torch.stack(planes, dim=1).clamp(0, 1)


class Autoencoder:
    """A masked autoencoder (MAE, ViT-MAE) that sees part of an image, and its decoder.

    Args:
        encoder: Of the mixer; its weights are shared.
        mask_ratio: Share of the patches that it does not see.

    Raises:
        ValueError: If its checkpoint has no decoder.
    """

    def __init__(self, encoder: VisionEncoder, mask_ratio: float = 0.5) -> None:
        self.encoder, self.mask_ratio = encoder, mask_ratio
        self.whole = load_autoencoder(encoder)
        self.whole.vit = encoder.model
        self.whole.to(next(encoder.model.parameters()).device, encoder.dtype).requires_grad_(False).eval()
        self.side = self.whole.config.image_size

    @property
    def normalise(self) -> bool:
        """Whether its decoder was trained to give normalised patches."""
        return bool(self.whole.config.norm_pix_loss)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, noise: Tensor | None = None) -> Masked:
        """What it makes of pixels (B, 3, h, w) in 0..1, with a mask drawn for each image.

        Args:
            pixels: Of any size.
            noise: (B, N): patches with the smallest values are seen; drawn by default.
        """
        encoder = self.encoder
        planes = shown(pixels, (self.side, self.side))
        planes = [(planes[:, c] - m) / s for c, (m, s) in enumerate(zip(encoder.mean, encoder.std, strict=True))]
        normalised = torch.stack(planes, dim=1)
        config: Any = encoder.model.config
        usual, config.mask_ratio = config.mask_ratio, self.mask_ratio
        try:
            output: Any = encoder.model(normalised.to(encoder.dtype), noise=noise)
        finally:
            config.mask_ratio = usual
        return Masked(output.last_hidden_state, output.mask, output.ids_restore, self.whole.patchify(normalised))

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """(B, N, p) pixels of latents (B, 1 + n, d); gradients go through."""
        return self.whole.decoder(latent.to(self.encoder.dtype), restore).logits


def autoencoder_cells(name: str, revision: str | None = None) -> tuple[int, int]:
    """Rows and columns of the patches of a masked autoencoder's own image size.

    Raises:
        ValueError: If there is no such model, or it is none.
    """
    try:
        config: Any = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"no masked autoencoder could be loaded from {name!r}: {first_line(error)}") from None
    if config.model_type != "vit_mae":
        raise ValueError(
            f"{name!r} is a {config.model_type}, not a masked autoencoder: name one with its decoder, such as "
            "facebook/vit-mae-huge"
        )
    return (config.image_size // config.patch_size,) * 2


def load_autoencoder(encoder: VisionEncoder) -> Any:
    """Encoder and decoder of the checkpoint that an encoder came from.

    Raises:
        ValueError: If it has no decoder.
    """
    spec, load = encoder.spec, cast(Any, ViTMAEForPreTraining.from_pretrained)
    with quiet():
        whole, report = load(spec.model, revision=spec.revision, output_loading_info=True)
    missing = sorted(name for name in report["missing_keys"] if name.startswith("decoder."))
    if missing:
        raise ValueError(
            f"{spec.model!r} has no decoder (no {missing[0]}): the reconstruction loss needs a checkpoint of "
            "pre-training, such as facebook/vit-mae-huge"
        )
    return whole
