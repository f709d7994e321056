"""Teachers in a run: asked once before training, kept on disk, aligned with the model's regions, and dropped after."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mllm_align.data.corrupt import Crop, corrupted
from mllm_align.models.export import merge_and_export
from mllm_align.objectives import DocoLike, NextToken, Weighted
from mllm_align.trainers import teachers as module
from mllm_align.trainers.config import AlignConfig
from mllm_align.trainers.teachers import Teachers
from runs import config, gradients, make_trainer, picture
from tiny import save_tiny, tiny, tiny_nf4
from tiny_encoders import save_encoder
from tiny_teachers import save_teacher

WORDS = ("Invoice 12", "Total", "3.50", "Thank you")
VISION = {"lora_scope": ["vision", "projector", "language"]}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_teacher("layoutlmv3", tmp_path_factory.mktemp("reader") / "layoutlmv3"))


def pages(count: int = 4) -> list[dict[str, Any]]:
    """Page n has n objects and one that is outside; the last one is shown beside a second page."""
    found = []
    for number in range(count):
        objects = [
            {"box": [0.1, 0.15 * n, 0.4 + 0.1 * n, 0.15 * n + 0.25], "text": f"{WORDS[n % 4]} {number}"}
            for n in range(number)
        ]
        objects.insert(1, {"box": [1.2, 0.1, 1.4, 0.3], "text": "outside"})
        last = number == count - 1
        if last:
            objects += [{"box": [0.2, 0.2, 0.8, 0.9], "text": "second page", "image": 1}]
        images: dict[str, Any] = {"images": [picture(number), picture(90)]} if last else {"image": picture(number)}
        found.append({"id": str(number), "prompt": "Read.", "chosen": WORDS[number % 4], "objects": objects, **images})
    return found


def both(reader: Any, **options: Any) -> Weighted:
    return Weighted((DocoLike(reader, dim=8, **options), 1.0), (NextToken(matched=False), 1.0))


def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pages a teacher is shown at each call."""
    calls: list[int] = []
    make = Teachers.make

    def counted(self: Any, feature: Any, some: Any, images: Any) -> Any:
        calls.append(len(some))
        return make(self, feature, some, images)

    monkeypatch.setattr(Teachers, "make", counted)
    return calls


