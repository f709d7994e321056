"""What is kept of a mixer beside a model's or an adapter's weights, and putting it back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm_align.families import family_of, inner, unwrap
from mllm_align.families.base import MIXED
from mllm_align.vision.attach import MixerSettings, attach, drawn_image, drawn_pixels
from mllm_align.vision.encoder_spec import encoder_from
from mllm_align.vision.encoders import TOLERANCE, check_encoder, encoder_facts
from mllm_align.vision.mixed_vision import MixedVision, mixed_of
from mllm_align.vision.mixers import MIXERS, Mixer

SETTINGS_FILE, WEIGHTS_FILE = "mixer.json", "mixer.safetensors"
VERSION, PROBES = 1, 16
MIXER, ENCODERS, BASE = "mixer.", "encoders.", "base."


def save_mixer(
    model: Any,
    folder: str | Path,
    processor: Any = None,
    *,
    carried: Sequence[str] = (),
    probe: Sequence[float] | None = None,
) -> None:
    """Writes `mixer.json` and `mixer.safetensors`; what an adapter has trained of the mixer is in the adapter.

    Args:
        model: With a mixer, wrapped in adapters or not.
        folder: Where to.
        processor: The model's; with it a fingerprint of the outputs is written, which `load_model` checks.
        carried: Names of base weights that are not the stock model's, which go along (those of an earlier stage).
        probe: What `own_probe` gave of the model, where it is no longer whole; checked before weights are put in.

    Raises:
        ValueError: If the model has no mixer.
    """
    hf = unwrap(model)
    mixed = mixed_of(inner(hf))
    if mixed is None:
        raise ValueError("the model has no mixer to save")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    tensors = {f"{MIXER}{name}": value for name, value in _own(mixed.mixer).state_dict().items()}
    for number, encoder in enumerate(mixed.seeing):
        # Trained in place, or merged; with adapters the trained weights are in those.
        merged = encoder.spec.train != "frozen" and unwrap(model) is model and _own(encoder) is encoder
        if merged or _own(encoder).changed:
            state = _own(encoder).state_dict()
            kept = {name.replace(".base_layer", ""): v for name, v in state.items() if ".lora_" not in name}
            tensors |= {f"{ENCODERS}{number}.{name}": value for name, value in kept.items()}
    # As they are called without the adapter, which keeps a trained copy or LoRA layers beside them.
    base = {
        name.replace(".original_module", "").replace(".base_layer", ""): value
        for name, value in hf.state_dict().items()
    }
    tensors |= {f"{BASE}{name}": base[name] for name in carried}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, place / WEIGHTS_FILE)
    kind = mixed.kind
    settings = {
        "version": VERSION,
        "kind": kind_name(kind),
        "options": kind.options,
        "family": family_of(hf).name,
        "widths": kind.widths._asdict(),
        "encoders": [_own(encoder).spec._asdict() for encoder in mixed.seeing],
        "facts": [encoder_facts(_own(encoder)) for encoder in mixed.seeing],
        "statistics": mixed.statistics._asdict(),
        "own_probe": None if probe is None else list(probe),
        "fingerprint": None if processor is None else fingerprint(model, processor),
    }
    (place / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def has_mixer(folder: str | os.PathLike[str]) -> bool:
    """Whether a mixer lies beside what is in a folder."""
    return (Path(folder) / SETTINGS_FILE).is_file()


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What `mixer.json` says.

    Raises:
        ValueError: If it cannot be read, or is of another version.
    """
    file = Path(folder) / SETTINGS_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"no mixer in {str(folder)!r}: {SETTINGS_FILE} could not be read ({error})") from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ValueError(f"{str(file)!r} is of another version of mllm_align: it says {found.get('version')!r}")
    return found


def attach_saved(
    model: Any, folder: str | Path, processor: Any, *, encoders: Sequence[str] | None = None, train: bool = True
) -> MixedVision:
    """Attaches the mixer that lies in a folder, with its weights.

    Args:
        model: The base, without adapters.
        folder: Of a run, a checkpoint, an export, or of stage 1 of X-Former.
        processor: The model's.
        encoders: Where the further encoders are now, if they were moved.
        train: Whether the mixer trains.

    Raises:
        ValueError: If it cannot be read, was made for another model or encoder, or weights are missing. Of a model
            that was not whole when it was saved (stage 1 of X-Former) its own vision encoder is compared.
    """
    found = read_settings(folder)
    specs = [encoder_from(each, str(folder)) for each in found["encoders"]]
    if encoders is not None:
        if len(encoders) != len(specs):
            raise ValueError(f"the mixer in {str(folder)!r} has {len(specs)} further encoders, {len(encoders)} given")
        specs = [spec._replace(model=name) for spec, name in zip(specs, encoders, strict=True)]
    settings = MixerSettings(found["kind"], tuple(specs), found["options"], train)
    mixed = attach(model, settings, None, processor)
    widths = {
        name: list(value) if isinstance(value, tuple) else value for name, value in mixed.kind.widths._asdict().items()
    }
    if widths != found["widths"]:
        raise ValueError(
            f"the mixer in {str(folder)!r} was made for a {found['family']} with other widths: {found['widths']}, "
            f"here they are {widths}"
        )
    _check_encoders(mixed, found, folder)
    _check_own_probe(model, processor, found, folder)
    _load(unwrap(model), mixed, _weights(folder), str(folder))
    return mixed


