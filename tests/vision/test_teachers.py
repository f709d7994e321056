"""Teachers against their own model classes, one image at a time, pooled by loops in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, LayoutLMv3Model

from mllm_align.contract import Teacher
from mllm_align.data.objects import ImageObject
from mllm_align.vision.document_teacher import DocumentTeacher, page_box
from mllm_align.vision.teachers import load_teacher
from tiny_encoders import save_encoder
from tiny_teachers import save_teacher

BOXES = ((0.1, 0.2, 0.55, 0.9), (0.0, 0.0, 1.0, 1.0), (0.41, 0.43, 0.45, 0.44))
CASES = {
    "dinov2": (Teacher("", size=70), 5, 1),  # five cells a side, behind one class token
    "clip": (Teacher(""), 4, 1),
    "siglip": (Teacher("", layer=1), 4, 0),
    "vit": (Teacher("", size=42, layer=-1), 3, 1),
    "radio": (Teacher("", size=32), 2, 10),  # three classes and seven registers
    "convnext": (Teacher(""), 8, 0),
}
TOKENS = {" ": "Ġ", "ü": "Ã¼"}
PUBLISHED = ("radio", "convnext", "layoutlmv3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("teachers")
    names = [*CASES, "layoutlmv3"]
    return {name: str((save_teacher if name in PUBLISHED else save_encoder)(name, root / name)) for name in names}


def objects(*texts: str) -> tuple[ImageObject, ...]:
    return tuple(ImageObject(0, box, text=text) for box, text in zip(BOXES, texts or ("",) * 3, strict=False))


def squares(image: Image.Image, size: int, mean: Any, std: Any) -> torch.Tensor:
    """(1, 3, size, size) float32, channel by channel."""
    small = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    channels = [(small[:, :, c] - np.float32(mean[c])) / np.float32(std[c]) for c in range(3)]
    return torch.from_numpy(np.stack(channels))[None]


def by_loop(tokens: torch.Tensor, cells: int, box: tuple[float, ...]) -> torch.Tensor:
    total, area = torch.zeros(tokens.shape[1], dtype=torch.float64), 0.0
    for row in range(cells):
        for column in range(cells):
            across = max(0.0, min(box[2] * cells, column + 1) - max(box[0] * cells, column))
            down = max(0.0, min(box[3] * cells, row + 1) - max(box[1] * cells, row))
            total += across * down * tokens[row * cells + column].double()
            area += across * down
    return total / area


@pytest.mark.parametrize("name", CASES)
def test_a_vision_teacher_pools_its_own_patches(name: str, folders: dict[str, str], pictures: list[Any]) -> None:
    teacher, cells, before = CASES[name]
    teacher = teacher._replace(model=folders[name])
    loaded = load_teacher(teacher)
    whole: Any = AutoModel.from_pretrained(folders[name]).eval()
    model = getattr(whole, "vision_model", whole)
    pixels = loaded.pixels  # type: ignore[attr-defined]
    two = pictures[:2]
    found = loaded(two, [objects(), objects()[:1]], "regions")
    means = loaded(two, [(), ()], "mean")
    assert [len(own) for own in found] == [3, 1]
    for image, own, mean in zip(two, found, means, strict=True):
        seen = squares(image, pixels.size, pixels.mean, pixels.std)
        more = {"interpolate_pos_encoding": True} if name in ("clip", "siglip", "vit") else {}
        with torch.no_grad():
            out = model(pixel_values=seen, output_hidden_states=True, **more)
        states = out.hidden_states[teacher.layer] if teacher.layer is not None else None
        if states is None:
            states = out.get("last_hidden_state") if name != "radio" else out.features
            before = 0 if name == "radio" else before
        tokens = states[0].flatten(1).T if states.dim() == 4 else states[0][before:]
        assert len(tokens) == cells * cells
        assert loaded.width == tokens.shape[1]
        torch.testing.assert_close(mean[0], tokens.mean(0), atol=1e-5, rtol=1e-4)
        for value, box in zip(own, BOXES, strict=False):
            torch.testing.assert_close(value.double(), by_loop(tokens, cells, box), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-3)
    assert not torch.allclose(means[0], means[1], atol=1e-3)


def test_a_mask_is_pooled_by_its_pixels_and_nothing_by_nothing(folders: dict[str, str], pictures: list[Any]) -> None:
    loaded = load_teacher(Teacher(folders["clip"]))
    mask = np.zeros((8, 8), dtype=np.float32)
    mask[2:4, 4:8] = 1  # two of the sixteen cells
    there = (ImageObject(0, BOXES[0], mask), ImageObject(0, (0.5, 0.25, 1.0, 0.5)), ImageObject(0, (2.0, 0, 3.0, 1)))
    (found,) = loaded([pictures[0]], [there], "regions")
    torch.testing.assert_close(found[0], found[1])
    assert not found[2].any()


def naive_document(folder: str, image: Image.Image, texts: list[str], bytes_of: dict[str, list[int]]) -> Any:
    """The states of a page read in one go: those of each text's bytes, and the sixteen patches."""
    model: Any = LayoutLMv3Model.from_pretrained(folder).eval()
    ids, boxes, owner = [0], [[0, 0, 0, 0]], [-1]
    for number, text in enumerate(texts):
        for token in bytes_of[text]:
            ids.append(token)
            boxes.append([round(side * 1000) for side in BOXES[number]])
            owner.append(number)
    ids, boxes, owner = [*ids, 2], [*boxes, [0, 0, 0, 0]], [*owner, -1]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([ids]),
            bbox=torch.tensor([boxes]),
            pixel_values=squares(image, 64, (0.5,) * 3, (0.5,) * 3),
        ).last_hidden_state[0]
    words = [
        out[[place for place, own in enumerate(owner) if own == number]].mean(0) if number in owner else None
        for number in range(len(texts))
    ]
    return words, out[len(ids) + 1 :]