def test_kept_and_live_teachers_train_alike_and_are_asked_once(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = asked(monkeypatch)
    run: dict[str, Any] = {"adapter": VISION, "max_steps": 1, "per_device_train_batch_size": 4}
    run |= {"train_sampling_strategy": "sequential"}
    kept = {"cache_dir": str(tmp_path / "cache")}
    first = gradients(make_trainer(tmp_path / "1", both(reader), pages(), **run, **kept))
    assert sum(calls) == 5  # four pages, and the second one of the last row
    calls.clear()
    again = gradients(make_trainer(tmp_path / "2", both(reader), pages(), **run, **kept))
    assert calls == []
    live = gradients(make_trainer(tmp_path / "3", both(reader), pages(), **run, precompute_teachers=False))
    assert sum(calls) == 5
    cached = gradients(make_trainer(tmp_path / "4", both(reader), pages(), **run, **kept, cache_gradients=True))
    heads = [name for name in first if ".heads." in name]
    assert len(heads) == 2
    assert any("vision_tower" in name and gradient.any() for name, gradient in first.items())
    for name, gradient in first.items():
        assert torch.equal(again[name], gradient) or torch.allclose(again[name], gradient, atol=1e-6), name
        torch.testing.assert_close(live[name], gradient, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-4)


def test_what_arrives_belongs_to_the_region_beside_it(reader: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", both(reader), pages(), adapter=VISION, cache_dir=str(tmp_path / "cache"))
    trainer.teachers.compute(trainer.train_dataset, "train_dataset")
    batch = trainer.data_collator([trainer.train_dataset[number] for number in (3, 0, 2)])["batch"]
    told, (_, feature) = batch.regions["image"], trainer.objective.parts[0].objective.needs.features
    values = batch.teacher_features[feature.name]
    assert len(values) == len(told) == 3 + 1 + 2
    assert "outside" not in told.texts
    alone = module.load_teacher(feature.teacher)
    for row in (3, 2):
        raw = trainer.train_dataset[row]
        shown = module.parse_row(raw)
        for image in range(len(shown.images)):
            there = [each for each in shown.objects["image"] if each.image == image]
            found = alone([module.load_image(shown.images[image])], [there], "regions")[0]
            for each, vector in zip(there, found, strict=True):
                if each.text != "outside":
                    place = told.texts.index(each.text)
                    torch.testing.assert_close(values[place], vector, atol=1e-5, rtol=1e-4)
    assert told.coverage == tuple(float(own.sum()) for own in batch.region_weights["image"])


def test_a_vision_teacher_of_whole_images(tmp_path: Path) -> None:
    """A user's own objective may name any teacher, of images that no other feature is taken of."""
    from mllm_align.contract import Feature, Needs, Outcome, Signals, Teacher, Term

    folder = str(save_encoder("siglip", tmp_path / "siglip"))
    wanted = Feature("seen", "teacher", "contrast_image", teacher=Teacher(folder, layer=1))

    class Near(torch.nn.Module):
        needs = Needs(features=(Feature("own", "projector", "image"), wanted))

        def set_widths(self, widths: dict[str, int]) -> None:
            self.widths = widths
            self.head = torch.nn.Linear(widths["own"], widths["seen"])

        def forward(self, policy: Signals, reference: Signals | None) -> Outcome:
            own, seen = policy.features["own"], policy.features["seen"]
            assert not seen.values.requires_grad
            loss = (self.head(own.values) - seen.values).square().mean(dim=1)
            return Outcome((Term("near", 1.0, loss.sum(), torch.tensor(len(loss))),))

    rows = [
        {"id": str(n), "prompt": "See.", "chosen": "x", "image": picture(n), "contrast_image": picture(50 + n)}
        for n in range(3)
    ]
    objective = Near()
    run: dict[str, Any] = {"adapter": VISION, "cache_dir": str(tmp_path / "cache"), "max_steps": 3}
    trainer = make_trainer(tmp_path / "run", objective, rows, **run)
    assert objective.widths == {"own": 64, "seen": 64}
    trainer.train()
    assert all(entry["loss/near"] > 0 for entry in trainer.state.log_history if "loss/near" in entry)
    batch = trainer.data_collator([rows[1]])["batch"]
    found = module.load_teacher(Teacher(folder, layer=1))([picture(51)], [()], "mean")[0]
    torch.testing.assert_close(batch.teacher_features["seen"], found, atol=1e-5, rtol=1e-4)
    # What is drawn anew in every epoch cannot be shown before: it is drawn once, and the log says why.
    made = corrupted([{**row, "contrast_image": None} for row in rows], Crop(scale=(0.1, 0.3)))
    assert not make_trainer(tmp_path / "made", Near(), made, **run).train_dataset.by_epoch
    free = make_trainer(tmp_path / "free", Near(), made, **run, precompute_teachers=False)
    assert free.train_dataset.by_epoch
    free.train()


def test_an_interrupted_run_goes_on(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = asked(monkeypatch)
    args: dict[str, Any] = {"adapter": VISION, "cache_dir": str(tmp_path / "cache")}
    trainer = make_trainer(tmp_path / "1", both(reader), pages(6), **args, per_device_eval_batch_size=2)
    load = module.load_image

    def broken(image: Any, where: str) -> Any:
        if where.startswith("row 4"):
            raise KeyboardInterrupt
        return load(image, where)

    monkeypatch.setattr(module, "load_image", broken)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert sum(calls) == 4
    calls.clear()
    monkeypatch.setattr(module, "load_image", load)
    other = make_trainer(tmp_path / "2", both(reader), pages(6), **args)
    other.train()
    assert sum(calls) == 3  # rows 4 and 5, of which the last has two images
    (cache,) = (tmp_path / "cache" / "teachers").iterdir()
    assert str(reader) in (cache / "cache.json").read_text()


def test_what_is_kept_is_found_in_another_process(reader: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", both(reader), pages(), adapter=VISION, cache_dir=str(tmp_path / "cache"))
    trainer.teachers.compute(trainer.train_dataset, "train_dataset")
    other = pickle.loads(pickle.dumps(trainer.teachers))
    feature = trainer.teachers.features[0]
    row = module.parse_row(pages()[2])
    mine, theirs = (each(feature, row.images, row.objects["image"], row.name) for each in (trainer.teachers, other))
    assert torch.equal(mine, theirs)
    assert other.widths == {feature.name: 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "get_worker_info", lambda: object())
        with pytest.raises(ValueError, match="nothing is kept of what teacher"):
            other(feature, (picture(777),), row.objects["image"], "row 9")


def test_workers_read_from_disk(reader: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path / "run",
        both(reader),
        pages(),
        adapter=VISION,
        cache_dir=str(tmp_path / "cache"),
        dataloader_num_workers=1,
        max_steps=1,
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss/doco_like/intra"] > 0


def test_a_resumed_run_has_its_heads(reader: str, tmp_path: Path) -> None:
    run: dict[str, Any] = {"adapter": VISION, "cache_dir": str(tmp_path / "cache"), "max_steps": 4}
    run |= {"save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "run", both(reader), pages(), **run)
    whole.train()
    ended = {name: value.clone() for name, value in whole.objective.state_dict().items()}
    other = make_trainer(tmp_path / "run", both(reader), pages(), **run)
    other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert len(ended) == 3
    for name, value in other.objective.state_dict().items():
        torch.testing.assert_close(value, ended[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("quantized", [False, True])
def test_nothing_of_the_contrast_is_kept(reader: str, quantized: bool, tmp_path: Path) -> None:
    base = tmp_path / "base"
    if quantized:
        model, processor = tiny_nf4("llava", base)
    else:
        save_tiny("llava", base)
        model, processor = tiny("llava")
        model.config._name_or_path = str(base)
    trainer = make_trainer(
        tmp_path / "run",
        both(reader),
        pages(),
        model=model,
        processing_class=processor,
        adapter=VISION,
        cache_dir=str(tmp_path / "cache"),
    )
    trainer.train()
    trainer.save_model()
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert not any("head" in name or "scale" in name for name in saved)
    merge_and_export(tmp_path / "run", tmp_path / "served", merge=False)
    assert not (tmp_path / "served" / "objective.safetensors").exists()
    plain = tiny_nf4("llava", tmp_path / "again")[0] if quantized else tiny("llava")[0]
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "served")).eval()
    inputs = processor(text="<image> What?", images=picture(5), return_tensors="pt")
    with torch.no_grad():
        mine, theirs = (each.eval()(**inputs).logits for each in (trainer.model, loaded))
        before = (tiny_nf4("llava", tmp_path / "third")[0] if quantized else tiny("llava")[0])(**inputs).logits
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, before)


def test_what_cannot_work_is_said_before_training(reader: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="teacher 'no/such' is neither a model's folder nor a model on the Hub"):
        make_trainer(tmp_path / "a", both("no/such"), pages(), adapter=VISION)
    with pytest.raises(ValueError, match=r"precompute_teachers reads the data once .* train_dataset is a stream"):
        make_trainer(tmp_path / "b", both(reader), Stream(), adapter=VISION)
    bad: dict[str, Any] = {"adapter": VISION, "precompute_teachers": False, "dataloader_num_workers": 2}
    with pytest.raises(ValueError, match=r"set dataloader_num_workers to 0 \(it is 2\)"):
        make_trainer(tmp_path / "c", both(reader), pages(), **bad)
    trainer = make_trainer(tmp_path / "d", both(reader), pages(), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="doco_like/int"):
        trainer.train()  # LoRA on the language model alone: no object's tokens could change


class Stream(torch.utils.data.IterableDataset):
    """Rows without a number."""

    def __iter__(self) -> Any:
        return iter(pages())


def test_without_teachers_nothing_is_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = Teachers(config(tmp_path), NextToken())
        found.compute(Stream(), "train_dataset")
    assert found.features == ()
    assert found.widths == {}
    assert not caplog.records
    assert AlignConfig("x", use_cpu=True).precompute_teachers
