"""InfoNCE between images and texts, and the losses that differ from it in a rule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mllm_align.contract import Embedding, Feature, Needs, Outcome, Ragged, Signals, Teacher, Term, teacher_from
from mllm_align.objectives.contrast_kernels import continuous_weights
from mllm_align.objectives.contrast_rules import INFO_NCE, Rule, options_from
from mllm_align.objectives.host import sent
from mllm_align.objectives.memory import Further, Memory, check_size, exchange, numbers_of
from mllm_align.objectives.mochi import Mixing
from mllm_align.objectives.nearest import Nearest
from mllm_align.objectives.options import WithOptions
from mllm_align.objectives.pairs import Compared, Pairs, nearer_than_listed
from mllm_align.objectives.preference import check_positive, check_switches
from mllm_align.objectives.temperature import bounded_scale, check_temperature, log_scale_of
from mllm_align.objectives.two_sided import TwoSided, info_nce

__all__ = ["InfoNCE", "info_nce"]


class InfoNCE(WithOptions):
    """InfoNCE between images and texts (Radford et al., 2021), https://arxiv.org/abs/2103.00020

    Pulls what an image is read as towards what its text is read as, and away from the other texts of the batch; and
    the other way round. Without prompts an image is the mean of its tokens, as the language model is given them, and a
    text the last state of the response, read without the image; with `image_prompt` and `text_prompt` both are the
    language model's state at the end of an instruction.

    Args:
        image: Column of the images, "image" or "contrast_image", or "prompt" (`Pairs`).
        text: Column of the texts, "chosen", "rejected" or another (`Pairs`).
        temperature: At the start, 1/100 at the least; cosines are divided by it.
        learn_temperature: Whether it is trained (as its logarithm, kept from going below 1/100, as CLIP's is).
        memory: Images and texts of earlier batches that are negatives, too (`Memory`); 0 for none.
        momentum: Choose among the features of a slow copy of what trains, which each step brings nearer to it by
            1 - momentum (MoCo, He et al., 2020, https://arxiv.org/abs/1911.05722); None for those of the model itself.
        soft_targets: With `momentum`: share of the target that the slow copy's own similarities make up (ALBEF, Li et
            al., 2021, https://arxiv.org/abs/2107.07651, has .4 and momentum .995).
        image_prompt, text_prompt, pooling, layer, dim: What is measured of both sides, and linear heads on it
            (`Pairs`).
        dimensions: Numbers of leading dimensions that shall be embeddings by themselves: the loss is the mean of that
            at each and at all (Matryoshka, Kusupati et al., 2022, https://arxiv.org/abs/2205.13147).
        negatives: Whether rows list texts that are false of their image, further columns for every image.
        rule: What positives and negatives weigh, a `Rule` or a mapping of its options.
        sides: "both", "image_to_text" (images choose among texts) or "text_to_image".
        continuous: Which anchors are pulled towards the partners of others, the more the more these are like them:
            "image", "both", or None (CWCL, Srinivasa et al., 2023, https://arxiv.org/abs/2309.14580).
        teacher: With `continuous`: a frozen model that tells how alike images are; None for the vectors themselves.
        mixing: Synthetic negatives, a `Mixing` or a mapping of its options; None for none.
        tile: Rows and columns of a tile of similarities, so that all pairs are never in memory at once; None for 2,048
            where there are more rows, if the options allow it.

    Needs:
        Two features and no views; no reference. With `negatives` a third; with `momentum` the first two of the slow
        copy; with `teacher` the teacher's of the image.

    Shapes:
        Features (N, d), one entry per row at the most, of negatives any number; computed in float32 at least. Term
        "info_nce": sum over the rows with both, count their number. Metrics: for each such row whether its partner is
        the nearest, "accuracy/image_to_text" and "accuracy/text_to_image" (N,), and how many others are as near,
        "ties" (N,), for which nothing is the nearest; for each row with negatives whether its text is nearer than all
        of them, "accuracy/negatives" (K,); "temperature".

    Example:
        >>> objective = InfoNCE()
        >>> rows = torch.arange(2)
        >>> features = {feature.name: Ragged(torch.eye(2), rows) for feature in objective.needs.features}
        >>> outcome = objective(Signals({}, {}, features=features, sources=("a", "a")), None)
        >>> round(outcome.loss.item(), 4) < 1e-4
        True

    Relations:
        The negatives are those of the batch of all processes (`AlignConfig.gather_negatives`): gradient accumulation
        adds none, gradient caching (`cache_gradients`) makes room for large batches, `memory` adds earlier ones.
        Rows that share a text or an image are not each other's negatives, nor is a listed text that of a row which has
        it for its own, or whose image has: such pairs are left out, neither positives nor negatives. The same is what
        was read the same, token for token and picture for picture, instructions included.
        `embedding` is what stays after training. SigLIP asks of each pair by itself. The sum of both directions is
        this with weight 2. Named losses are presets: `InfoNCE.dcl()`, in a recipe `info_nce.dcl`; so are `dclw`,
        `cwcl`, `hcl`, `hn_nce_like`, `llave`, `mochi_like`, `negclip` and `uni_me`.

    Deviations:
        CLIP trains two encoders of its own; here both sides are read off the LVLM, by default without a projection
        head. ALBEF begins with a queue of random vectors, raises `soft_targets` over the first epoch, and has what a
        row was in earlier epochs for its negative; here the memory is empty at first, the share is constant, and a row
        that comes again does not meet itself. Heads have no slow copy: the slow features go through those that train.
    """

    def __init__(
        self,
        image: str = "image",
        text: str = "chosen",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        memory: int = 0,
        momentum: float | None = None,
        soft_targets: float = 0.0,
        *,
        image_prompt: str | None = None,
        text_prompt: str | None = None,
        pooling: str = "last",
        layer: int | float | None = None,
        dim: int | None = None,
        dimensions: Sequence[int] = (),
        negatives: bool = False,
        rule: Rule | Mapping[str, Any] = INFO_NCE,
        sides: str = "both",
        continuous: str | None = None,
        teacher: str | Mapping[str, Any] | Teacher | None = None,
        mixing: Mixing | Mapping[str, Any] | None = None,
        tile: int | None = None,
    ) -> None:
        """Refuses values without a meaning."""
        super().__init__()
        check_positive("InfoNCE", temperature=temperature)
        check_switches("InfoNCE", learn_temperature=learn_temperature, negatives=negatives)
        check_temperature("InfoNCE", temperature)
        check_size("InfoNCE", memory)
        if momentum is not None and not (isinstance(momentum, float | int) and 0 <= momentum < 1):
            raise ValueError(f"InfoNCE: momentum must be from 0 to less than 1, or None, got {momentum!r}")
        if not 0 <= soft_targets <= 1 or (soft_targets and momentum is None):
            raise ValueError(f"InfoNCE: soft_targets must be from 0 to 1 and needs momentum, got {soft_targets!r}")
        self.pairs = Pairs(
            "InfoNCE",
            image=image,
            text=text,
            image_prompt=image_prompt,
            text_prompt=text_prompt,
            pooling=pooling,
            layer=layer,
            dim=dim,
            dimensions=dimensions,
            negatives=negatives,
        )
        if continuous not in (None, "image", "both"):
            raise ValueError(f"InfoNCE: continuous must be 'image', 'both' or nothing, got {continuous!r}")
        if negatives and sides == "text_to_image":
            raise ValueError("InfoNCE: negatives are texts that an image chooses among: leave sides at 'both'")
        if negatives and soft_targets:
            raise ValueError("InfoNCE: soft_targets would give texts that are false a share: leave one of both out")
        if continuous == "both" and sides != "both":
            raise ValueError("InfoNCE: continuous 'both' is of both ways: give 'image', or leave sides at 'both'")
        if teacher is not None and continuous is None:
            raise ValueError("InfoNCE: a teacher tells how alike images are: give continuous, or leave teacher out")
        if teacher is not None and image == "prompt":
            raise ValueError("InfoNCE: a teacher is shown an image column, not a prompt: leave teacher out")
        self.how = TwoSided(
            rule=options_from(Rule, rule, "rule", "InfoNCE"),
            sides=sides,
            soft_targets=soft_targets,
            mixing=None if mixing is None else options_from(Mixing, mixing, "mixing", "InfoNCE"),
            tile=tile,
            continuous=continuous is not None,
            keys=momentum is not None,
            memory=memory > 0,
        )
        if self.how.rule.hardness and self.how.rule.hardness_on == "explicit" and not negatives:
            raise ValueError(
                "InfoNCE: rule: hardness_on 'explicit' is of listed negatives: set negatives or say 'all'"
            )
        self.momentum, self.memory_size, self.continuous = momentum, memory, continuous
        self.teacher = None if teacher is None else teacher_from(teacher, "InfoNCE")
        self.images_before: Memory | None = None
        self.texts_before: Memory | None = None
        self.log_scale = log_scale_of(temperature, learn_temperature)

    @classmethod
    def _preset(cls, name: str, options: Mapping[str, Any], **constants: Any) -> InfoNCE:
        """One of the named losses; what is given goes before its constants, except for its rule."""
        known = [each for each in inspect.signature(cls).parameters if each != "rule"]
        for key in options:
            if key not in known:
                raise ValueError(f"InfoNCE.{name} has no option {key!r} ({', '.join(known)})")
        return cls(**{**constants, **options})

    @classmethod
    def dcl(cls, **options: Any) -> InfoNCE:
        """Decoupled: the positive is not in its own denominator (Yeh et al., 2022), https://arxiv.org/abs/2110.06848

        Their code for images has the other images as negatives of an image, too.
        """
        return cls._preset("dcl", options, rule=Rule(positive_weight=0.0), temperature=0.1)

    @classmethod
    def dclw(cls, sigma: float = 0.5, **options: Any) -> InfoNCE:
        """`dcl` with positives weighed by how far apart they are, equation 7 there."""
        return cls._preset("dclw", options, rule=Rule(positive_weight=0.0, sigma=sigma), temperature=0.1)

    @classmethod
    def cwcl(cls, teacher: str | Mapping[str, Any] | Teacher | None, **options: Any) -> InfoNCE:
        """Images are pulled towards the texts of images like them (Srinivasa et al., 2023),
        https://arxiv.org/abs/2309.14580; the other way is InfoNCE.

        How alike images are is what a frozen `teacher` finds; None for the trained vectors themselves, which in a
        language model are all alike. The paper adds both directions; here is their mean. The least value is not 0 but
        half the entropy of the weights.
        """
        return cls._preset("cwcl", options, continuous="image", teacher=teacher)

    @classmethod
    def hcl(cls, beta: float = 1.0, tau_plus: float = 0.1, **options: Any) -> InfoNCE:
        """Hard and debiased negatives (Robinson et al., 2021), https://arxiv.org/abs/2010.04592, as they set it."""
        rule = Rule(beta=beta, tau_plus=tau_plus)
        return cls._preset("hcl", options, rule=rule, temperature=0.5, learn_temperature=False)

    @classmethod
    def hn_nce_like(cls, alpha: float = 1.0, beta: float = 0.5, **options: Any) -> InfoNCE:
        """Hard negatives as DiHT has them (Radenovic et al., 2023), https://arxiv.org/abs/2301.02280

        The form is as others describe it; `beta` is a choice of ours.
        """
        return cls._preset("hn_nce_like", options, rule=Rule(positive_weight=alpha, beta=beta))

    @classmethod
    def llave(cls, hardness: float = 9.0, **options: Any) -> InfoNCE:
        """Negatives harder by a multiple of their cosine (Lan et al., 2025), https://arxiv.org/abs/2503.04812

        Its released code has a hardness of .5; 5 is that of EmbeddingGemma, https://arxiv.org/abs/2509.20354.
        """
        rule = Rule(hardness=hardness)
        return cls._preset("llave", options, rule=rule, temperature=0.02, learn_temperature=False)

    @classmethod
    def mochi_like(cls, hardest: int = 1024, of_keys: int = 1024, of_anchor: int = 128, **options: Any) -> InfoNCE:
        """With mixtures of hard negatives (Kalantidis et al., 2020), https://arxiv.org/abs/2010.01028

        The numbers are those that others report of it. It mixes out of a queue: give `memory` and `momentum`.
        """
        mixing = Mixing(hardest, of_keys, of_anchor)
        return cls._preset("mochi_like", options, mixing=mixing, temperature=0.2, learn_temperature=False)

    @classmethod
    def negclip(cls, **options: Any) -> InfoNCE:
        """Images are told from listed false texts, too (Yuksekgonul et al., 2023), https://arxiv.org/abs/2210.01936

        `text_prompt` must be given. The paper has one such text a row, and the text's nearest images besides.
        """
        return cls._preset("negclip", options, negatives=True)

    @classmethod
    def uni_me(cls, margin: float = 0.1, hardest: int = 8, **options: Any) -> InfoNCE:
        """The hardest negatives, less those like positives (Gu et al., 2025), https://arxiv.org/abs/2504.17432

        One way alone. Its code takes negatives that were left out back where too few are left.
        """
        constants: dict[str, Any] = {"temperature": 0.02, "learn_temperature": False, "sides": "image_to_text"}
        return cls._preset("uni_me", options, rule=Rule(margin=margin, hardest=hardest), **constants)

    @property
    def embedding(self) -> Embedding:
        """How an image and a text are embedded after training."""
        return self.pairs.embedding

    @property
    def needs(self) -> Needs:
        """Both sides, and what the options ask for."""
        features = self.pairs.features
        if self.momentum is not None:
            slow = (each._replace(name=f"slow {each.name}", momentum=self.momentum) for each in features[:2])
            features = (*features, *slow)
        if self.teacher is not None:
            features = (*features, Feature(self._alike, "teacher", self.pairs.image, teacher=self.teacher))
        return Needs(features=features)

    @property
    def _alike(self) -> str:
        return f"alike:{self.pairs.image}"

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Makes heads and the room of the memory; before training, when the widths of the features are known."""
        self.pairs.set_widths(widths)
        if self.memory_size:
            of_image, of_text = (self.pairs.dim or widths[each.name] for each in self.pairs.features[:2])
            self.images_before = Memory(self.memory_size, of_image)
            self.texts_before = Memory(self.memory_size, of_text)

    def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
        """The term and metrics of one batch."""
        scale = bounded_scale(self.log_scale)
        found = self.pairs(policy)
        if found is None:
            there = (policy.features.get(each.name) for each in self.needs.features)
            empty = sum((each.values.flatten()[:0].sum() for each in there if each is not None), 0 * scale)
            return Outcome((Term("info_nce", 1.0, empty, 0 * scale.detach()),))
        with torch.autocast(scale.device.type, enabled=False):
            losses, near = self._losses(policy, found, scale)
        metrics = near.metrics(found.anchors)
        if self.pairs.false is not None:
            metrics["accuracy/negatives"] = nearer_than_listed(near.own, found.at())
        metrics["temperature"] = 1 / scale.detach()
        return Outcome((Term("info_nce", 1.0, losses.sum(), found.present.sum()),), metrics)

    def _losses(self, policy: Signals, found: Compared, scale: Tensor) -> tuple[Tensor, Nearest]:
        """(B,) losses, the mean over dimensions; and how near partners are in all of them."""
        slow = self.pairs(policy, slow=True) if self.momentum is not None else None
        keys = found if slow is None else replace(slow, images=slow.images.detach(), texts=slow.texts.detach())
        further = self._remembered(policy, keys.at()) if self.memory_size else None
        weights = self._weights(policy, found)

        def at(size: int | None) -> tuple[Tensor, Nearest]:
            now, key = found.at(size), keys.at(size)
            false = None if self.pairs.false is None else (now.negatives, now.present[now.owner])
            cut = None
            if further is not None:
                texts, images = ((F.normalize(each[:, :size], dim=1), counts) for each, counts in further)
                cut = texts, images
            return self.how.losses(now, key, scale, false, cut, weights, policy.row_ids)

        losses, near = at(None)
        parts = [at(size)[0] for size in self.pairs.dimensions if size < found.images.shape[1]]
        return torch.stack([losses, *parts]).mean(dim=0), near

    def _remembered(self, policy: Signals, keys: Compared) -> Further:
        """Earlier texts and images, each with the rows that it is a negative of; then this batch's are kept."""
        if self.images_before is None or self.texts_before is None:
            raise ValueError("InfoNCE: memory has no room yet: call set_widths, as the trainer does")
        row = sent(numbers_of(policy.row_ids or ("",) * len(keys.present)), keys.images.device)
        before, kept = (self.images_before, self.texts_before), keys.anchors if self.training else None
        return exchange(before, keys.images, keys.texts, row, kept, keys.ids)

    def _weights(self, policy: Signals, found: Compared) -> tuple[Tensor | None, Tensor | None]:
        """(B, B) weights of several positives, of images and of texts."""
        if self.continuous is None:
            return None, None
        alike = found.images if self.teacher is None else _by_row(policy.features[self._alike], len(found.present))
        of_images = continuous_weights(alike).to(found.images.dtype)
        return of_images, continuous_weights(found.texts) if self.continuous == "both" else None


def _by_row(ragged: Ragged, size: int) -> Tensor:
    """(size, d), zero where a row has nothing."""
    return ragged.values.new_zeros(size, ragged.values.shape[1]).index_copy(0, ragged.row, ragged.values)
