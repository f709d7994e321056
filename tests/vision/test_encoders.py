"""Further vision encoders against their own model classes, run by their own image processors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    BertModel,
)

from mllm_align.vision.encoder_cost import encoder_cost
from mllm_align.vision.encoder_gradients import read_linears
from mllm_align.vision.encoder_reading import shown
from mllm_align.vision.encoders import (
    Encoder,
    VisionEncoder,
    check_encoder,
    encoder_facts,
    encoder_from,
    load_encoder,
)
from tiny_encoders import SMALL
from tiny_further import save_further

# Stride, and tokens before the patches.
CASES = {
    "clip": (14, 1),
    "siglip": (16, 0),
    "siglip2": (16, 0),
    "dinov2": (14, 1),
    "registers": (14, 5),
    "dinov3": (16, 5),
    "dinov3_convnext": (32, 1),
    "mae": (16, 1),
    "vit": (14, 1),
    "radio": (16, 10),
    "convnext": (8, 0),
    "convnextv2": (32, 0),
}
VITS = [name for name in CASES if "convnext" not in name]
CELLS = (3, 5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: str(save_further(name, root / name)) for name in CASES}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def by_itself(name: str, folder: str, image: Image.Image, layer: int | None = None) -> torch.Tensor:
    """(tokens, d): the model's own class, shown the image by its own processor, which leaves its size alone."""
    model = AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    options: dict[str, Any] = {"output_hidden_states": True}
    if name == "radio":  # normalises by itself, and has no processor
        inputs: Any = {"pixel_values": tensor(image)}
    elif name == "siglip2":
        rows, columns = image.height // 16, image.width // 16
        inputs = AutoImageProcessor.from_pretrained(folder)(
            image, max_num_patches=rows * columns, do_resize=False, return_tensors="pt"
        )
    else:
        off = {"do_resize": False} | ({} if name in ("convnext", "convnextv2") else {"do_center_crop": False})
        inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt", **off)
    if name in ("clip", "siglip", "vit", "mae"):
        options["interpolate_pos_encoding"] = True
    if name == "mae":
        model.config.mask_ratio = 0.0
    with torch.no_grad():
        output = model(**inputs, **options)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    if states.dim() == 4:
        return states[0].flatten(1).T
    if name == "mae":  # shuffled: back by its own order
        return states[0, 1:][output.ids_restore[0]]
    return states[0, CASES[name][1] :]


