"""Before the first step: does every term move the model, or something else that stays, at all?"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from mllm_align.contract import Outcome


def check_trainable(model: nn.Module) -> None:
    """Refuses a model of which nothing trains.

    Raises:
        ValueError: With the mend.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter of the model trains: pass peft_config, load the adapter as trainable, or unfreeze the model"
        )


def check_gradients(outcome: Outcome, ends: Iterable[Tensor], checked: set[str]) -> None:
    """Refuses a term whose gradient reaches no parameter of the model.

    Looks at the structure of the graph, so it costs no backward pass. A term is looked at when it first has rows.

    Args:
        outcome: Of a training batch, with its graph.
        ends: Where gradients must arrive: the policy's trained parameters, or what was measured of it; and what the
            objective keeps after training.
        checked: Names of terms already found in order; updated.

    Raises:
        ValueError: With the term's name and the reason.
    """
    fresh = [term for term in outcome.terms if term.name not in checked and term.weight and float(term.count) > 0]
    if not fresh:
        return
    backbone = {id(end) for end in ends if end.requires_grad}
    for term in fresh:
        if not reaches(term.sum, backbone):
            raise ValueError(
                f"the gradient of term {term.name!r} reaches no parameter of the model, so training it would change "
                f"nothing but the log: {_reason(term.sum)}"
            )
        checked.add(term.name)


def reaches(value: Tensor, parameters: Iterable[int]) -> bool:
    """Whether the graph of `value` leads to one of some parameters, given by their ids."""
    wanted = set(parameters)
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        # Reentrant checkpointing hides what lies inside; what goes in is enough to tell that something does.
        if "CheckpointFunction" in type(node).__name__:
            return True
        todo.extend(following for following, _ in node.next_functions)
    return False


def _reason(value: Tensor) -> str:
    if value.grad_fn is None:
        return "its value has no gradient (detached, or computed from the reference alone)"
    return (
        "it ends in the objective's own parameters or in parts that are frozen; train what it is measured "
        "of: for images the projector (train_projector) or the tower (train_vision), or LoRA on them (lora_scope: "
        "[language, projector, vision]), for texts LoRA on the language model; or drop the term"
    )
