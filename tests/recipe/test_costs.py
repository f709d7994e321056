"""What a mixer costs, against a count by hand and against a counter on a real forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from flops import count_flops
from mixed import mixed_tiny, shake
from mllm_align.families import family_of, inner
from mllm_align.models import ModelArguments, add_soft_prompts, load_model, lora_config, soft_prompts_of
from mllm_align.objectives import NextToken
from mllm_align.recipe import plan_of
from mllm_align.recipe.costs import AT_FIRST, EARLIER, ELSEWHERE, STAGE_1, language_flops, mixer_cost
from mllm_align.vision.attach import attach, drawn_pixels
from mllm_align.vision.encoder_cost import encoder_cost
from mllm_align.vision.mixed_vision import mixed_of
from mllm_align.vision.mixer_files import save_mixer
from runs import make_trainer, pair_rows
from tiny import save_tiny, tiny
from tiny_encoders import save_encoder

OPTIONS: dict[str, dict[str, Any]] = {
    "gated": {},
    "concat": {},
    "window": {"width": 32},
    "additive": {},
    "interleave": {},
    "x_former": {"num_queries": 6, "width": 32, "depth": 2, "heads": 4},
    "sva": {"width": 32, "heads": 4, "depth": 1},
}
WIDTH, INNER, LAYERS, ENCODER, ENCODER_INNER = 64, 128, 2, 32, 128
CELLS = {"llava": (4, 4), "qwen2_5_vl": (2, 3)}
IDENTITIES = ("gated", "concat", "window")
CASES = [*(("llava", kind) for kind in OPTIONS), *(("qwen2_5_vl", kind) for kind in ("gated", "concat", "sva"))]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder("dinov2", tmp_path_factory.mktemp("encoder")))


def mixed(family: str, kind: str, encoder: str) -> tuple[Any, Any, list[Any]]:
    """Model, processor, and one image's tensors."""
    model, processor = tiny(family)
    attach(model, {"kind": kind, "encoders": [encoder], **OPTIONS[kind]}, None, processor)
    return model, processor, [drawn_pixels(processor, family_of(model))]


def transformer(tokens: int, width: int, inner: int, layers: int, *, gated: bool = False, spans: Any = None) -> int:
    """2 x parameters x tokens + attention, of layers that see all, or of one span per window in each layer."""
    linear = 4 * width**2 + (3 if gated else 2) * width * inner
    spans = [[tokens]] * layers if spans is None else spans
    return 2 * linear * tokens * layers + sum(4 * width * span**2 for layer in spans for span in layer)


def by_hand(family: str, kind: str) -> dict[str, int]:
    cells = CELLS[family][0] * CELLS[family][1]
    # DINOv2: an embedding of 3 x 14 x 14 pixels, and a class token; in windows of 2 x 2 four patches in a cell.
    seen = 4 * cells if kind == "window" else cells
    found = {"encoder": transformer(seen + 1, ENCODER, ENCODER_INNER, LAYERS) + 2 * 3 * 14**2 * ENCODER * seen}
    to_language = 2 * cells * (ENCODER * WIDTH + WIDTH * WIDTH)
    found["mixer"] = {
        "gated": to_language,
        "interleave": to_language,
        # The projector's first layer is as wide as its input in LLaVA; Qwen's merger reads four patches at a time.
        "concat": 2 * cells * ENCODER * (WIDTH if family == "llava" else 4 * WIDTH),
        "sva": aggregator(cells),
        "additive": 2 * cells * ENCODER * WIDTH,
        # Queries and what comes out, keys and values of four positions, attention of one query to them.
        "window": 2 * cells * (2 * WIDTH * 32 + 2 * 4 * ENCODER * 32 + 2 * 4 * 32),
        "x_former": queries(cells, 6),
    }[kind]
    if family == "llava":
        found["vision"] = transformer(cells + 1, WIDTH, INNER, LAYERS) + 2 * 3 * 14**2 * WIDTH * cells
        found["vision"] += 2 * cells * (WIDTH * WIDTH + WIDTH * WIDTH)
    else:
        patches, rows, columns = 4 * cells, 4, 6
        # Windows of 4 x 4 patches in the first layer, all of them in the second.
        windows = [4 * min(4, columns - left) for left in range(0, columns, 4)]
        assert (sum(windows), rows) == (patches, 4)
        found["vision"] = transformer(patches, WIDTH, INNER, LAYERS, gated=True, spans=[windows, [patches]])
        found["vision"] += 2 * 3 * 2 * 14**2 * WIDTH * patches  # two frames
        found["vision"] += 2 * cells * (4 * WIDTH * 4 * WIDTH + 4 * WIDTH * WIDTH)
    return found