def test_a_document_teacher_reads_words_where_they_stand(folders: dict[str, str], pictures: list[Any]) -> None:
    loaded: Any = load_teacher(Teacher(folders["layoutlmv3"]))
    assert isinstance(loaded, DocumentTeacher)
    loaded.pixels.resample = int(Image.Resampling.BICUBIC)
    texts = ["Total  12", "", "ü"]
    ids = {text: [loaded.tokenizer.convert_tokens_to_ids(token) for token in bytes_text(text)] for text in texts}
    more = [ImageObject(0, BOXES[0], text="another page")]
    found, other = loaded([pictures[0], pictures[1]], [objects(*texts), more], "regions")
    words, patches = naive_document(folders["layoutlmv3"], pictures[0], texts, ids)
    torch.testing.assert_close(found[0], words[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[2], words[2], atol=1e-5, rtol=1e-4)
    # The second has no words: it is what it covers of the picture, here all of it.
    torch.testing.assert_close(found[1].double(), by_loop(patches, 4, BOXES[1]), atol=1e-5, rtol=1e-4)
    assert other.shape == (1, 32)
    (mean,) = loaded([pictures[0]], [objects(*texts)], "mean")
    torch.testing.assert_close(mean[0], patches.mean(0), atol=1e-5, rtol=1e-4)
    assert loaded([pictures[0]], [()], "regions")[0].shape == (0, 32)


def bytes_text(text: str) -> list[str]:
    """The tokens of a text where every byte is one: words parted by one space, a space before each."""
    return [token for word in text.split() for byte in f" {word}" for token in TOKENS.get(byte, byte)]


def test_a_long_page_is_read_in_windows(
    folders: dict[str, str], pictures: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    loaded: Any = load_teacher(Teacher(folders["layoutlmv3"]))
    assert loaded.room == 62
    texts = ["a" * 40, "b" * 15, "c" * 30]  # with the space before each 41, 16 and 31 tokens
    windows = loaded.windows(objects(*texts))
    assert [[piece.number for piece in window] for window in windows] == [[0, 1], [2]]
    (found,) = loaded([pictures[0]], [objects(*texts)], "regions")
    (alone,) = loaded([pictures[0]], [objects(*texts)[2:]], "regions")
    torch.testing.assert_close(found[2], alone[0], atol=1e-5, rtol=1e-4)
    assert not caplog.records
    (cut,) = loaded([pictures[0]], [objects("d" * 200)], "regions")
    (first,) = loaded([pictures[0]], [objects("d" * 61)], "regions")
    torch.testing.assert_close(cut, first, atol=1e-5, rtol=1e-4)
    assert "has 201 tokens, more than the 62" in caplog.text
    assert loaded.num_cut == 1


def test_boxes_as_a_page_counts_them() -> None:
    assert page_box((0.1004, -0.2, 1.3, 0.5)) == (100, 0, 1000, 500)
    assert page_box((0.6, 0.5, 0.2, 0.1)) == (200, 100, 600, 500)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nowhere", {}, "neither a model's folder nor a model on the Hub in reach"),
        ("clip", {"kind": "document"}, "is a clip, which reads no words on a page"),
        ("layoutlmv3", {"kind": "vision"}, "reads words too: leave kind out"),
        ("layoutlmv3", {"size": 128}, "sees pages of 64 pixels alone, not of 128"),
        ("dinov2", {"size": 60}, "patches of 14 pixels do not fill images of 60: give the teacher size 56"),
        ("dinov2", {"layer": 9}, "cannot be used: layer 9 is not there; the model has the layers 0 to 2"),
    ],
)
def test_what_cannot_teach_is_one_line(
    name: str, change: dict[str, Any], message: str, folders: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="teacher ") as error:
        load_teacher(Teacher(folders.get(name, "no/such-model"), **change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_its_processor_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    """Nobody would know how its images are normalised; RADIO does that by itself."""
    for file in Path(folders["dinov2"]).iterdir():
        if "processor" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="has no image processor that can be loaded"):
        load_teacher(Teacher(str(tmp_path)))
    assert not [file for file in Path(folders["radio"]).iterdir() if "processor" in file.name]
    assert load_teacher(Teacher(folders["radio"])).width == 32


def test_a_checkpoint_without_weights_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "half").mkdir()
    for file in Path(folders["dinov2"]).iterdir():
        (tmp_path / "half" / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "half" / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layer.1" not in name}
    save_file(kept, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="its checkpoint lacks weights such as"):
        load_teacher(Teacher(str(tmp_path / "half")))
