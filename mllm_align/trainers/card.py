"""The model card: what was trained, from what, on what, how."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

PACKAGES = ("mllm-align", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")
SETTINGS = (
    "learning_rate",
    "projector_learning_rate",
    "vision_learning_rate",
    "mixer_learning_rate",
    "head_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "num_train_epochs",
    "max_steps",
    "max_length",
    "seed",
    "bf16",
    "fp16",
    "float32_master_weights",
    "packing",
    "max_tokens_per_batch",
)


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        base_model: Hub id or folder.
        objective: The objective.
        sources: Rows per data source; None where a stream does not tell.
        settings: The run's settings.
        batch_size: Rows per step over all ranks.
        adapter: The adapter's configuration, or None where the whole model trained.
        parts: Of its `modules_to_save`, those that are parts of one thing, with what that is in words.
        quantization: How the base was quantised, in words, or None.
        steps: Steps done.
        log: The log's entries.
        recipe: The recipe as text.
        decisions: What was changed to fit a memory budget, one sentence each.
        shares: What was taken of each named source, one line each.
        mixer: Kind, encoders and tokens of a mixer, in words, or None.
    """

    base_model: str
    objective: Any
    sources: Mapping[str, int | None]
    settings: Any
    batch_size: int
    adapter: Any = None
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    quantization: str | None = None
    steps: int = 0
    log: Iterable[Mapping[str, Any]] = ()
    recipe: str | None = None
    decisions: Sequence[str] = ()
    shares: Sequence[str] = ()
    mixer: str | None = None


def describe_objective(objective: Any) -> list[str]:
    """One line per objective: class and numbers; the parts of a weighted sum with weight and sources."""
    parts = getattr(objective, "parts", None)
    if parts:
        lines = []
        for part in parts:
            rows = "every source" if part.sources is None else ", ".join(part.sources)
            inner = describe_objective(part.objective)
            lines.append(f"{inner[0]}, weight {part.weight:g}, on {rows}")
            lines.extend(f"  {line}" for line in inner[1:])
        return lines
    if dataclasses.is_dataclass(objective):
        fields = [field.name for field in dataclasses.fields(objective) if field.repr]
        numbers = ", ".join(f"{name}={getattr(objective, name)!r}" for name in fields)
        return [f"{type(objective).__name__}({numbers})"]
    told = getattr(objective, "extra_repr", lambda: "")()
    return [f"{type(objective).__name__}({told})"]


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the Hub's YAML header."""
    sections = [
        _header(facts),
        _training(facts),
        _table("Settings", _settings(facts)),
        _table("Last logged", _last_logged(facts.log)),
        _table("Versions", [("python", platform.python_version()), *_versions()]),
    ]
    if facts.decisions:
        changed = "\n".join(f"- {decision}" for decision in facts.decisions)
        sections.append(f"## Changed to fit {facts.settings.memory_budget:g} GB\n\n{changed}\n")
    if facts.recipe:
        sections.append(f"## Recipe\n\n```yaml\n{facts.recipe.strip()}\n```\n")
    return "\n".join(section for section in sections if section)


def _header(facts: CardFacts) -> str:
    data: dict[str, Any] = {
        "library_name": "peft" if facts.adapter is not None else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mllm-align", *(["lora"] if facts.adapter is not None else [])],
    }
    # The Hub refuses a base model that is no repository id.
    if not Path(facts.base_model).exists() and facts.base_model.count("/") == 1:
        data["base_model"] = facts.base_model
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n"


def _training(facts: CardFacts) -> str:
    lines = ["# Aligned vision-language model\n", f"Base model: `{facts.base_model or 'unknown'}`\n"]
    if facts.quantization:
        lines.append(f"The base was loaded in {facts.quantization}.\n")
    if facts.adapter is not None:
        lines.append(f"Adapter: {_adapter(facts.adapter, facts.parts)}\n")
    if facts.mixer:
        lines.append(f"Mixer: {facts.mixer}\n")
    lines.append("## Objective\n")
    for line in describe_objective(facts.objective):
        indent = len(line) - len(line.lstrip())
        lines.append(f"{line[:indent]}- {line.lstrip()}")
    lines.append("\n## Data\n")
    if facts.settings.shares.draws or facts.settings.shares.caps:
        return "\n".join([*lines, *(f"- {share}" for share in facts.shares)]) + "\n"
    lines.extend(
        f"- `{name}`: {f'{count} rows' if count is not None else 'a stream'}" for name, count in facts.sources.items()
    )
    return "\n".join(lines) + "\n"


def _adapter(config: Any, parts: Mapping[str, str]) -> str:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    told = []
    if hasattr(config, "lora_alpha"):
        told.append(f"rank {config.r}, alpha {config.lora_alpha}, dropout {config.lora_dropout}")
    targets = config.target_modules
    if isinstance(targets, list | set):
        told.append(f"{len(targets)} layers")
    if getattr(config, "modules_to_save", None):
        whole = dict.fromkeys(parts.get(name, name) for name in config.modules_to_save)
        told.append(f"trained in full: {', '.join(whole)}")
    if getattr(config, "trainable_token_indices", None):
        told.append(f"{len(config.trainable_token_indices)} vectors of soft prompts")
    return f"{kind}, {', '.join(told)}"


def _settings(facts: CardFacts) -> list[tuple[str, Any]]:
    unused = "max_steps" if facts.settings.max_steps < 0 else "num_train_epochs"
    values = [(name, getattr(facts.settings, name)) for name in SETTINGS if name != unused]
    shown = [(name, getattr(value, "value", value)) for name, value in values if value is not None]
    by_rows = [] if facts.settings.max_tokens_per_batch else [("rows per step", facts.batch_size)]
    return [*by_rows, ("steps done", facts.steps), *shown]


def _last_logged(log: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    latest: dict[str, Any] = {}
    for entry in log:
        latest.update({name: value for name, value in entry.items() if isinstance(value, int | float)})
    hidden = ("epoch", "step", "runtime", "per_second", "total_flos")
    return [
        (name, f"{value:.4g}" if isinstance(value, float) else value)
        for name, value in latest.items()
        if not any(mark in name for mark in hidden)
    ]


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found


def _table(title: str, rows: list[tuple[str, Any]]) -> str:
    if not rows:
        return ""
    # A bar would end the cell.
    body = "\n".join(f"| {name.replace('|', chr(92) + '|')} | {value} |" for name, value in rows)
    return f"## {title}\n\n| | |\n|---|---|\n{body}\n"