def aggregator(cells: int) -> int:
    """Cambrian's, of width 32, one layer, two encoders with one position each in a cell; LLaVA's base is as wide as a
    token, and so are Qwen's merged ones."""
    width = 32
    sight = [width * (each + width) for each in (WIDTH, ENCODER)]
    # Context, the join of two, queries and what comes out, the MLP.
    layer = width * width * (1 + 2 + 1 + 1 + 2)
    keys = 2 * 2 * width * width
    attention = 2 * 2 * width
    return 2 * cells * (sum(sight) + layer + keys + attention + WIDTH * (width + WIDTH))


def queries(cells: int, count: int) -> int:
    """An X-Former of width 32 and two layers, of which the first reads the image; both encoders are read by cells."""
    width = 32

    def attention(asking: int, read: int, source: int) -> int:
        return 4 * asking * width**2 + 4 * read * source * width + 4 * asking * read * width

    def feedforward(tokens: int) -> int:
        return 2 * tokens * 2 * width * 4 * width

    layers = 2 * (attention(count, count, width) + feedforward(count)) + attention(count, cells, WIDTH)
    dual = attention(cells, count, width) + feedforward(cells) + attention(count, cells, width) + feedforward(count)
    return layers + dual + 2 * count * width * WIDTH


def linear(inputs: int, outputs: int) -> int:
    """Weights and biases."""
    return inputs * outputs + outputs


def parameters(family: str, kind: str) -> int:
    """What a mixer of one further encoder has, counted by its description."""
    width, norm = 32, 2
    to_language = linear(ENCODER, WIDTH) + linear(WIDTH, WIDTH)
    # Of an attention in windows: norms and matrices of queries, keys and values.
    window = norm * (WIDTH + 2 * ENCODER) + linear(WIDTH, width) + 2 * linear(ENCODER, width) + width * WIDTH
    sights = sum(linear(each, width) + linear(width, width) + norm * width for each in (WIDTH, ENCODER))
    # Context, the join of two, query, keys and values of two, what comes out, the MLP; six norms.
    layer = (1 + 2 + 1 + 2 * 2 + 1 + 2) * width**2 + (1 + 2 * 2 + 1) * norm * width
    square, feedforward = 4 * linear(width, width), linear(width, 4 * width) + linear(4 * width, width)
    cross = 2 * linear(width, width) + 2 * linear(WIDTH, width) + norm * width
    q_former = 6 * width + norm * (width + WIDTH) + 2 * (square + feedforward + 2 * norm * width) + cross
    dual = 2 * (square + feedforward + 3 * norm * width)
    return {
        "gated": to_language + 1,
        "interleave": to_language,
        "concat": ENCODER * (WIDTH if family == "llava" else 4 * WIDTH),
        "additive": linear(ENCODER, WIDTH),
        "window": window,
        "sva": width + sights + layer + linear(width, WIDTH) + linear(WIDTH, WIDTH),
        "x_former": q_former + dual + linear(width, WIDTH),
    }[kind]


