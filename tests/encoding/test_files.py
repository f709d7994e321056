from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mllm_align.contract import Embedding, EmbeddingHead, Feature
from mllm_align.encoding import embedding_of, files, has_embedding, load_embedding, load_encoder, save_embedding

IMAGE = Feature("image:image", "embedding", "image", 0.5, "tokens", prompt="What is it?")
TEXT = Feature("text:caption", "embedding", "caption", 0.5, "tokens", prompt="What does it say?\n'Say' it.")
PLAIN = {"image": IMAGE._replace(pooling="last"), "text": TEXT._replace(pooling="last")}


class Keeps(nn.Module):
    def __init__(self, embedding: Embedding | None) -> None:
        super().__init__()
        self.given = embedding
        # Another thing of that name, as many modules have it.
        self.words = nn.Module()
        self.words.embedding = nn.Embedding(2, 2)

    @property
    def embedding(self) -> Embedding | None:
        return self.given


def headed() -> Embedding:
    heads = {"image": EmbeddingHead(8, 4, query=True), "text": EmbeddingHead(8, 4)}
    return Embedding({"image": IMAGE, "text": TEXT._replace(pooling="last")}, heads, (2, 4))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    embedding = headed()
    save_embedding(embedding, tmp_path / "new", max_pixels=5000)
    found, low, high = load_embedding(tmp_path / "new")
    assert (low, high) == (None, 5000)
    assert found.features == embedding.features
    assert found.dimensions == (2, 4)
    states, there = torch.randn(3, 5, 8), torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] * 4 + [False]])
    with torch.no_grad():
        expected = embedding.heads["image"].eval()(states, there)
        assert torch.equal(found.heads["image"](states, there), expected)
    assert torch.equal(found.heads["text"](states[:, 0]), embedding.heads["text"](states[:, 0]))


def test_without_heads_there_are_no_weights(tmp_path: Path) -> None:
    save_embedding(headed(), tmp_path)
    save_embedding(Embedding(PLAIN, {}), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["embedding.json"]
    assert load_embedding(tmp_path).embedding == Embedding(PLAIN, {})
    assert has_embedding(tmp_path)
    assert not has_embedding("nobody/other")
    with pytest.raises(ValueError, match=r"there is no folder '.*other'"):
        has_embedding(tmp_path / "other")
    with pytest.raises(ValueError, match=r"embedding.json is missing \(nor is there a folder 'runs/nope' here\)"):
        load_embedding("runs/nope")


def test_the_model_that_comes_with_the_package_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is asked for on the Hub."""
    asked: list[str] = []
    monkeypatch.setattr(files, "cached_file", lambda name, *_, **__: asked.append(name))
    found = files.file_of("demo-base", "config.json")
    assert found is not None
    assert found.is_file()
    with pytest.raises(ValueError, match=r"no embedding in 'demo-base': .* \(encode --zero-shot\)"):
        load_encoder("demo-base")
    assert not has_embedding("demo-base")
    assert asked == []


def test_the_embedding_of_an_objective_and_of_its_parts() -> None:
    one = Embedding(PLAIN, {})
    same = Embedding({side: each._replace(name="x") for side, each in PLAIN.items()}, {})
    assert embedding_of(nn.ModuleList([Keeps(None), Keeps(one), Keeps(same)])) is one
    assert embedding_of(nn.ModuleList([Keeps(None)])) is None
    assert embedding_of(lambda policy, reference: None) is None
    whole = headed()
    shared = Embedding(whole.features, dict(whole.heads), whole.dimensions)
    assert embedding_of(nn.ModuleList([Keeps(whole), Keeps(shared)])) is whole


@pytest.mark.parametrize(
    "other",
    [
        Embedding(PLAIN | {"text": PLAIN["text"]._replace(prompt="Else?")}, {}),
        Embedding(PLAIN, {}, (2,)),
        Embedding(PLAIN, {"image": EmbeddingHead(8, 4), "text": EmbeddingHead(8, 4)}),
    ],
)
def test_two_embeddings_that_differ_are_refused(other: Embedding) -> None:
    with pytest.raises(
        ValueError, match=r"two embeddings that are not the same.*What is it.*Give both the same options"
    ):
        embedding_of(nn.ModuleList([Keeps(Embedding(PLAIN, {})), Keeps(other)]))


def test_heads_of_two_parts_are_not_the_same() -> None:
    with pytest.raises(ValueError, match=r"with heads, .*; .* with heads"):
        embedding_of(nn.ModuleList([Keeps(headed()), Keeps(headed())]))


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no embedding in '.*': embedding.json is missing. Train .*zero_shot"):
        load_embedding(tmp_path)
    with pytest.raises(ValueError, match="no embedding in 'nobody/nothing'"):
        load_embedding("nobody/nothing")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "another version of mllm_align: it says 2"),
        ({"sides": {}}, "'image' is missing"),
        ({"heads": {"image": {"width": 9, "dim": 4}, "text": {"width": 8, "dim": 4}}}, "cannot be read: .*state_dict"),
    ],
)
def test_files_that_do_not_fit(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    save_embedding(headed(), tmp_path)
    file = tmp_path / "embedding.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=reason):
        load_embedding(tmp_path)


def test_broken_files(tmp_path: Path) -> None:
    save_embedding(headed(), tmp_path)
    (tmp_path / "embedding.safetensors").unlink()
    with pytest.raises(ValueError, match=r"embedding\.safetensors is missing"):
        load_embedding(tmp_path)
    (tmp_path / "embedding.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot be read.*Save it again"):
        load_embedding(tmp_path)
