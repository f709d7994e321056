"""The estimate against autograd itself, and against what a whole step allocates."""

import pytest
import torch
from torch import nn

from live_memory import LiveBytes, kept_for_backward, storages_of
from mllm_align.families import family_of, unwrap
from mllm_align.models import add_soft_prompts
from mllm_align.objectives import DPO, SVCO, NextToken, Weighted
from mllm_align.signals import FrozenCopy, measure
from mllm_align.signals.logps import token_logps
from mllm_align.signals.plan import plan_groups
from mllm_align.trainers.memory import LOGIT_BYTES, MemoryEstimate, Switches, moment_bytes, run_of, weight_bytes
from mllm_align.trainers.workload import SAMPLE_ROWS
from runs import make_trainer, pair_rows
from tiny import FAMILIES, tiny
from wide import wide_llava

GRAPH = ("activations", "attention masks", "vision activations", "signals")
EVERYWHERE = {"lora_scope": ("language", "projector", "vision")}


def prepared(folder, model, processor, *, checkpointing=False, objective=None, half=False, **changes):
    """A trainer whose model is in the state of a training step, and the one batch of its two rows."""
    trainer = make_trainer(
        folder,
        objective or DPO(),
        pair_rows(2),
        model=model.to(torch.bfloat16) if half else model,
        processing_class=processor,
        activation_checkpointing=checkpointing,
        **changes,
    )
    trainer.model.train()
    if checkpointing:
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return trainer, trainer.data_collator(pair_rows(2))["batch"]


def estimated(trainer) -> MemoryEstimate:
    run = run_of(
        trainer.args,
        trainer.model,
        trainer.objective,
        trainer.reference,
        trainer.data_collator,
        trainer.train_dataset,
    )
    return run.estimate(Switches.of(trainer.args))


def ratio_to_autograd(trainer, batch) -> float:
    def policy():
        with trainer.accelerator.autocast():
            return measure(trainer.model, batch, options=trainer.options)

    known = storages_of(trainer.model)
    if trainer.args.activation_checkpointing:
        # What checkpointing keeps it also keeps in closures, which autograd does not show.
        with LiveBytes(known) as live:
            out = policy()
            real = live.now
        del out
    else:
        real = kept_for_backward(policy, known)
    return sum(estimated(trainer).lasting[purpose] for purpose in GRAPH) / real


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_autograd_keeps_of_every_family(family, checkpointing, tmp_path):
    model, processor = tiny(family)
    trainer, batch = prepared(tmp_path, model, processor, checkpointing=checkpointing)
    # Checkpointing leaves so little of two layers that what is small elsewhere shows.
    assert ratio_to_autograd(trainer, batch) == pytest.approx(1, abs=0.25 if checkpointing else 0.08)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"checkpointing": True},
        {"half": True, "bf16": True},
        {"half": True, "bf16": True, "checkpointing": True},
        {"half": True},
        {"bf16": True},
        {"adapter": None},
        {"adapter": None, "half": True, "bf16": True},
        {"adapter": None, "checkpointing": True},
        {"adapter": EVERYWHERE},
        {"adapter": {"lora_scope": ("projector",)}},
        {"adapter": {"train_projector": True}},
        {"adapter": {"train_vision": True}},
        {"adapter": {"train_vision": True}, "half": True, "bf16": True},
        {"packing": "off"},
        {"objective": SVCO()},
    ],
    ids=str,
)
@pytest.mark.parametrize("key_heads", [8, 2])
def test_what_autograd_keeps_of_a_wider_llava(changes, key_heads, tmp_path):
    trainer, batch = prepared(tmp_path, *wide_llava(key_heads), **changes)
    tolerance = 0.08 if "checkpointing" in changes else 0.04 if changes else 0.02
    assert ratio_to_autograd(trainer, batch) == pytest.approx(1, abs=tolerance)