@pytest.mark.parametrize("name", CASES)
def test_it_sees_what_the_model_sees_by_itself(name: str, folders: dict[str, str]) -> None:
    stride, prefix = CASES[name]
    encoder = load_encoder(Encoder(folders[name]))
    assert (encoder.stride, encoder.follows, encoder.readings[0].prefix) == (stride, True, prefix)
    image = picture(CELLS[0] * stride, CELLS[1] * stride)
    found = encoder(tensor(image), CELLS)
    assert found.cells == CELLS
    assert found.values.shape == (1, 15, encoder.width)
    torch.testing.assert_close(found.values[0], by_itself(name, folders[name], image), atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(("name", "layer"), [("clip", -2), ("dinov2", -1), ("siglip", 1), ("mae", -1), ("radio", -2)])
def test_layers(name: str, layer: int, folders: dict[str, str]) -> None:
    stride, _ = CASES[name]
    image = picture(CELLS[0] * stride, CELLS[1] * stride)
    found = load_encoder(Encoder(folders[name], layer))(tensor(image), CELLS).values[0]
    torch.testing.assert_close(found, by_itself(name, folders[name], image, layer), atol=2e-5, rtol=2e-4)
    whole = load_encoder(Encoder(folders[name]))(tensor(image), CELLS).values[0]
    assert (layer == -1 and name == "mae") or (found - whole).abs().max() > 1e-2


@pytest.mark.parametrize("name", VITS)
def test_patches_lie_row_by_row(name: str, folders: dict[str, str]) -> None:
    """The embeddings of patches, before any attention: what changes in one changes its token alone."""
    stride, _ = CASES[name]
    encoder = load_encoder(Encoder(folders[name], 0))
    plain = torch.full((1, 3, CELLS[0] * stride, CELLS[1] * stride), 0.5)
    for row, column in ((0, 4), (2, 1)):
        changed = plain.clone()
        changed[:, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] = 1.0
        moved = (encoder(changed, CELLS).values - encoder(plain, CELLS).values).abs().amax(dim=(0, 2))
        assert (moved > 1e-4).nonzero().flatten().tolist() == [row * CELLS[1] + column]


def test_mae_sees_all_patches_in_their_order_each_time(folders: dict[str, str]) -> None:
    encoder, pixels = load_encoder(Encoder(folders["mae"])), tensor(picture(64, 64))
    first = encoder(pixels, (4, 4)).values
    assert torch.equal(first, encoder(pixels, (4, 4)).values)
    together = encoder(torch.cat([pixels, pixels.flip(3)]), (4, 4)).values
    torch.testing.assert_close(together[:1], first, atol=1e-5, rtol=1e-4)


def test_its_own_statistics_not_those_of_clip(folders: dict[str, str]) -> None:
    """MMVP's code shows DINOv2 what was normalised for CLIP; here each has its own, and three differ."""
    processors = {name: AutoImageProcessor.from_pretrained(folders[name]) for name in ("clip", "siglip", "registers")}
    means = {name: tuple(processor.image_mean) for name, processor in processors.items()}
    assert len(set(means.values())) == 3
    for name, mean in means.items():
        assert load_encoder(Encoder(folders[name])).mean == mean
    dinov2, image = load_encoder(Encoder(folders["registers"])), picture(56, 56)
    wrong = VisionEncoder(dinov2.spec, dinov2.model, means["clip"], processors["clip"].image_std, 56)
    right = by_itself("registers", folders["registers"], image)
    assert (dinov2(tensor(image), (4, 4)).values[0] - right).abs().max() < 1e-4
    assert (wrong(tensor(image), (4, 4)).values[0] - right).abs().max() > 1e-2
    radio = load_encoder(Encoder(folders["radio"]))
    assert (radio.mean, radio.std) == ((0.0,) * 3, (1.0,) * 3)


def test_size_and_models_of_fixed_size(folders: dict[str, str]) -> None:
    encoder, image = load_encoder(Encoder(folders["dinov2"], size=42)), picture(42, 42)
    assert not encoder.follows
    own = by_itself("dinov2", folders["dinov2"], image).T.reshape(1, -1, 3, 3)
    wanted = torch.nn.functional.interpolate(own, (4, 2), mode="bilinear", align_corners=False)
    found = encoder(tensor(image), (4, 2)).values
    torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
    fixed = Aimv2VisionModel(Aimv2VisionConfig(**SMALL, image_size=64, patch_size=16)).eval()
    made = VisionEncoder(Encoder("fixed"), fixed, (0.5,) * 3, (0.5,) * 3, 48)
    assert (made.follows, made.side) == (False, 64)
    with torch.no_grad():
        own = fixed(tensor(image := picture(64, 64)) * 2 - 1).last_hidden_state.mT.reshape(1, -1, 4, 4)
    wanted = torch.nn.functional.interpolate(own, CELLS, mode="bilinear", align_corners=False).flatten(2).mT
    torch.testing.assert_close(made(tensor(image), CELLS).values, wanted, atol=1e-5, rtol=1e-4)


def test_stages_are_concatenated(folders: dict[str, str]) -> None:
    encoder = load_encoder(encoder_from({"model": folders["convnextv2"], "layer": [1, 2, 3, 4], "size": 64}, "x"))
    assert encoder.width == 8 + 16 + 24 + 32
    image = picture(64, 64)
    found = encoder(tensor(image), (8, 8)).values[0]
    start = 0
    for layer, cells in ((1, 16), (2, 8), (3, 4), (4, 2)):
        own = by_itself("convnextv2", folders["convnextv2"], image, layer)
        planes = own.T.reshape(1, -1, cells, cells)
        wanted = torch.nn.functional.interpolate(planes, (8, 8), mode="bilinear", align_corners=False)[0].flatten(1).T
        torch.testing.assert_close(found[:, start : start + own.shape[1]], wanted, atol=1e-5, rtol=1e-4)
        start += own.shape[1]


@pytest.mark.parametrize("size", [(42, 56), (210, 110)])
def test_resizing_is_as_pillow_does_it(size: tuple[int, int]) -> None:
    image = picture(160, 97).point(lambda value: 64 + value // 2)  # or its first pass cuts off what overshoots
    resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    assert (shown(tensor(image), size) - tensor(resized)).abs().max() < 1.6 / 255  # its two passes round to bytes


def test_frozen_ones_stay_in_evaluation_mode_and_without_graph(folders: dict[str, str]) -> None:
    encoder, pixels = load_encoder(Encoder(folders["dinov2"])), tensor(picture(56, 56))
    outer = torch.nn.ModuleList([encoder]).train()
    outer.requires_grad_(True)
    assert encoder.training
    assert not encoder.model.training
    assert not encoder(pixels.requires_grad_(), (4, 4)).values.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(pixels, (4, 4)).values, encoder(pixels, (4, 4)).values.float())
    half = load_encoder(Encoder(folders["dinov2"]), dtype=torch.bfloat16)
    assert half(pixels, (4, 4)).values.dtype == torch.bfloat16
    near = half(pixels, (4, 4)).values.float() - encoder(pixels, (4, 4)).values
    assert near.abs().mean() < 0.05
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(pixels, (4, 4)).values, encoder(pixels, (4, 4)).values)
    assert twin.model is not encoder.model
    assert encoder(torch.zeros(2, 3, 30, 30), CELLS).values.isfinite().all()


