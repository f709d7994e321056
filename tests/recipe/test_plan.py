import json
from dataclasses import replace

import pytest

from mllm_align.objectives import CHIP, DPO, MDPO, RDPO, SVCO, InfoNCE, NextToken, Weighted
from mllm_align.recipe import build_trainer, load_recipe, packaged_recipes, plan_of, run_recipe
from mllm_align.trainers.heads import trained_parameters
from mllm_align.trainers.memory import GIB
from mllm_align.trainers.planner import gigabytes
from runs import ANSWERS, Headed, make_trainer, pair_rows, picture
from tiny import save_tiny
from tiny_encoders import save_encoder
from tiny_teachers import save_teacher

FAMILIES = {
    "chip_llava16_7b": "llava_next",
    "clim": "qwen2_5_vl",
    "cloc_like": "llava_next",
    "coca_like": "llava",
    "cosmo_like": "qwen2_5_vl",
    "demo_svco": "llava",
    "colva_like": "qwen2_5_vl",
    "discriminative_llava15_7b": "llava",
    "discriminative_qwen25vl": "qwen2_5_vl",
    "doco_like": "llava_next",
    "dpo_llava15_7b": "llava",
    "filip": "llava",
    "gated_svco_llava15": "llava",
    "mdpo_llava15_7b": "llava",
    "mof_llava15_stage1": "llava",
    "mof_llava15_stage2": "llava",
    "rdpo_llava16_7b": "llava_next",
    "sva_qwen25vl_stage1": "qwen2_5_vl",
    "sva_qwen25vl_stage2": "qwen2_5_vl",
    "svco_llava15_7b": "llava",
    "svlc": "llava_next",
    "svco_qwen25vl_7b": "qwen2_5_vl",
}
OWN = ["chosen|image"]
SVCO_VIEWS = [str(view) for view in SVCO().needs.views]
# Recipes of pairs alone: their objective, and the file below that has rows of their format.
PAIRS = {"chip": (CHIP(), "rlhf"), "dpo": (DPO(), "rlhf"), "mdpo": (MDPO(), "rlhf"), "rdpo": (RDPO(), "re_align")}
# Recipes that contrast regions or tokens, or train on texts alone: the file below of each source, and its views.
TEXTS = {
    "clim": {"mosaics": ("instructions", []), "instructions": ("instructions", OWN)},
    "cloc_like": {"phrases": ("grit", OWN)},
    "coca_like": {"captions": ("instructions", OWN)},
    "colva_like": {"matches": ("mmvm", OWN)},
    "cosmo_like": {"captions": ("instructions", OWN), "documents": ("named", OWN)},
    "discriminative_llava15_7b": {"captions": ("captions", [])},
    "discriminative_qwen25vl": {"captions": ("captions", [])},
    "svlc": {"phrases": ("edited", OWN)},
    "filip": {"captions": ("instructions", OWN)},
    "mof_llava15_stage1": {"captions": ("instructions", OWN)},
    "mof_llava15_stage2": {"instructions": ("instructions", OWN)},
    "sva_qwen25vl_stage1": {"captions": ("instructions", OWN)},
    "sva_qwen25vl_stage2": {"instructions": ("instructions", OWN)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models by family, and a few rows in the formats that the packaged recipes read."""
    folder = tmp_path_factory.mktemp("recipes")
    for family in set(FAMILIES.values()):
        save_tiny(family, folder / family)
    mvc, instructions, rlhf, re_align = [], [], [], []
    for number in range(6):
        names = [f"{number}_{side}.png" for side in ("own", "other")]
        for place, name in enumerate(names):
            picture(10 * number + place).save(folder / name)
        answer, other = ANSWERS[number % 5], ANSWERS[(number + 1) % 5]
        mvc.append(
            {
                "system_prompt": "",
                "instruction_prompt": "Which colour?",
                "chosen_images": names[:1],
                "rejected_images": names[1:],
                "chosen_response": answer,
                "rejected_response": other,
            }
        )
        turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": answer}]
        instructions.append({"id": str(number), "image": names[0], "conversations": turns})
        text = json.dumps({"question": "Which colour?", "chosen": answer, "rejected": other})
        rlhf.append({"ds_name": "RLHF-V", "image": names[0], "text": text, "idx": number})
        both = [
            [{"role": "user", "content": "<image>\nWhich colour?"}, {"role": "assistant", "content": words}]
            for words in (answer, other)
        ]
        re_align.append({"image": names[0], "retrieved_image": names[1], "chosen": both[0], "rejected": both[1]})
    save_teacher("layoutlmv3", folder / "layoutlmv3")
    for encoder in ("dinov2", "siglip"):
        save_encoder(encoder, folder / encoder)
    words = [{"box": [0.1, 0.1 * n, 0.9, 0.1 * n + 0.3], "text": f"word {n}"} for n in range(4)]
    pages = [{"image": f"{n}_own.png", "prompt": "Read.", "chosen": "words", "objects": words} for n in range(6)]
    chunks = [[0, 5, 0.1, 0.2, 0.6, 0.9, 0.9], [9, 13, 0.5, 0.1, 0.9, 0.4, 0.8]]
    grit = [
        {"key": str(n), "image": f"{n}_own.png", "caption": f"A dog, {n} cats", "noun_chunks": chunks}
        for n in range(6)
    ]
    masks = [{"size": [56, 56], "counts": [start, 560, 56 * 56 - 560 - start]} for start in (100, 1000, 2000)]
    mmvm = [
        {
            "file_names": [f"{n}_own.png", f"{n}_other.png"],
            "pos_annotations": [[masks[0]], [masks[1]]],
            "neg_annotations": [[], [masks[2]]],
        }
        for n in range(6)
    ]
    edited = [{"box": [0.1, 0.1, 0.6, 0.7], "text": "red cup", "negatives": ["blue cup", "red plate"]}]
    captions = ["A red cup.", " and ".join(["a red cup beside a plate"] * 5)]
    named = [f"{side}.png" for side in ("own", "other")]
    files = {
        "captions": [
            {"image": f"{n}_own.png", "captions": captions, "negatives": ["A blue cup.", "A red plate."]}
            for n in range(6)
        ],
        "named": [
            {"images": [f"{n}_{name}" for name in named], "prompt": "Is [[image 1]] red?", "chosen": "yes"}
            for n in range(6)
        ],
        "edited": [
            {"image": f"{n}_own.png", "prompt": "Look.", "chosen": "A cup.", "objects": edited} for n in range(6)
        ],
        "grit": grit,
        "mmvm": mmvm,
        "mvc": mvc,
        "instructions": instructions,
        "rlhf": rlhf,
        "re_align": re_align,
        "pages": pages,
    }
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def overrides(name, folder):
    """The packaged recipe on a tiny model and on local rows, everything else as it is."""
    found = [f"model.model_name_or_path={folder / FAMILIES[name]}", "train.disable_tqdm=true", "train.use_cpu=true"]
    found += mixer_overrides(name, folder)
    if name == "demo_svco":
        return [*found, "data.pairs.num_rows=6", "data.instructions.num_rows=6"]
    method = name.split("_")[0]
    if name == "doco_like":
        cache = f"train.cache_dir={folder / 'cache'}"
        return [
            *found,
            cache,
            f"data.pages.path={folder}/pages.json",
            f"objective.0.teacher={folder}/layoutlmv3",
        ]
    if name in TEXTS:
        found += [f"data.{source}.path={folder / file}.json" for source, (file, _) in TEXTS[name].items()]
        found += ["objective.0.dimensions=[8, 16]"] if name == "discriminative_qwen25vl" else []
        return [*found, *(f"data.{source}.image_folder={folder}" for source in TEXTS[name])]
    files = {"pairs": PAIRS[method][1]} if method in PAIRS else {"pairs": "mvc", "instructions": "instructions"}
    for source, file in files.items():
        found += [f"data.{source}.path={folder / file}.json", f"data.{source}.image_folder={folder}"]
    return found


def mixer_overrides(name, folder):
    """Tiny encoders in place of those of the recipe, and a run of its first stage in place of the one it names."""
    if name == "gated_svco_llava15":
        return [f"model.mixer.encoders=[{folder}/dinov2]"]
    if name == "mof_llava15_stage1":
        return [f"model.mixer.encoders=[{{model: {folder}/dinov2, layer: -1}}]"]
    if name == "sva_qwen25vl_stage1":
        small = [f"model.mixer.{key}={value}" for key, value in {"width": 32, "heads": 4, "depth": 1}.items()]
        return [f"model.mixer.encoders=[{folder}/siglip, {folder}/dinov2]", *small]
    if not name.endswith("_stage2"):
        return []
    first = name.replace("_stage2", "_stage1")
    run = folder / first
    if not run.exists():
        settings = [f"train.output_dir={run}", "train.max_steps=1", "train.gradient_accumulation_steps=1"]
        run_recipe(load_recipe(first, [*overrides(first, folder), *settings]))
    return [f"model.start_from={run}"]


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_every_packaged_recipe_builds_and_has_a_plan(name, folder):
    recipe = load_recipe(name, overrides(name, folder))
    trainer = build_trainer(recipe)
    plan = plan_of(trainer)
    assert trainer.model.get_base_model().is_quantized
    assert trainer.recipe == recipe.text
    method = name.split("_")[0]
    if method in PAIRS:
        assert plan.views == {"pairs": [str(view) for view in PAIRS[method][0].needs.views]}
        assert plan.reference == {"pairs": True}
        assert list(plan.contrast) == (["pairs"] if recipe.data["pairs"].corrupt else [])
    elif name == "doco_like":
        assert plan.views == {"pages": ["chosen|image"]}
        assert plan.reference == {"pages": False}
        assert trainer.teachers.widths.keys() == {trainer.objective.parts[0].objective.read.name}
    elif name in TEXTS:
        found = {source: [view for view in views if view in OWN] for source, views in plan.views.items()}
        assert found == {source: views for source, (_, views) in TEXTS[name].items()}
        assert not any(plan.reference.values())
    else:
        assert plan.views == {"pairs": SVCO_VIEWS, "instructions": plan.views["instructions"]}
        assert plan.views["instructions"][0] == "chosen|image"
        assert plan.reference == {"pairs": True, "instructions": False}
    trained = {*recipe.model.lora_scope, *(["projector"] if recipe.model.train_projector else [])}
    assert (plan.mixer is not None) == bool(mixer_overrides(name, folder))
    trained |= {"mixer"} if plan.mixer else set()
    heads = trained_parameters(trainer.objective)
    assert {part.split()[0] for part in plan.trainable} == trained | ({"objective"} if heads else set())
    parameters = [*heads, *(p for p in trainer.model.parameters() if p.requires_grad)]
    assert sum(plan.trainable.values()) == sum(p.numel() for p in parameters)
    assert "shared by" in plan.packing
    assert all(view in str(plan) for views in plan.views.values() for view in views)


def test_figures_of_a_plan_by_hand(tmp_path):
    rows = pair_rows(8)
    trainer = make_trainer(tmp_path, DPO(), rows, max_steps=-1, num_train_epochs=3.0, gradient_accumulation_steps=2)
    plan = plan_of(trainer)
    # Two batches of two rows a step, eight rows, three epochs.
    assert plan.steps == 6
    batch = trainer.data_collator(rows)["batch"]
    prefixes = sum(prefix.input_ids.numel() for prefix in batch.prefixes)
    responses = sum(branch.token_ids.numel() for branch in batch.branches)
    assert plan.tokens_per_step == round((prefixes + responses) / 8 * 2) * 2
    # Rank 4 on the seven linear layers of each of the two Llama layers: r x (in + out).
    config = trainer.model.get_base_model().config.text_config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads = width // config.num_attention_heads * config.num_key_value_heads
    assert plan.trainable == {
        "language down_proj": 4 * (inner + width) * layers,
        "language gate_proj": 4 * (inner + width) * layers,
        "language k_proj": 4 * (width + heads) * layers,
        "language o_proj": 4 * 2 * width * layers,
        "language q_proj": 4 * 2 * width * layers,
        "language up_proj": 4 * (inner + width) * layers,
        "language v_proj": 4 * (width + heads) * layers,
    }
    trained = sum(plan.trainable.values())
    memory = plan.memory.parts
    assert memory["weights"] == 4 * plan.parameters
    assert memory["gradients"] == 4 * trained
    assert memory["optimiser"] == 8 * trained
    assert "reference" not in memory
    assert all(f"  {purpose}: {gigabytes(size)}" in str(plan) for purpose, size in memory.items())
    assert f"about {gigabytes(sum(memory.values()))}\n" in str(plan)
    assert plan.budget is None


def test_a_frozen_copy_and_a_lean_optimiser_show_in_the_memory(tmp_path):
    trainer = make_trainer(tmp_path, DPO(), pair_rows(2), adapter=None, optim="adamw_8bit")
    plan = plan_of(trainer)
    memory = plan.memory.parts
    trained = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
    assert memory["reference"] == memory["weights"] == 4 * plan.parameters
    assert memory["gradients"] == 4 * sum(trained) < memory["weights"]  # the tower's last layer is not read
    assert memory["optimiser"] == 2 * (sum(trained) + 3 * sum(size for size in trained if size < 4096))
    assert {"vision fc1", "projector linear_1", "language q_proj", "other lm_head"} <= set(plan.trainable)


def test_rows_that_are_scored_one_by_one_say_so(tmp_path):
    plan = plan_of(make_trainer(tmp_path, DPO(), pair_rows(2), packing="off"))
    assert "one sequence per view (packing is off)" in str(plan)


def test_optional_views_are_marked(tmp_path):
    objective = Weighted((NextToken(), 1.0, "pairs"))
    plan = plan_of(make_trainer(tmp_path, objective, {"pairs": pair_rows(2)}))
    assert plan.views["pairs"] == ["chosen|image", "rejected|contrast_image where there"]


def test_what_is_embedded_is_told_with_its_instruction(tmp_path):
    objective = InfoNCE(image_prompt="What is it?", text_prompt="What does it say?")
    told = str(plan_of(make_trainer(tmp_path, objective, pair_rows(2))))
    assert "embedding of image, last behind 'What is it?'; embedding of chosen, last behind 'What does" in told
    assert "Features" not in str(plan_of(make_trainer(tmp_path / "dpo", DPO(), pair_rows(2))))


def test_parameters_of_the_objective_are_counted(tmp_path):
    plan = plan_of(make_trainer(tmp_path, Headed(), pair_rows(2)))
    assert plan.trainable["objective"] == 5


def test_what_was_changed_to_fit_a_budget_is_on_the_page(tmp_path):
    settings = {"per_device_train_batch_size": 8}
    budget = plan_of(make_trainer(tmp_path / "a", DPO(), pair_rows(8), **settings)).memory.total / 2 / GIB
    trainer = make_trainer(tmp_path / "b", DPO(), pair_rows(8), memory_budget=budget, **settings)
    plan = plan_of(trainer)
    assert plan.decisions == trainer.decisions != ()
    assert plan.memory.total <= plan.budget == int(budget * GIB)
    assert all(f"  {decision}" in str(plan) for decision in plan.decisions)
    assert f" of {gigabytes(plan.budget)}" in str(plan)


def test_a_run_that_does_not_fit_the_device_is_told_of_the_switch(tmp_path):
    plan = plan_of(make_trainer(tmp_path, DPO(), pair_rows(2)))
    assert "set memory_budget" not in str(replace(plan, budget=plan.memory.total))
    assert "set memory_budget" in str(replace(plan, budget=plan.memory.total - 1))


def test_batches_by_tokens_show_in_tokens_and_steps(tmp_path):
    settings = {"max_tokens_per_batch": 300, "check_data": True, "max_steps": -1, "num_train_epochs": 2.0}
    trainer = make_trainer(tmp_path, DPO(), pair_rows(8), **settings)
    plan = plan_of(trainer)
    assert plan.tokens_per_step == 300
    assert plan.steps == 2 * len(trainer.get_train_dataloader())