def test_attention_weights_that_are_written_out_count(tmp_path):
    model, processor = wide_llava()
    model.set_attn_implementation("eager")
    trainer, batch = prepared(tmp_path, model, processor)
    assert ratio_to_autograd(trainer, batch) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    "changes", [{}, {"checkpointing": True}, {"half": True, "bf16": True}, {"recompute_without_image": True}], ids=str
)
def test_the_peak_of_a_step_with_gradients_of_an_earlier_one(changes, tmp_path):
    trainer, batch = prepared(tmp_path, *wide_llava(), objective=SVCO(), **changes)
    assert _moving(trainer) == pytest.approx(_peak(trainer, batch), rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_embeddings_that_soft_prompts_copy_whole(checkpointing, tmp_path):
    """With a vocabulary that outweighs a layer, as real ones do."""
    model, processor = wide_llava(layers=2)
    model.resize_token_embeddings(20000, mean_resizing=False)
    add_soft_prompts(model, processor, ["What is the colour"])
    trainer, batch = prepared(tmp_path, model, processor, checkpointing=checkpointing, logits_chunk_size=16)
    assert estimated(trainer).parts["a copy of the embeddings"] > 0.5 * 20000 * 256 * 4
    assert _moving(trainer) == pytest.approx(_peak(trainer, batch), rel=0.03)


def _moving(trainer):
    found = estimated(trainer)
    return found.total - sum(found.lasting[purpose] for purpose in ("weights", "gradients", "optimiser", "images"))


def _peak(trainer, batch):
    """Bytes that a step allocates beside the gradients that an earlier one left."""
    trainer.objective(*_both(trainer, batch)).loss.backward()
    known = storages_of(trainer.model) | {p.grad.untyped_storage()._cdata for p in _trained(trainer.model)}
    live = LiveBytes(known)
    with live:
        trainer.objective(*_both(trainer, batch)).loss.backward()
    return live.peak


def _both(trainer, batch):
    with trainer.accelerator.autocast():
        return measure(trainer.model, batch, reference=trainer.reference, options=trainer.options)


def _trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def test_a_copy_as_reference_gradients_and_moments(tmp_path):
    trainer, _ = prepared(tmp_path, *tiny("llava"), adapter=None)
    size = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in _trained(trainer.model))
    assert 0 < trained < size  # the tower's last layer is not read
    assert isinstance(trainer.reference, FrozenCopy)
    lasting = estimated(trainer).lasting
    assert [lasting[purpose] for purpose in ("weights", "reference", "gradients", "optimiser")] == [
        size,
        size,
        trained,
        2 * trained,
    ]
    trainer.args.precompute_ref_log_probs = True
    assert estimated(trainer).lasting["reference"] == 0


def test_four_bit_weights_count_as_they_are_packed():
    plain, packed = weight_bytes(tiny("llava")[0]), tiny("llava", quantized=True)[0]
    linear = packed.model.language_model.layers[0].mlp.up_proj
    # 128 x 64 numbers: half a byte each, a byte for each block of 64, and 4 bytes for each 256 of those.
    assert weight_bytes(linear) == 128 * 64 // 2 + 128 * 64 // 64 + 4
    assert weight_bytes(packed) < plain


@pytest.mark.parametrize(
    ("optimiser", "expected"),
    [
        ("adamw_torch_fused", 2 * 4 * 5100),
        ("adamw_8bit", 2 * (5000 + 4 * 100)),
        ("lion_32bit", 4 * 5100),
        ("sgd", 0),
        ("paged_adamw_32bit", 0),
        ("adafactor", 0),
    ],
)
def test_moments(optimiser, expected):
    parameters = [nn.Parameter(torch.zeros(5000)), nn.Parameter(torch.zeros(100))]
    assert moment_bytes(parameters, optimiser) == expected