def decoder(tokens: int) -> int:
    """Two key heads of four, and a query sees what is before it and itself."""
    linear = 2 * WIDTH**2 + 2 * WIDTH * (WIDTH // 2) + 3 * WIDTH * INNER
    return LAYERS * (2 * linear * tokens + 4 * WIDTH * sum(range(1, tokens + 1)))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_tokens_parameters_and_operations_by_hand(family: str, kind: str, encoder: str) -> None:
    model, _, images = mixed(family, kind, encoder)
    cost = mixer_cost(model, images)
    assert cost is not None
    hand, cells = by_hand(family, kind), CELLS[family][0] * CELLS[family][1]
    tokens = {"interleave": 2 * cells, "x_former": 6}.get(kind, cells)
    assert (cost.base_tokens, cost.tokens, cost.images) == (cells, tokens, 1)
    attached: Any = mixed_of(inner(model))
    assert cost.mixer.parameters == parameters(family, kind)
    ((name, of_encoder),) = cost.encoders
    assert name == f"encoder {encoder}"
    assert of_encoder.parameters == sum(p.numel() for p in attached.seeing[0].parameters())
    assert of_encoder.flops == pytest.approx(hand["encoder"], rel=0.01)
    assert cost.mixer.flops == pytest.approx(hand["mixer"], rel=0.01)
    assert cost.base_vision == pytest.approx(hand["vision"], rel=0.01)
    assert cost.base_language == decoder(cells)
    assert cost.language == decoder(tokens) - decoder(cells)
    assert cost.added == pytest.approx(hand["encoder"] + hand["mixer"] + cost.language, rel=0.01)
    assert cost.share == pytest.approx(cost.added / (hand["vision"] + decoder(cells)), rel=0.01)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_real_forward_pass_has_as_many(family: str, kind: str, encoder: str) -> None:
    model, _, images = mixed(family, kind, encoder)
    cost = mixer_cost(model, images)
    assert cost is not None
    language = family_of(model).module(model, family_of(model).language_model)

    def read(tokens: float) -> float:
        states = torch.randn(1, round(tokens), WIDTH)
        return count_flops(lambda: language(inputs_embeds=states, use_cache=False))

    with torch.no_grad():
        vision = count_flops(lambda: family_of(model).encode_images(model, images))
        with_it, without = read(cost.tokens), read(cost.base_tokens)
    added = vision - cost.base_vision + with_it - without
    assert cost.added == pytest.approx(added, rel=0.03)
    assert cost.base_language == pytest.approx(without, rel=0.03)
    attached: Any = mixed_of(inner(model))
    own = encoder_cost(attached.seeing[0], attached.kind.wants(CELLS[family])[0])
    assert cost.encoders[0][1].flops == pytest.approx(own.flops, rel=0.01)


def test_two_views_and_a_second_encoder_are_all_counted(encoder: str) -> None:
    model, processor = tiny("llava_next")
    attach(model, {"kind": "gated", "encoders": [encoder, {"model": encoder, "size": 28}]}, None, processor)
    images = [drawn_pixels(processor, family_of(model))]
    cost = mixer_cost(model, images)
    assert cost is not None
    views = images[0]["pixel_values"].shape[1]
    assert views > 1
    attached: Any = mixed_of(inner(model))
    for (name, each), own in zip(cost.encoders, attached.seeing, strict=True):
        assert each.flops == pytest.approx(views * encoder_cost(own, (4, 4)).flops, rel=0.01)
        assert name == f"encoder {own.spec}"


@pytest.mark.parametrize("zero", [True, False])
def test_layers_in_the_language_model_are_the_mixers(zero: bool, encoder: str) -> None:
    options = {"residual": True, **OPTIONS["sva"]}
    costs = []
    for layers in (0, 1):
        model, processor = tiny("llava")
        given = {"kind": "sva", "encoders": [encoder], "llm_layers": layers, "llm_zero_init": zero, **options}
        attach(model, given, None, processor)
        costs.append(mixer_cost(model, [drawn_pixels(processor, family_of(model))]))
    without, with_it = costs
    assert without is not None
    assert with_it is not None
    # Context, its half of the join, queries, keys and values of two encoders, what comes out, half of the MLP; the
    # other halves take states of the language model's width in, and give such out; attention to two positions.
    width, tokens = 32, 16
    weights = (1 + 1 + 1 + 4 + 1 + 1) * width**2 + 2 * WIDTH * width
    assert with_it.mixer.flops - without.mixer.flops == 2 * tokens * (weights + 2 * 2 * width)
    norms = 2 * (WIDTH + 2 * width + width)
    assert with_it.mixer.parameters - without.mixer.parameters == pytest.approx(weights + norms, rel=0.01)
    assert without.start == AT_FIRST
    assert with_it.start == (AT_FIRST if zero else ELSEWHERE)


def test_windows_of_the_decoder() -> None:
    model, _ = tiny("gemma3")
    text = model.config.get_text_config()
    text.sliding_window = 5
    kinds = text.layer_types
    sliding = kinds.count("sliding_attention")
    assert 0 < sliding < len(kinds)
    per_pair = 4 * text.num_attention_heads * text.head_dim

    def flops(tokens: int) -> int:
        return language_flops(model, family_of(model), tokens)

    linear = flops(1) - per_pair * len(kinds)
    # Four tokens see 1 + 2 + 3 + 4; of eight with a window of five the last three see five each.
    assert flops(4) == 4 * linear + 10 * per_pair * len(kinds)
    assert flops(8) == 8 * linear + per_pair * (30 * sliding + 36 * (len(kinds) - sliding))


def test_experts_count_that_a_token_is_sent_to() -> None:
    model, _ = tiny("qwen3_vl_moe")
    text = model.config.get_text_config()
    inner_width, chosen = text.moe_intermediate_size, text.num_experts_per_tok
    assert chosen < text.num_experts
    attention = 2 * WIDTH**2 + 2 * WIDTH * (WIDTH // 2)
    per_layer = 2 * (attention + chosen * 3 * WIDTH * inner_width) + 4 * WIDTH
    assert language_flops(model, family_of(model), 1) == text.num_hidden_layers * per_layer


def test_where_training_starts(encoder: str, tmp_path: Path) -> None:
    for kind in OPTIONS:
        model, processor, images = mixed("llava", kind, encoder)
        cost = mixer_cost(model, images)
        assert cost is not None
        assert cost.start == (AT_FIRST if kind in IDENTITIES else ELSEWHERE)
        assert ("train stage 1 first" in cost.start) == (kind not in IDENTITIES)
        model.model.language_model.requires_grad_(False)
        cost = mixer_cost(model, images)
        assert cost is not None
        assert cost.start == (AT_FIRST if kind in IDENTITIES else STAGE_1)
    # As a run of stage 1 leaves it.
    attached: Any = mixed_of(inner(model))
    shake(attached)
    save_mixer(model, tmp_path / "mixer", processor)
    base = str(save_tiny("llava", tmp_path / "base"))
    given = {"kind": "sva", "encoders": [encoder], "weights": str(tmp_path / "mixer"), **OPTIONS["sva"]}
    later, _ = load_model(ModelArguments(base, mixer=given))
    cost = mixer_cost(later, images)
    assert cost is not None
    assert cost.start == EARLIER


def test_adapters_change_nothing_and_all_is_put_back(encoder: str) -> None:
    model, _, images = mixed("llava", "gated", encoder)
    plain = mixer_cost(model, images)
    arguments = ModelArguments(lora_r=4, lora_scope=["language", "projector", "vision"])
    peft = get_peft_model(model, lora_config(model, arguments))
    peft.train()
    attached: Any = mixed_of(inner(model))
    before = {name: parameter.requires_grad for name, parameter in peft.named_parameters()}
    assert mixer_cost(peft, images) == plain
    assert peft.training
    assert attached.enabled
    assert {name: parameter.requires_grad for name, parameter in peft.named_parameters()} == before
    assert not attached.mixer._forward_hooks


def test_nothing_without_a_mixer_or_an_image(encoder: str) -> None:
    model, processor = tiny("llava")
    assert mixer_cost(model, [drawn_pixels(processor, family_of(model))]) is None
    assert mixer_cost(mixed("llava", "gated", encoder)[0], []) is None


def test_the_plan_names_what_trains(encoder: str, tmp_path: Path) -> None:
    spec = {"model": encoder, "train": "lora"}
    model, processor, attached = mixed_tiny("llava", "sva", spec, llm_layers=1)
    add_soft_prompts(model, processor, ["What is it?"])
    trainer = make_trainer(tmp_path, NextToken(), pair_rows(2), model=model, processing_class=processor)
    trained = plan_of(trainer).trainable
    inside = sum(p.numel() for name, p in attached.kind.named_parameters() if name.startswith("inserted."))
    assert trained["mixer sva behind layer 0 of the language model"] == inside
    assert trained["mixer sva"] == sum(p.numel() for p in attached.kind.parameters()) - inside
    assert f"encoder 1 ({encoder}) q_proj" in trained
    soft = soft_prompts_of(model)
    assert soft is not None
    assert trained["language vectors of soft prompts"] == len(soft.ids) * WIDTH


@pytest.mark.parametrize("kind", ["gated", "interleave"])
def test_the_plan_says_it(kind: str, encoder: str, tmp_path: Path) -> None:
    model, processor, _ = mixed("llava", kind, encoder)
    trainer = make_trainer(tmp_path, NextToken(), pair_rows(2), model=model, processing_class=processor)
    plan = plan_of(trainer)
    assert plan.mixer is not None
    batch = trainer.data_collator(pair_rows(2))["batch"]
    assert set(batch.image_sizes) == {plan.mixer.tokens} == {32 if kind == "interleave" else 16}
    page = str(plan)
    assert all(line in page for line in plan.mixer.lines)
    assert f"image tokens: 16 without it, {plan.mixer.tokens:g} with it" in page
    assert ("train stage 1 first" in page) == (kind == "interleave")
    trained = sum(count for part, count in plan.trainable.items() if part.startswith("mixer"))
    assert trained == plan.mixer.mixer.parameters
