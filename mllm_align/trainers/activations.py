"""What autograd keeps of a stack of transformer layers for the backward pass, counted from the layers' own shapes.

Per token and layer, with widths H (residual stream), Q = heads x head size, K = key heads x head size, I (inner width
of the MLP) and ranks r; c is the size of a number that linear layers give out (2 under autocast or in 16-bit weights):

    norms        4 H each: an RMS norm squares and scales a float32 copy of its input, and both products keep it
                 (a layer norm keeps its input as it is, in float32 under autocast); c H more where its weight trains
    attention    c (Q + 2 K + Q): queries, keys and values after rotation, and the output; 4 per head for the
                 log-sum. Under a mask, keys and values are repeated to Q each; packed sequences run in two parts
                 (`signals.attention`), the first without a mask, whose outputs are joined: then the output is
                 there twice
    MLP          c 3 I if gated (the gate before and after its activation, and what it is multiplied with), else c I
                 for what enters the activation (2 I for quick GELU: the sigmoid too)
    experts      c n (3 I + H) for the n that a token is sent to, where they are one three-dimensional parameter
    linear       its input, only where its weight or an adapter on it trains: layers that read the same tensor share
                 it, unless each makes a cast copy of its own (PEFT casts to the adapter's dtype, autocast casts
                 back); c r more for what lies between the two halves of an adapter

With activation checkpointing a layer keeps its input alone, and one layer at a time has the rest. The sums over a
whole model are checked against autograd in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

FLOAT = 4
# Without a mask; with one for the responses alone; with one for all tokens.
PLAIN, SPLIT, WHOLE = ATTENTION = ("plain", "split", "whole")


@dataclass(frozen=True)
class Precision:
    """In what precision a stack computes.

    Attributes:
        stream: Bytes per number of the residual stream, that is of the embeddings.
        autocast: Bytes per number of autocast's dtype, or None where it is off.
    """

    stream: int
    autocast: int | None = None

    @property
    def compute(self) -> int:
        """Bytes per number that a linear layer gives out."""
        return self.autocast or self.stream


class Linear(NamedTuple):
    """One linear layer: its name in the block, widths, whether it needs its input, and the adapter on it."""

    name: str
    inputs: int
    outputs: int
    trains: bool
    rank: int
    adapter_bytes: int | None

    @property
    def in_attention(self) -> bool:
        """Whether it belongs to the attention, not to the MLP."""
        return "attn" in self.name or "attention" in self.name

    @property
    def is_output(self) -> bool:
        """Whether it ends the attention."""
        leaf = self.name.rpartition(".")[2]
        return leaf.startswith("o") or leaf == "proj"


@dataclass(frozen=True)
class LayerBytes:
    """Bytes per token of one layer.

    Attributes:
        kept: Kept for the backward pass, by how its attention runs (one of `ATTENTION`).
        per_key: Kept per token and key, where attention weights are written out ("eager").
        entry: The layer's input, all that checkpointing keeps.
        forward_work: Alive for a moment in a pass without a graph: four tensors of the stream, four of the MLP's.
        backward_work: Gradients alive for a moment beside what is kept: two of the stream, one of the MLP's.
        trains: Whether something in it trains.
        casts: Bytes of 16-bit copies that autocast makes of frozen float32 weights, and the backward pass needs; for
            the layer, not per token.
    """

    kept: Mapping[str, int]
    per_key: int
    entry: int
    forward_work: int
    backward_work: int
    trains: bool
    casts: int


@dataclass(frozen=True)
class Stack:
    """Layers that run one after another, and whether what enters them needs a gradient."""

    layers: tuple[LayerBytes, ...]
    width: int
    input_trains: bool

    @property
    def trains(self) -> bool:
        """Whether a backward pass goes through any of it."""
        return self.input_trains or any(layer.trains for layer in self.layers)

    def kept(self, tokens: int, keys: int, attention: str) -> int:
        """Bytes kept for the backward pass without checkpointing.

        Args:
            tokens: That go through it, padding counted.
            keys: Tokens that each one may see: the length of its sequence.
            attention: One of `ATTENTION`.
        """
        total, reached = 0, self.input_trains
        for layer in self.layers:
            if not (reached or layer.trains):
                continue
            reached = True
            total += layer_bytes(layer, tokens, keys, attention)
        return total

    def entries(self, tokens: int) -> int:
        """Bytes that checkpointing keeps of all layers."""
        return tokens * sum(layer.entry for layer in self.layers) if self.trains else 0

    def largest_layer(self, tokens: int, keys: int, attention: str) -> int:
        """Bytes of the largest layer, which checkpointing runs again."""
        return max((layer_bytes(layer, tokens, keys, attention) for layer in self.layers), default=0)

    def forward_work(self, tokens: int) -> int:
        """Bytes alive for a moment in a pass without a graph."""
        return tokens * max((layer.forward_work for layer in self.layers), default=0)

    def backward_work(self, tokens: int) -> int:
        """Bytes of gradients alive for a moment in the backward pass."""
        return tokens * max((layer.backward_work for layer in self.layers), default=0)


def layer_bytes(layer: LayerBytes, tokens: int, keys: int, attention: str) -> int:
    """Bytes that one layer keeps without checkpointing."""
    return tokens * (layer.kept[attention] + keys * layer.per_key) + layer.casts


def stack_of(module: nn.Module, precision: Precision, *, heads: int, attention: str, input_trains: bool) -> Stack:
    """The layers of a text decoder or a vision tower.

    Args:
        module: It or a part of it is a list of layers; of several the largest counts.
        precision: Of the computation.
        heads: Attention heads.
        attention: Back end, by transformers' name.
        input_trains: Whether what enters the first layer needs a gradient.
    """
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and linears_of(part)]
    blocks: Sequence[nn.Module] = max(lists, key=_size) if lists else ()  # type: ignore[assignment]
    layers = tuple(_layer(block, precision, heads, attention) for block in blocks)
    width = next((linear.inputs for block in blocks for linear in linears_of(block)), 0)
    return Stack(layers, width, input_trains)


def linears_of(block: nn.Module) -> list[Linear]:
    """Every linear layer of a block, adapters and the layer beneath taken as one."""
    found, inside = [], "/"
    for name, module in block.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside = f"{name}."
            base: Any = module.get_base_layer()
            if isinstance(base, nn.Linear):
                found.append(_adapted(name, module, base))
        elif isinstance(module, nn.Linear):
            trains = module.weight.requires_grad
            found.append(Linear(name, module.in_features, module.out_features, trains, 0, None))
    return found


def _adapted(name: str, module: Any, base: nn.Linear) -> Linear:
    pairs = getattr(module, "lora_A", {})
    halves = [pairs[adapter].weight for adapter in module.active_adapters if adapter in pairs]
    trains = base.weight.requires_grad or any(half.requires_grad for half in halves)
    rank = sum(half.shape[0] for half in halves)
    size = halves[0].element_size() if halves else None
    return Linear(name, base.in_features, base.out_features, trains, rank, size)


def _layer(block: nn.Module, precision: Precision, heads: int, attention: str) -> LayerBytes:
    c = precision.compute
    linears = linears_of(block)
    own = [linear for linear in linears if linear.in_attention]
    mlp = [linear for linear in linears if not linear.in_attention]
    out = [linear for linear in own if linear.is_output]
    into = [linear for linear in own if not linear.is_output]
    width = into[0].inputs if into else linears[0].inputs
    inward = [linear for linear in mlp if linear.inputs == width and linear is not mlp[-1]]
    outward = [linear for linear in mlp if linear not in inward]
    inner = outward[0].inputs if outward else 0
    q = out[0].inputs if out else width
    k = max(sum(linear.outputs for linear in into) - q, 0) // 2
    norms, read = _norms(block, precision, q, k)

    kept = sum(norms) + c * sum(linear.rank for linear in linears)
    kept += _inputs(into, read, precision) + _inputs(inward, read, precision) + _inputs(outward, c, precision)
    kept += c * inner * (3 if len(inward) > 1 else 1 + _is_quick_gelu(block))
    per_token, expert = _experts(block)
    kept += c * per_token
    joined, shared = _output_copies(out, precision)
    weights = _attention_weights(block, c) * heads if attention == "eager" else 0
    repeated = 2 * q if weights or k < q else 2 * k
    first_part = 2 * k if k < q else 0
    always = kept + FLOAT * heads + c * 2 * q
    if attention == "flex_attention":
        repeated, first_part, joined = 2 * k, 0, shared
    return LayerBytes(
        kept={
            PLAIN: always + c * (repeated if weights else 2 * k) + shared,
            SPLIT: always + c * (repeated + first_part) + joined,
            WHOLE: always + c * repeated + shared,
        },
        per_key=weights,
        entry=width * precision.stream,
        forward_work=c * 4 * (width + max(inner, expert)),
        backward_work=c * (2 * width + max(inner, expert)),
        trains=any(p.requires_grad for p in block.parameters()),
        casts=_casts(block, precision),
    )


def _attention_weights(block: nn.Module, size: int) -> int:
    """Bytes per head, token and key where attention weights are written out: a float32 softmax and its cast copy."""
    capped = any(getattr(part, "attn_logit_softcapping", None) for part in block.modules())
    return FLOAT + (size if size < FLOAT else 0) + (size if capped else 0)


def _norms(block: nn.Module, precision: Precision, q: int, k: int) -> tuple[list[int], int]:
    """Bytes of each norm, and per number of what it gives out."""
    found, read = [], precision.stream
    for name, module in block.named_modules():
        weight: Any = getattr(module, "weight", None)
        if "norm" not in type(module).__name__.lower() or not isinstance(weight, torch.Tensor):
            continue
        leaf = name.rpartition(".")[2]
        size: int = q if leaf == "q_norm" else k if leaf == "k_norm" else weight.numel()
        if isinstance(module, nn.LayerNorm):
            read = FLOAT if precision.autocast else precision.stream
            found.append(size * read + 2 * FLOAT)
        else:
            found.append(size * (FLOAT + (precision.stream if weight.requires_grad else 0)) + FLOAT)
    return found, read


def _experts(block: nn.Module) -> tuple[int, int]:
    """Numbers that a mixture of experts keeps per token, and the inner widths that a token sees together."""
    per_token = inner = 0
    for module in block.modules():
        down: Any = getattr(module, "down_proj", None)
        if not isinstance(down, nn.Parameter) or down.dim() != 3:
            continue
        chosen = next((int(part.top_k) for part in block.modules() if hasattr(part, "top_k")), 1)  # type: ignore
        trained = down.shape[1] + down.shape[2] if down.requires_grad else 0
        per_token += chosen * (3 * down.shape[2] + down.shape[1] + trained)
        inner = chosen * down.shape[2]
    return per_token, inner


def _inputs(readers: Sequence[Linear], size: int, precision: Precision) -> int:
    """Bytes kept of one tensor, `size` bytes per number, for the linear layers that read it."""
    total, shared = 0, 0
    for reader in readers:
        if not reader.trains:
            continue
        saved = precision.autocast or reader.adapter_bytes or size
        if saved != size or (reader.adapter_bytes or size) != size:
            total += reader.inputs * saved
        else:
            shared = reader.inputs * size
    return total + shared


def _output_copies(out: Sequence[Linear], precision: Precision) -> tuple[int, int]:
    """Bytes of what the attention's last layer keeps, where its input was joined from parts and where it was not."""
    kept = _inputs(out, precision.compute, precision)
    is_cast = kept and (out[0].adapter_bytes or precision.compute) != precision.compute
    return kept, kept if is_cast else 0


def _is_quick_gelu(block: nn.Module) -> bool:
    return any("QuickGELU" in type(module).__name__ for module in block.modules())


def _casts(block: nn.Module, precision: Precision) -> int:
    if precision.autocast is None or precision.autocast == precision.stream:
        return 0
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    return sum(linear.weight.numel() for linear in linears if linear.weight.is_floating_point()) * precision.autocast


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
