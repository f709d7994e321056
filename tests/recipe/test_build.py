import json
import sys
from dataclasses import replace

import pytest
import yaml
from safetensors.torch import load_file

from mllm_align.data.corrupt import Crop
from mllm_align.objectives import DPO, Weighted
from mllm_align.recipe import Recipe, RecipeError, build_trainer, load_recipe, plan_of, run_recipe
from mllm_align.recipe.build import build_arguments, build_objective, load_source
from mllm_align.recipe.schema import DataSource, parse_recipe
from runs import picture
from tiny import save_tiny

OWN_OBJECTIVE = """
from dataclasses import dataclass
from typing import ClassVar
from mllm_align.contract import Needs, Outcome, Signals, Term, View

OWN = View("image", "chosen")

@dataclass(frozen=True)
class Likely:
    scale: float = 1.0
    needs: ClassVar[Needs] = Needs(views=(OWN,))

    def __call__(self, policy, reference):
        return Outcome((Term("likely", 1.0, -self.scale * policy.logps[OWN].sum(), policy.has(OWN).sum()),))
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny("llava", tmp_path_factory.mktemp("model"))


def write_rows(folder, count=4):
    rows = []
    for number in range(count):
        names = {"image": f"{number}.png", "contrast_image": f"{number}_other.png"}
        for place, name in enumerate(names.values()):
            picture(10 * number + place).save(folder / name)
        rows.append({"prompt": "Which colour?", "chosen": f"red {number}", "rejected": "blue", **names})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(folder, model_folder, **changes):
    raw = {
        "model": {"model_name_or_path": str(model_folder), "use_peft": True, "lora_r": 4},
        "data": {"pairs": {"path": str(write_rows(folder))}},
        "objective": [{"name": "dpo", "sources": "pairs"}],
        "train": {
            "output_dir": str(folder / "run"),
            "use_cpu": True,
            "max_steps": 4,
            "save_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "disable_tqdm": True,
            "report_to": "none",
        },
    }
    raw |= {key: raw[key] | value if isinstance(value, dict) else value for key, value in changes.items()}
    path = folder / "recipe.yaml"
    path.write_text("# A tiny run.\n" + yaml.safe_dump(raw, sort_keys=False))
    return path


def test_run_saves_adapter_and_recipe_refuses_a_used_folder_and_resumes(tmp_path, model_folder):
    path = write_recipe(tmp_path, model_folder)
    run_recipe(load_recipe(path))
    run = tmp_path / "run"
    whole = load_file(run / "adapter_model.safetensors")
    assert (run / "recipe.yaml").read_text() == path.read_text()
    assert "A tiny run." in (run / "README.md").read_text()

    with pytest.raises(ValueError, match="has something in it"):
        run_recipe(load_recipe(path))
    assert load_file(run / "adapter_model.safetensors").keys() == whole.keys()

    for changes in (["objective.0.beta=0.3"], ["model.lora_r=2"]):
        with pytest.raises(RecipeError, match="checkpoint-4 was made with another"):
            run_recipe(load_recipe(path, changes), resume=True)
    changed = {"epoch_rows=3": "epoch_rows: None, now 3", "seed=5": "data_seed, or else train.seed: None, now 5"}
    changed["source_caps={default: 1}"] = "source_caps: None, now {'default': 1}"
    for change, told in changed.items():
        with pytest.raises(RecipeError, match=f"checkpoint-4 was made with another train.{told}; resume with"):
            run_recipe(load_recipe(path, [f"train.{change}"]), resume=True)

    # As a run that was killed after its first checkpoint leaves it.
    (run / "adapter_model.safetensors").unlink()
    for file in (run / "checkpoint-4").iterdir():
        file.unlink()
    trainer = run_recipe(load_recipe(path), resume=True)
    assert trainer.state.global_step == 4
    again = load_file(run / "adapter_model.safetensors")
    assert all((again[name] == value).all() for name, value in whole.items())

    run_recipe(load_recipe(path, ["train.max_steps=1"]), overwrite=True)
    assert load_recipe(run / "recipe.yaml").train["max_steps"] == 1


def test_contrast_images_are_made_where_a_source_says_so(tmp_path, model_folder):
    pairs = {"path": str(write_rows(tmp_path)), "corrupt": {"kind": "crop", "scale": [0.1, 0.2], "replace": True}}
    path = write_recipe(
        tmp_path, model_folder, data={"pairs": pairs}, objective=[{"name": "mdpo", "sources": "pairs"}]
    )
    trainer = build_trainer(load_recipe(path, ["train.data_seed=7"]))
    made = [trainer.train_dataset[item]["contrast_image"] for item in ((0, 0), (0, 1))]
    assert {image.corruption for image in made} == {Crop(scale=(0.1, 0.2))}
    assert {image.original for image in made} == {str(tmp_path / "0.png")}
    assert made[0].seed != made[1].seed
    assert trainer.train_dataset.parts["pairs"].draws.seed == 7
    contrast = "  pairs: Crop(scale=(0.1, 0.2), ratio=(0.75, 1.3333333333333333)), drawn anew in every epoch"
    assert contrast in str(plan_of(trainer)).splitlines()

    once = load_recipe(path, ["data.pairs.corrupt.redraw=false", "data.pairs.num_rows=2"]).data["pairs"]
    rows = load_source("pairs", once)
    assert (len(rows), rows.by_epoch) == (2, False)


def test_contrast_images_that_cannot_be_made(tmp_path):
    path = str(write_rows(tmp_path))
    with pytest.raises(RecipeError, match=r"data\.pairs\.corrupt: 'swap' looks for other rows, which a stream"):
        load_source("pairs", DataSource(path, streaming=True, corrupt={"kind": "swap"}))
    with pytest.raises(RecipeError, match=r"data\.pairs\.corrupt: unknown kind 'x'"):
        load_source("pairs", DataSource(path, corrupt={"kind": "x"}))


def test_mosaics_of_a_source(tmp_path):
    path = write_rows(tmp_path)
    rows = {
        "path": str(path),
        "columns": {"caption": "chosen"},
        "mosaic": {"sizes": [2], "text": "caption", "side": 56},
    }
    (made,) = list(load_source("rows", DataSource(**rows, num_rows=4)))
    assert made["image"].side == 56
    assert len(made["objects"]) == 4
    with pytest.raises(RecipeError, match=r"data\.rows\.mosaic: a mosaic has no option 'size'.*did you mean 'sizes'"):
        parse_data(rows | {"mosaic": {"size": 2}})
    with pytest.raises(
        RecipeError, match=r"data\.rows: a mosaic has no contrast image: keep one of corrupt and mosaic"
    ):
        parse_data(rows | {"corrupt": {"kind": "crop"}})
    with pytest.raises(RecipeError, match=r"data\.rows: a mosaic is made of rows from anywhere: leave streaming out"):
        parse_data(rows | {"streaming": True})


def parse_data(source):
    sections = {"model": {"model_name_or_path": "x"}, "objective": ["region_text"], "train": {"output_dir": "y"}}
    return parse_recipe({**sections, "data": {"rows": source}})


def test_output_folder_is_looked_at_before_anything_loads(tmp_path):
    path = write_recipe(tmp_path, "no/such/model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="has something in it"):
        run_recipe(load_recipe(path))
    with pytest.raises(ValueError, match="no complete checkpoint to resume from"):
        run_recipe(load_recipe(path), resume=True)


def test_own_objective_beside_the_recipe_trains(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_losses_for_a_test.py").write_text(OWN_OBJECTIVE)
    part = {"name": "my_losses_for_a_test:Likely", "scale": 0.5, "weight": 2.0}
    path = write_recipe(tmp_path, model_folder, objective=[part], train={"max_steps": 2, "logging_steps": 1})
    trainer = run_recipe(load_recipe(path))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert losses[0] > 0
    assert trainer.objective.parts[0].objective.scale == 0.5


def recipe_with(**changes) -> Recipe:
    raw = {
        "model": {"model_name_or_path": "some/model"},
        "data": {"pairs": "pairs.jsonl"},
        "objective": ["dpo"],
        "train": {"output_dir": "out", "use_cpu": True},
    }
    return parse_recipe(raw | changes)


def test_objective_by_name_with_weight_and_sources():
    built = build_objective(recipe_with(objective=[{"name": "dpo", "beta": 0.3, "weight": 2, "sources": "pairs"}]))
    assert isinstance(built, Weighted)
    (part,) = built.parts
    assert part.objective == DPO(beta=0.3)
    assert (part.weight, part.sources) == (2.0, ("pairs",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": ["dpoo"]}, "objective: unknown objective 'dpoo'; did you mean 'dpo'"),
        ({"objective": [{"name": "dpo", "betta": 1}]}, "objective: objective 'dpo' has no option 'betta'"),
        ({"objective": ["no_such_module_here:Loss"]}, "no module 'no_such_module_here'"),
        ({"objective": [{"name": "dpo", "sources": "pears"}]}, "data: no part of the objective takes rows of source"),
        (
            {"objective": ["dpo", {"name": "next_token", "sources": "instructions"}]},
            "data: the objective has a part for source 'instructions'",
        ),
        (
            {"objective": [{"name": "dpo", "sources": "pairs"}], "eval_data": {"held_out": "x.jsonl"}},
            "eval_data: no part of the objective takes rows of source 'held_out'",
        ),
    ],
)
def test_objective_and_data_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(RecipeError) as error:
        build_objective(recipe_with(**changes))
    assert message in str(error.value)


def test_weights_and_caps_of_sources_are_settings_of_the_run(tmp_path, model_folder):
    data = {"pairs": {"path": str(write_rows(tmp_path)), "weight": 3}, "few": {"cap": 3, "weight": 1}}
    data["few"]["path"] = data["pairs"]["path"]
    path = write_recipe(tmp_path, model_folder, data=data, objective=["dpo"], train={"epoch_rows": 20})
    recipe = load_recipe(str(path))
    arguments = build_arguments(recipe)
    assert (arguments.source_weights, arguments.source_caps) == ({"pairs": 3.0, "few": 1.0}, {"few": 3})
    assert build_arguments(recipe_with()).source_weights is None
    plan = str(plan_of(build_trainer(recipe)))
    assert "  pairs: 4 rows, 15 an epoch, 75.0 %\n  few: 3 of 4 rows, 5 an epoch, 25.0 %\n" in plan


@pytest.mark.parametrize(
    ("weights", "train", "message"),
    [
        ((0, 0), {}, "data: every source has weight 0"),
        ((1e-6, 1), {}, "data: source 'pairs' has 1e-06 of 1 shares"),
        ((1, 1), {"source_weights": {"pairs": 1.0}}, "train.source_weights and data.pairs.weight say the same"),
        (
            (None, None),
            {"source_caps": {"pears": 1}},
            "data: source_caps names 'pears', but the sources are pairs, few",
        ),
        ((1, 1), {"max_tokens_per_batch": 100}, "train: source_weights and max_tokens_per_batch both say"),
    ],
)
def test_shares_are_refused_before_the_model_is_loaded(tmp_path, model_folder, weights, train, message, monkeypatch):
    monkeypatch.setattr("mllm_align.recipe.build.load_model", None)
    rows = str(write_rows(tmp_path))
    data = {name: {"path": rows, "weight": weight} for name, weight in zip(("pairs", "few"), weights, strict=True)}
    path = write_recipe(tmp_path, model_folder, data=data, objective=["dpo"], train=train)
    with pytest.raises(RecipeError) as error:
        build_trainer(load_recipe(str(path)))
    assert message in str(error.value)


def test_settings_are_checked():
    assert build_arguments(recipe_with(), overwrite=True).overwrite_output_dir
    with pytest.raises(RecipeError, match="train: packing 'maybe' is none of"):
        build_arguments(recipe_with(train={"output_dir": "out", "packing": "maybe"}))
    with pytest.raises(RecipeError, match="output_dir is missing"):
        build_arguments(recipe_with(train={"max_steps": 1}))


def test_rows_of_the_world_and_of_files(tmp_path):
    pairs = load_source("pairs", DataSource("world:pairs", num_rows=3))
    assert len(pairs) == 3
    assert {"image", "contrast_image", "chosen", "rejected"} <= set(pairs.column_names)
    assert len(load_source("rows", DataSource(str(write_rows(tmp_path)), num_rows=2))) == 2
    streamed = load_source("rows", DataSource(str(tmp_path / "pairs.jsonl"), num_rows=3, streaming=True))
    assert len(list(streamed)) == 3
    with pytest.raises(RecipeError, match="the world gives world:pairs, world:instructions"):
        load_source("rows", DataSource("world:pears"))
    with pytest.raises(RecipeError, match=r"data.rows: .*'odd'"):
        load_source("rows", DataSource("world:pairs", num_rows=1, distribution="odd"))


def test_a_model_must_be_named():
    with pytest.raises(RecipeError, match="model: model_name_or_path is missing"):
        build_trainer(recipe_with(model={"model_name_or_path": None}))


def caption_recipe(folder, model_folder, **source):
    """A recipe on captions of one to sixty words, of some tokens each."""
    rows = []
    for number, count in enumerate((1, 9, 2, 60)):
        picture(number).save(folder / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "captions": [" ".join(["word"] * count), "A dog."]})
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [{"name": "discriminative", "sources": "captions", "image_prompt": "Sum it up:"}]
    options = {"route_captions": {"short": 20, "long": 50}} | source
    return write_recipe(
        folder,
        model_folder,
        data={"pairs": {"path": str(write_rows(folder))}, "captions": {"path": str(path)} | options},
        objective=[*parts, {"name": "dpo", "sources": "pairs"}],
    )


def test_captions_go_where_their_length_says(tmp_path, model_folder, caplog):
    path = caption_recipe(tmp_path, model_folder)
    trainer = build_trainer(load_recipe(path, ["train.data_seed=7"]))
    routed = trainer.train_dataset.parts["captions"]
    told = "data.captions: 4 rows of captions: 3 short, 0 long, 1 both; 0 rows left out, 1 captions too long"
    assert caplog.messages.count(told) == 1
    assert {row["prompt"] for row in routed} == {"Sum it up:"}
    assert [("caption" in row, "chosen" in row) for row in routed] == [
        (True, False),
        (True, True),
        (True, False),
        (True, False),
    ]
    assert (routed.routes.seed, routed.by_epoch) == (7, True)
    trainer.train()
    named = build_trainer(load_recipe(path, ["data.captions.route_captions.prompt='Say it:'"]), overwrite=True)
    assert named.train_dataset.parts["captions"][0]["prompt"] == "Say it:"


def test_captions_without_an_instruction_to_stand_behind(tmp_path, model_folder):
    path = caption_recipe(tmp_path, model_folder)
    none = load_recipe(path, ["objective.0={name: next_token, sources: captions}"])
    with pytest.raises(
        RecipeError, match=r"data\.captions\.route_captions: the objective reads images behind no instr"
    ):
        build_trainer(none)
    both = load_recipe(path, ["objective.1={name: discriminative, sources: [pairs, captions], image_prompt: 'What?'}"])
    with pytest.raises(RecipeError, match=r"behind 'Sum it up:' and 'What\?': say which with prompt"):
        build_trainer(both)
    empty = load_recipe(path, ["data.captions.route_captions={short: 1, long: 1}"])
    with pytest.raises(RecipeError, match=r"data\.captions\.route_captions: no row is left"):
        build_trainer(empty)


def test_images_are_named_where_the_template_lets_names_stand_beside_them(tmp_path, model_folder):
    rows = [{"images": ["0.png", "1.png"], "prompt": "Is [[image 1]] red?", "chosen": "yes"}] * 4
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(str(tmp_path / "rows.jsonl"), references=True)
    (first, *_) = load_source("rows", source)
    texts = [part["text"] for part in first["prompt"][0]["content"] if part["type"] == "text"]
    assert texts == ["image 0 is ", "\nimage 1 is ", "\nIs image 1 red?"]
    with pytest.raises(
        RecipeError, match=r"data\.rows\.references: .*no image is called 'image 1'; there are 'a', 'b'"
    ):
        load_source("rows", replace(source, references=["a", "b"]))
    changes = {"data": {"rows": {"path": source.path, "references": True}}, "objective": [{"name": "next_token"}]}
    path = write_recipe(tmp_path, model_folder, **changes)
    raw = yaml.safe_load(path.read_text())
    del raw["data"]["pairs"]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError, match=r"data\.rows\.references: the chat template puts images before all text"):
        build_trainer(load_recipe(path))
    other = save_tiny("qwen2_5_vl", tmp_path / "qwen")
    trainer = build_trainer(load_recipe(path, [f"model.model_name_or_path={other}"]))
    assert len(trainer.train_dataset) == 4
