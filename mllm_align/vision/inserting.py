"""Layers of a mixer between those of the language model, and how what they read gets there.

It goes along with the tokens of an image as one more entry of `deepstack_features`, which transformers copies for
beams and cuts for chunks of a prompt, as it does with tokens, and which `EncodedImages` holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from mllm_align.families import Family
from mllm_align.families.base import image_entries


class Reading:
    """One forward pass of a model without its language head, while the language model reads.

    Args:
        mixed: `MixedVision`, whose mixer has layers in the language model.
        family: Of the model.
        model: Without its language head.
        input_ids: (B, T), or None.

    Attributes:
        rows: (M, width) of all image tokens in their order, or None where there are none.
    """

    def __init__(self, mixed: Any, family: Family, model: Any, input_ids: Tensor | None) -> None:
        self.mixed, self.family, self.model, self.input_ids = mixed, family, model, input_ids
        self.rows: Tensor | None = None
        self._where: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the mixer's layers run behind those of the language model, as it is now.

        Hooks run outside what gradient checkpointing recomputes, so it does not matter that they are gone by then.
        """
        layers: Any = self.model.get_submodule(self.family.language_model.removeprefix("model.")).layers
        handles = [
            layers[after].register_forward_hook(self._hook(number))
            for number, after in enumerate(self.mixed.kind.after)
        ]
        before, self.mixed.reading = self.mixed.reading, self
        try:
            yield
        finally:
            self.mixed.reading = before
            for handle in handles:
                handle.remove()

    def taken_from(self, given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """`mm_encoder_outputs` without what is the mixer's, which is kept.

        Raises:
            ValueError: If it is not there.
        """
        output = None if given is None else given.get("image")
        if given is None or output is None:
            return given
        layers: list[Any] = list(getattr(output, "deepstack_features", None) or ())
        own = self.family.num_deepstack(self.model.config)
        if len(layers) > own:
            if self.mixed.enabled:
                self.rows = torch.cat([entry.flatten(0, -2) for entry in layers[own]])
            return {**given, "image": with_deepstack(output, layers[:own])}
        if self.mixed.enabled:
            raise ValueError(
                "mm_encoder_outputs has image tokens alone, and the mixer has layers in the language model that read "
                "more: pass what get_image_features returned, or what Family.mm_outputs makes of it"
            )
        return given

    def _hook(self, number: int) -> Any:
        def behind(layer: Any, args: Any, output: Any) -> Any:
            if self.rows is None:
                return None
            states = output if isinstance(output, Tensor) else output[0]
            rows = self.rows
            index = self._placeholders(rows).to(states.device)
            flat = states.flatten(0, 1)
            own = flat.index_select(0, index)
            # Through the mixer's own attribute: PEFT gives the trained copy, or the original where adapters are off.
            changed = self.mixed.mixer.insert(number, own.to(rows.device), rows).to(own.device)
            states = flat.index_copy(0, index, changed).view_as(states)
            return states if isinstance(output, Tensor) else (states, *output[1:])

        return behind

    def _placeholders(self, rows: Tensor) -> Tensor:
        """(M,) where image tokens are, counted over all sequences."""
        if self._where is not None:
            return self._where
        if self.input_ids is None:
            raise ValueError(
                "a mixer with layers in the language model finds image tokens by input_ids: pass these, not "
                "inputs_embeds"
            )
        where = (self.input_ids == self.model.config.image_token_id).flatten().nonzero().squeeze(1)
        if len(where) != len(rows):
            raise ValueError(f"{len(where)} image tokens in input_ids, and {len(rows)} of the images")
        self._where = where
        return where


@contextmanager
def read(mixed: Any, family: Family, model: Any, inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Inside, the language model of `model` may be run; yields what `model` is to be called with in place of `inputs`.

    Args:
        mixed: As for `Reading`.
        family: As for `Reading`.
        model: As for `Reading`.
        inputs: By name.

    Raises:
        ValueError: As `Reading.taken_from`.
    """
    reading = Reading(mixed, family, model, inputs.get("input_ids"))
    given = reading.taken_from(inputs.get("mm_encoder_outputs"))
    with reading.listening():
        yield inputs if given is None else {**inputs, "mm_encoder_outputs": given}


def entries_of(output: BaseModelOutputWithPooling, rows: Tensor | Sequence[Tensor]) -> Any:
    """Rows laid out as `pooler_output` is.

    Args:
        output: Of `get_image_features`.
        rows: (M, width) in the order of its tokens; or per entry.

    Raises:
        ValueError: If there are not as many.
    """
    entries = image_entries(output)
    counts = [len(entry) for entry in entries]
    flat = rows if isinstance(rows, Tensor) else torch.cat(list(rows))
    if len(flat) != sum(counts):
        raise ValueError(
            f"{len(flat)} tokens have windows, and images have {sum(counts)}: the family lays them out in another way"
        )
    return flat.view(*entries.shape[:-1], -1) if isinstance(entries, Tensor) else list(flat.split(counts))


def with_deepstack(output: Any, layers: Sequence[Any]) -> BaseModelOutputWithDeepstackFeatures:
    """A copy of what encoding images gave, with other features of the decoder's layers; None for no layer."""
    names = ("last_hidden_state", "pooler_output", "hidden_states", "attentions")
    kept = {name: getattr(output, name) for name in names}
    return BaseModelOutputWithDeepstackFeatures(**kept, deepstack_features=list(layers) or None)