def carried_by(folder: str | Path) -> list[str]:
    """Names of the base weights that go along with a mixer."""
    return [name.removeprefix(BASE) for name in _weights(folder) if name.startswith(BASE)]


def load_mixer_weights(model: Any, folder: str | Path, processor: Any = None) -> None:
    """Loads the weights that lie in a folder into the mixer that is attached.

    Args:
        model: With a mixer, without adapters.
        folder: As for `attach_saved`.
        processor: The model's; with it the model's own encoder is compared, as `attach_saved` does.

    Raises:
        ValueError: If there is none, or it is another mixer, or one of other encoders.
    """
    mixed = mixed_of(inner(unwrap(model)))
    if mixed is None:
        raise ValueError("the model has no mixer")
    found = read_settings(folder)
    if found["kind"] != kind_name(mixed.kind):
        raise ValueError(f"the mixer in {str(folder)!r} is {found['kind']!r}, the model's {kind_name(mixed.kind)!r}")
    _check_encoders(mixed, found, folder)
    if processor is not None:
        _check_own_probe(model, processor, found, folder)
    _load(unwrap(model), mixed, _weights(folder), str(folder))


def kind_name(mixer: nn.Module) -> str:
    """What `vision.mixers.MIXERS` calls a mixer."""
    return next(name for name, kind in MIXERS.items() if type(mixer) is kind)


def part_name(mixed: MixedVision, name: str) -> str:
    """What a module or parameter of mixer or encoders belongs to, in words.

    Args:
        mixed: Of the model.
        name: Its name in the model, PEFT's copies and adapters included.
    """
    part, *rest = name.partition(f"{MIXED}.")[2].split(".")
    if part == "encoders":
        encoder = mixed.seeing[int(rest[0])]
        return f"encoder {int(rest[0]) + 1} ({getattr(encoder, 'original_module', encoder).spec.model})"
    inside = f" {inserted_places(mixed.kind)}" if "inserted" in rest else ""
    return f"mixer {kind_name(mixed.kind)}{inside}"


def inserted_places(mixer: Mixer) -> str:
    """Where a mixer has layers in the language model, in words."""
    return f"behind layer{'s' * (len(mixer.after) > 1)} {', '.join(map(str, mixer.after))} of the language model"


def _check_encoders(mixed: MixedVision, found: Mapping[str, Any], folder: str | Path) -> None:
    """Refuses other encoders than those that the mixer in a folder was trained with."""
    facts = found["facts"]
    if len(facts) != len(mixed.seeing):
        raise ValueError(
            f"the mixer in {str(folder)!r} has {len(facts)} further encoders, the model's {len(mixed.seeing)}"
        )
    for encoder, own in zip(mixed.seeing, facts, strict=True):
        check_encoder(_own(encoder), own, f"the mixer in {str(folder)!r}")


def _weights(folder: str | Path) -> dict[str, Tensor]:
    try:
        return load_file(Path(folder) / WEIGHTS_FILE)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"no mixer in {str(folder)!r}: {WEIGHTS_FILE} could not be read ({error})") from None


def _load(hf: Any, mixed: MixedVision, tensors: Mapping[str, Tensor], folder: str) -> None:
    """Every tensor into its place, and nothing left over."""
    parts: list[tuple[str, nn.Module]] = [(MIXER, _own(mixed.mixer))]
    parts += [(f"{ENCODERS}{number}.", _own(each)) for number, each in enumerate(mixed.encoders)]
    known = (BASE, *(prefix for prefix, _ in parts))
    unknown = next((name for name in tensors if not name.startswith(known)), None)
    if unknown is not None:
        raise ValueError(f"the mixer in {folder!r} does not fit: nothing here takes its weight {unknown!r}")
    for prefix, module in parts:
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if not own and prefix != MIXER:
            continue
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"the mixer in {folder!r} does not fit: {' '.join(str(error).split())}") from None
        if prefix != MIXER:
            module.changed = True  # type: ignore[assignment]
    with torch.no_grad():
        base = hf.state_dict()
        for name, value in tensors.items():
            if name.startswith(BASE):
                there = base.get(name.removeprefix(BASE))
                if there is None or there.shape != value.shape:
                    raise ValueError(f"the mixer in {folder!r} belongs to another model: no {name.removeprefix(BASE)}")
                there.copy_(value)
    mixed.loaded = True


