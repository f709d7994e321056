"""What is measured of a mixer in a model: parts, lengths, likeness, with adapters and in several families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mixed import mixed_tiny, shake
from mllm_align.data.pixels import ImageEncoder
from mllm_align.families import family_of
from mllm_align.vision.cka import LinearCKA
from mllm_align.vision.mixer_report import MixerMeter
from runs import picture
from tiny import tiny
from tiny_encoders import save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("dinov2", tmp_path_factory.mktemp("encoder"))


def encoded(model: Any, processor: Any, count: int = 3) -> list[Any]:
    encode = ImageEncoder(processor, family_of(model).image_keys)
    return [encode(picture(number)).tensors for number in range(count)]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "llava_next"])
def test_attention_adds_up_and_lengths_are_those_of_the_tokens(family: str, encoder: Path) -> None:
    model, processor, mixed = mixed_tiny(family, "sva", encoder)
    shake(mixed)
    images, own = encoded(model, processor), family_of(model)
    meter = MixerMeter(model)
    for image in images:
        meter.images([image])
    report = meter.report()
    assert sum(report.watched.values()) == pytest.approx(1)
    assert set(report.watched) == {"attention/0", "attention/1"}
    assert report.kind == "SpatialVisionAggregator"
    assert report.encoders == ["own", str(encoder)]
    with torch.no_grad():
        tokens = torch.cat(own.encode_images(model, images).tokens)
        mixed.enabled = False
        plain = torch.cat(own.encode_images(model, images).tokens)
    assert report.lengths["mixed"] == pytest.approx(tokens.norm(dim=-1).mean().item(), rel=1e-5)
    assert report.lengths["plain"] == pytest.approx(plain.norm(dim=-1).mean().item(), rel=1e-5)
    assert report.names == ["own", "encoder 1", "mixed"]
    assert [report.cka[at][at] for at in range(3)] == pytest.approx([1, 1, 1])
    assert report.tokens_cka is not None
    assert report.tokens_cka < 0.99


def test_means_are_over_views_not_over_calls(encoder: Path) -> None:
    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    shake(mixed)
    images = encoded(model, processor)

    def watched(*batches: list[Any]) -> dict[str, float]:
        meter = MixerMeter(model)
        for batch in batches:
            meter.images(batch)
        assert meter.num_views == 3
        return meter.report().watched

    apart = watched([images[0]], [images[1]], [images[2]])
    uneven = watched(images[:2], images[2:])
    assert set(apart) == {"gate/1", "added/1"}
    assert uneven["gate/1"] == pytest.approx(apart["gate/1"])
    # A ratio of lengths over two images is near the mean of two ratios, but not the same.
    assert uneven["added/1"] == pytest.approx(apart["added/1"], rel=0.1)


def test_an_identity_has_the_same_tokens(encoder: Path) -> None:
    model, processor, mixed = mixed_tiny("llava", "gated", encoder)
    meter = MixerMeter(model)
    meter.images(encoded(model, processor))
    report = meter.report()
    assert report.lengths["mixed"] == report.lengths["plain"]
    assert report.tokens_cka == pytest.approx(1, abs=1e-9)
    assert report.watched == {"gate/1": 0, "added/1": 0}
    assert mixed.enabled
    assert mixed.kind.watched is None


def test_interleaved_tokens_are_compared_cell_by_cell(encoder: Path) -> None:
    model, processor, _ = mixed_tiny("llava", "interleave", encoder)
    images = encoded(model, processor)
    meter = MixerMeter(model)
    meter.images(images)
    report = meter.report()
    with torch.no_grad():
        tokens = torch.cat(family_of(model).encode_images(model, images).tokens)
    own, theirs = tokens[0::2], tokens[1::2]
    expected = LinearCKA()
    expected.add({"plain": own, "mixed": torch.cat([own, theirs], dim=-1)})
    assert report.tokens_cka == pytest.approx(expected.between("plain", "mixed"), rel=1e-6)
    assert report.lengths["plain"] == pytest.approx(own.norm(dim=-1).mean().item(), rel=1e-5)
    assert report.watched["norm/1"] == pytest.approx(theirs.norm(dim=-1).mean().item(), rel=1e-5)


def test_tokens_on_no_grid_are_not_compared(encoder: Path) -> None:
    model, processor, _ = mixed_tiny("llava", "x_former", encoder)
    meter = MixerMeter(model)
    meter.images(encoded(model, processor))
    report = meter.report()
    assert report.names == ["own", "encoder 1"]
    assert report.tokens_cka is None
    assert report.lengths["mixed"] > 0


def test_cells_of_finer_grids_are_means(encoder: Path) -> None:
    """With a window of two, the encoder's map is twice as fine: CKA is that of its means in each cell."""
    model, processor, mixed = mixed_tiny("llava", "window", encoder)
    images, meter = encoded(model, processor), MixerMeter(model)
    kept: list[Any] = []
    handle = mixed.mixer.register_forward_hook(lambda module, args, output: kept.append((*args, output)))
    meter.images(images)
    handle.remove()
    ((_, sight, output),) = kept
    (fine,) = sight.extra
    rows, columns = sight.cells
    assert fine.cells == (2 * rows, 2 * columns)
    means = []
    for view in range(3):
        for row in range(rows):
            for column in range(columns):
                places = [
                    (2 * row + down) * 2 * columns + 2 * column + across for down in range(2) for across in range(2)
                ]
                means.append(fine.values[view, places].mean(dim=0))
    expected = LinearCKA()
    expected.add({"own": sight.base.values.flatten(0, 1), "means": torch.stack(means), "mixed": output.flatten(0, 1)})
    assert meter.report().cka == [pytest.approx(row, rel=1e-5) for row in expected.matrix()]


def test_of_several_copies_the_active_one_is_looked_at(encoder: Path) -> None:
    model, processor, _ = mixed_tiny("llava", "gated", encoder)
    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", modules_to_save=["model.vision_mixer.mixer"])
    peft: Any = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "modules_to_save.default" in name and name.endswith("gates"):
                parameter.fill_(0.5)
    images = encoded(model, processor)

    def gate() -> float:
        meter = MixerMeter(peft)
        meter.images(images)
        return meter.report().watched["gate/1"]

    assert gate() == pytest.approx(torch.tensor(0.5).tanh().item())
    with peft.disable_adapter():
        assert gate() == 0


def test_lengths_of_words_leave_placeholders_out(encoder: Path) -> None:
    model, _, _ = mixed_tiny("llava", "gated", encoder)
    meter = MixerMeter(model)
    ids = torch.tensor([5, model.config.image_token_id, model.config.image_token_id, 7])
    meter.text(ids)
    meter.text(torch.tensor([9]))
    words = model.get_input_embeddings().weight[[5, 7, 9]]
    assert meter.report().lengths["text"] == pytest.approx(words.norm(dim=-1).mean().item(), rel=1e-5)


def test_a_model_without_a_mixer_is_refused() -> None:
    with pytest.raises(ValueError, match="no mixer"):
        MixerMeter(tiny("llava")[0])