def test_groups_are_those_of_the_engine(tmp_path):
    objective = Weighted((SVCO(), 1.0, "pairs"), (NextToken(), 1.0, "instructions"))
    rows = {"pairs": pair_rows(2), "instructions": pair_rows(1)}
    trainer = make_trainer(tmp_path, objective, rows, per_device_train_batch_size=3)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])["batch"]
    run = run_of(
        trainer.args,
        trainer.model,
        trainer.objective,
        trainer.reference,
        trainer.data_collator,
        trainer.train_dataset,
    )
    hf = unwrap(trainer.model)
    real = plan_groups(family_of(hf), hf, batch, trainer.options, reference=True)
    found = run.groups(Switches.of(trainer.args))
    assert [(group.packs, group.length) for group in found] == [tuple(g.inputs.input_ids.shape) for g in real]
    assert [group.scored for group in found] == [g.inputs.targets.numel() for g in real]
    assert [group.plain for group in found] == [g.inputs.visible.plain for g in real]


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_those_of_the_engine(family, window, tmp_path):
    model, processor = tiny(family)
    text = model.config.get_text_config()
    if window is not None and getattr(text, "sliding_window", None):
        text.sliding_window = window
    trainer, batch = prepared(tmp_path, model, processor, objective=SVCO())
    hf = unwrap(trainer.model)
    real = [group.mask for group in plan_groups(family_of(hf), hf, batch, trainer.options, reference=True)]
    each = [mask for masks in real for mask in (masks.values() if isinstance(masks, dict) else [masks])]
    size = sum(mask.numel() * mask.element_size() for mask in each if mask is not None)
    assert estimated(trainer).lasting["attention masks"] == size


def test_logits_of_a_chunk():
    head, hidden = nn.Linear(16, 4000, bias=False).requires_grad_(False), torch.randn(64, 16, requires_grad=True)
    with LiveBytes(storages_of(head)) as live:
        token_logps(head, hidden, torch.arange(64), 8, head_trains=False)
    assert live.peak == pytest.approx(8 * 4000 * LOGIT_BYTES, rel=0.1)


def test_one_group_at_a_time_and_smaller_groups(tmp_path):
    trainer, _ = prepared(tmp_path, *tiny("llava"), objective=SVCO())
    whole = estimated(trainer).lasting["activations"]
    trainer.args.cache_gradients = True
    cached = estimated(trainer).lasting["activations"]
    trainer.args.max_tokens_per_forward = 60
    least = estimated(trainer).lasting["activations"]
    assert whole > cached > least > 0


def test_with_cached_gradients_the_images_come_after_the_groups(tmp_path):
    trainer, _ = prepared(tmp_path, *wide_llava(), adapter=EVERYWHERE)
    whole = estimated(trainer).lasting
    trainer.args.cache_gradients = True
    cached = estimated(trainer).lasting
    assert whole["vision activations"] > 0
    assert cached["activations"] == whole["activations"]
    assert cached["vision activations"] == 0


def test_the_longest_rows_of_the_data_count(tmp_path):
    rows = [row | {"prompt": "What?"} for row in pair_rows(3 * SAMPLE_ROWS, images=False)]
    short = run_of_rows(tmp_path / "short", rows)
    rows[3]["prompt"] = "What is the colour of the small circle left of the square? " * 5
    long = run_of_rows(tmp_path / "long", rows)
    assert long.lasting["activations"] > 1.5 * short.lasting["activations"]


def run_of_rows(folder, rows):
    return estimated(make_trainer(folder, DPO(), rows, max_length=None))


def test_a_batch_larger_than_the_data_and_one_by_tokens(tmp_path):
    trainer = make_trainer(tmp_path, DPO(), pair_rows(3))
    trainer.args.per_device_train_batch_size = 1
    one = estimated(trainer).lasting["activations"]
    trainer.args.per_device_train_batch_size = 12
    assert 8 * one < estimated(trainer).lasting["activations"] <= 12 * one
    trainer.args.max_tokens_per_batch = 150
    assert one < estimated(trainer).lasting["activations"] <= 2.5 * one


def test_only_the_largest_of_what_passes_counts():
    found = MemoryEstimate({"weights": 5, "reference": 0}, {"vocabulary head": 3, "a layer": 2})
    assert found.parts == {"weights": 5, "vocabulary head": 3}
    assert (found.total, found.largest) == (8, "weights")