def _own(module: Any) -> Any:
    """The module itself, of what PEFT keeps a trained copy beside."""
    return getattr(module, "original_module", module)


# -- the fingerprint ---------------------------------------------------------------------------------------------


@torch.no_grad()
def fingerprint(model: Any, processor: Any) -> dict[str, Any]:
    """Some image tokens and logits of one drawn image, as the model makes them now.

    Args:
        model: In memory as a whole, with its adapters on.
        processor: The model's.
    """
    hf = unwrap(model)
    family = family_of(hf)
    with _evaluating(hf):
        tokens = family.encode_images(hf, [drawn_pixels(processor, family)]).tokens[0]
        inputs = processor(text=[processor.image_token], images=[drawn_image()], return_tensors="pt")
        placed = {key: value.to(tokens.device) for key, value in inputs.items()}
        placed = {k: v.to(tokens.dtype) if k == "pixel_values" else v for k, v in placed.items()}
        logits = hf(**placed).logits[0, -1]
    return {
        "tokens": _sample(tokens),
        "logits": _sample(logits),
        "dtype": str(hf.dtype),
        "quantised": bool(getattr(hf, "is_quantized", False)),
    }


def check_fingerprint(model: Any, processor: Any, folder: str | Path) -> None:
    """Refuses a model whose image tokens or logits are not those that were saved.

    Logits are compared where precision and quantisation are the same.

    Raises:
        ValueError: If something of the model was not loaded, or is another model's.
    """
    saved = read_settings(folder)["fingerprint"]
    what = None if saved is None else difference(saved, fingerprint(model, processor))
    if what is not None:
        raise ValueError(
            f"the model with what is in {str(folder)!r} gives other {what} of one and the same image than when it "
            "was saved: a part was not loaded, or the base is another one"
        )


def difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In what two fingerprints differ: "image tokens", "logits", or None for in nothing that counts."""
    alike = all(saved[key] == now[key] for key in ("dtype", "quantised"))
    exact = alike and saved["dtype"] == "torch.float32" and not saved["quantised"]
    for name, what in (("tokens", "image tokens"), ("logits", "logits"))[: 2 if alike else 1]:
        theirs, ours = torch.tensor(saved[name]), torch.tensor(now[name])
        tolerance = (1e-3 if exact else 5e-2) * theirs.abs().max().clamp(min=1e-6)
        if theirs.shape != ours.shape or (theirs - ours).abs().max() > tolerance:
            return what
    return None


@torch.no_grad()
def own_probe(model: Any, processor: Any) -> list[float]:
    """Some of what the projector reads of one drawn image: it tells a model's own vision encoder from others.

    Args:
        model: With its tower and projector; the language model may be gone.
        processor: The model's.
    """
    hf = unwrap(model)
    family, mixed, found = family_of(hf), mixed_of(inner(hf)), list[Tensor]()
    handle = family.module(hf, family.projector).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    enabled = mixed is not None and mixed.enabled
    try:
        if mixed is not None:
            mixed.enabled = False
        with _evaluating(hf):
            family.encode_images(hf, [drawn_pixels(processor, family)])
    finally:
        handle.remove()
        if mixed is not None:
            mixed.enabled = enabled
    return _sample(found[0].flatten(0, -2).float().mean(dim=0))


def _check_own_probe(model: Any, processor: Any, settings: Mapping[str, Any], folder: str | Path) -> None:
    """Refuses a model whose own vision encoder is not the one that a mixer in a folder was trained with."""
    saved = settings.get("own_probe")
    if saved is None:
        return
    known, now = torch.tensor(saved), torch.tensor(own_probe(model, processor))
    if known.shape != now.shape or (known - now).abs().max() > TOLERANCE * known.abs().max().clamp(min=1e-6):
        raise ValueError(
            f"the mixer in {str(folder)!r} was trained with another vision encoder of the model's own: one and the "
            "same image has other features now; take the model that it was trained with"
        )


def _sample(values: Tensor) -> list[float]:
    flat = values.detach().flatten().float()
    index = torch.linspace(0, flat.numel() - 1, PROBES, dtype=torch.float64).long()
    return [round(value, 6) for value in flat[index.to(flat.device)].tolist()]


@contextmanager
def _evaluating(model: nn.Module) -> Any:
    """Inside, without dropout; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