@pytest.mark.parametrize(("name", "layer"), [("siglip", None), ("clip", 1), ("mae", -2), ("siglip2", -1)])
def test_trained_ones_train_what_is_read(name: str, layer: int | None, folders: dict[str, str]) -> None:
    encoder = load_encoder(Encoder(folders[name], layer, train="full")).train()
    encoder(tensor(picture(64, 64)), (4, 4)).values.sum().backward()
    trained = {key for key, value in encoder.model.named_parameters() if value.requires_grad}
    assert trained
    assert trained == {key for key, value in encoder.model.named_parameters() if value.grad is not None}
    assert not any("head." in key for key in trained)
    linears = read_linears(encoder)
    assert {key for key in linears if f"{key}.weight" not in trained} == set()
    lora = load_encoder(Encoder(folders[name], layer, train="lora"))
    assert not any(each.requires_grad for each in lora.parameters())
    assert read_linears(lora) == linears


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_four_bits(name: str, folders: dict[str, str]) -> None:
    pixels = tensor(picture(64, 64))
    encoder = load_encoder(Encoder(folders[name], load_in_4bit=True))
    kinds = [type(module).__name__ for module in encoder.model.modules()]
    assert kinds.count("Linear4bit") == 12
    first, exact = encoder(pixels, (4, 4)).values, load_encoder(Encoder(folders[name]))(pixels, (4, 4)).values
    assert torch.equal(first, encoder(pixels, (4, 4)).values)
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), exact.flatten(), dim=0)
    assert 0.8 < cosine < 0.99999
    assert len(read_linears(encoder)) == 12
    assert encoder_cost(encoder, (4, 4)) == encoder_cost(load_encoder(Encoder(folders[name])), (4, 4))


def test_facts_tell_it_from_others(folders: dict[str, str], tmp_path: Path) -> None:
    encoder = load_encoder(Encoder(folders["dinov2"], -1))
    facts = json.loads(json.dumps(encoder_facts(encoder)))
    check_encoder(load_encoder(Encoder(folders["dinov2"], -1)), facts, "here")
    check_encoder(load_encoder(Encoder(folders["dinov2"], -1), dtype=torch.bfloat16), facts, "here")
    other = load_encoder(Encoder(str(save_further("dinov2", tmp_path / "other", seed=1)), -1))
    with pytest.raises(ValueError, match="here: the weights of encoder"):
        check_encoder(other, facts, "here")
    with pytest.raises(ValueError, match="has side 42 now, it had 56"):
        check_encoder(load_encoder(Encoder(folders["dinov2"], -1, size=42)), facts, "here")
    assert encoder_from(facts["encoder"], "x") == encoder.spec


