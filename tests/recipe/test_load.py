from pathlib import Path

import pytest
import yaml

from mllm_align.recipe import RecipeError, description, load_recipe, packaged_recipes

TEXT = """# A run.
# Of two lines.
model: {model_name_or_path: some/model}
data:
  pairs: {path: pairs.jsonl}
objective:
  - {name: dpo, beta: 1e-1}
train: {output_dir: out, learning_rate: 1e-6, report_to: none}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return path


def test_scientific_notation_without_a_dot_is_a_number(file):
    recipe = load_recipe(file)
    assert recipe.train["learning_rate"] == 1e-6
    assert recipe.objective[0]["beta"] == 0.1
    assert recipe.text == TEXT
    assert recipe.folder == file.parent


def test_overrides_are_read_as_yaml_and_kept_in_the_text(file):
    recipe = load_recipe(
        file,
        [
            "train.learning_rate=3e-5",
            "objective.0.beta=0.2",
            "train.report_to=[tensorboard]",
            "train.max_length=null",
            "eval_data.pairs.path=held_out.jsonl",
            "data.pairs.split=a=b",
        ],
    )
    assert recipe.train == {
        "output_dir": "out",
        "learning_rate": 3e-5,
        "report_to": ["tensorboard"],
        "max_length": None,
    }
    assert recipe.objective == [{"name": "dpo", "beta": 0.2}]
    assert recipe.eval_data["pairs"].path == "held_out.jsonl"
    assert recipe.data["pairs"].split == "a=b"
    assert description(recipe.text) == "A run.\nOf two lines."


def test_text_with_overrides_is_the_same_recipe_again(file, tmp_path):
    recipe = load_recipe(file, ["train.learning_rate=3e-5", "train.warmup_steps=0.1"])
    again = tmp_path / "again.yaml"
    again.write_text(recipe.text)
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate", "is not section.key=value"),
        ("objective.3.beta=1", "there is no objective.3"),
        ("objective.first.beta=1", "there is no objective.first"),
        ("objective.4=dpo", "there is no objective.4"),
        ("model.model_name_or_path.x=1", "there is no model.model_name_or_path.x"),
        ("train.report_to=[a", "is not YAML"),
        ("train.learnin_rate=1", "did you mean 'train.learning_rate'"),
        ("train.learning_rate=fast", "must be float"),
    ],
)
def test_bad_override_is_named(file, override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(file, [override])
    assert message in str(error.value)


def test_key_that_stands_twice_is_refused(file):
    file.write_text(TEXT + "train: {output_dir: other}\n")
    with pytest.raises(RecipeError, match="key 'train' stands twice"):
        load_recipe(file)


def test_file_that_is_no_yaml(file):
    file.write_text("model: [")
    with pytest.raises(RecipeError, match=r"run\.yaml is not YAML"):
        load_recipe(file)


def test_unknown_recipe_lists_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"that name; did you mean 'svco_llava15_7b'\? known: chip_llava16_7b, c"):
        load_recipe("svco_llava")
    with pytest.raises(RecipeError, match="no recipe of that name; known: chip_llava16_7b, clim, cloc_like, "):
        load_recipe("xyz")


def test_packaged_recipe_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = load_recipe("demo_svco")
    assert by_name == load_recipe("demo_svco.yaml") == load_recipe(Path("recipes") / "demo_svco.yaml")
    assert by_name.folder is None


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_every_packaged_recipe_is_short_and_says_what_it_is(name):
    text = packaged_recipes()[name]
    header, body = description(text), [line for line in text.splitlines() if not line.startswith("#")]
    assert len(body) < 40
    assert "Hardware:" in header
    assert "Shows:" in header
    assert "not measured" in header or name.startswith("demo")
    assert yaml.safe_load(text)["train"]["output_dir"] == f"runs/{name}"
    load_recipe(name)