@pytest.mark.parametrize("name", CASES)
def test_cost(name: str, folders: dict[str, str]) -> None:
    stride, prefix = CASES[name]
    encoder = load_encoder(Encoder(folders[name]))
    found = encoder_cost(encoder, CELLS)
    body = getattr(encoder.model, "vision_model", encoder.model)
    assert found.parameters == sum(each.numel() for each in body.parameters())
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 3, CELLS[0] * stride, CELLS[1] * stride), CELLS)
    # sdpa on the CPU is one operation, which the counter may not know: less by the attention at most.
    assert counter.get_total_flops() <= found.flops <= 2.5 * counter.get_total_flops()
    if name in ("dinov2", "mae", "vit", "dinov3", "registers"):
        width, patches = 32, CELLS[0] * CELLS[1]
        tokens = patches + prefix
        hidden = 4 * width if name in ("dinov2", "registers") else 64
        layer = 2 * tokens * (4 * width * width + 2 * width * hidden) + 4 * tokens * tokens * width
        assert found.flops == pytest.approx(2 * layer + 2 * patches * 3 * stride**2 * width, rel=0.03)
    assert next(encoder.model.parameters()).device.type == "cpu"


def test_what_is_wrong_is_said(folders: dict[str, str], tmp_path: Path) -> None:
    def fails(spec: Encoder, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            load_encoder(spec)

    fails(Encoder(str(tmp_path / "none")), "neither a model's folder nor")
    fails(Encoder(folders["dinov2"], 7), "layer 7 is not there; the model has the layers 0 to 2")
    fails(Encoder(folders["dinov2"], size=50), "give it size 56")
    fails(Encoder(folders["convnextv2"], size=72), "give it size 64")
    words = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**words, intermediate_size=8)).save_pretrained(tmp_path / "text")
    fails(Encoder(str(tmp_path / "text")), "no image processor|sees no images")
    bare = tmp_path / "bare"
    save_further("dinov2", bare)
    (bare / "preprocessor_config.json").unlink()
    fails(Encoder(str(bare)), "has no image processor")
    lacking = tmp_path / "lacking"
    model = load_encoder(Encoder(folders["dinov2"])).model
    state = {key: value for key, value in model.state_dict().items() if "layer.1.norm1" not in key}
    model.save_pretrained(lacking, state_dict=state)
    AutoImageProcessor.from_pretrained(folders["dinov2"]).save_pretrained(lacking)
    fails(Encoder(str(lacking)), "its checkpoint lacks weights")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"modle": "x", "model": "y"}, "did you mean 'model'"),
        ({}, "a mapping with `model`"),
        ({"model": "x", "layer": "last"}, "layer must be a whole number"),
        ({"model": "x", "layer": []}, "layer must be a whole number"),
        ({"model": "x", "size": 0}, "size must be"),
        ({"model": "x", "train": "all"}, "train must be one of frozen, lora, full"),
        ({"model": "x", "pixels": "mine"}, "pixels must be one of shared, own"),
        ({"model": "x", "normalise": False}, "normalise must be one of own, base, got False"),
        ({"model": "x", "normalise": "base", "pixels": "own"}, "set normalise to own, or pixels to shared"),
        ({"model": "x", "train": "full", "load_in_4bit": True}, "4-bit weights cannot be trained"),
        ({"model": "x", "revision": 3}, "revision must be text"),
    ],
)
def test_specifications_that_make_no_sense(given: Any, match: str) -> None:
    with pytest.raises(ValueError, match=f"mixer: .*{match}"):
        encoder_from(given, "mixer")


def test_specifications() -> None:
    assert encoder_from("a/b", "mixer") == Encoder("a/b")
    assert str(encoder_from({"model": "a/b", "layer": [1, 2], "train": "lora"}, "mixer")) == (
        "a/b layer (1, 2) train lora"
    )
