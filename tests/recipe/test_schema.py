import pytest

from mllm_align.data.routes import Routes
from mllm_align.models import ModelArguments
from mllm_align.recipe import DataSource, RecipeError
from mllm_align.recipe.schema import parse_recipe


def raw(**changes):
    recipe = {
        "model": {"model_name_or_path": "some/model", "use_peft": True},
        "data": {"pairs": {"path": "pairs.jsonl"}},
        "objective": [{"name": "dpo", "weight": 1, "sources": "pairs"}],
        "train": {"output_dir": "out", "learning_rate": 1},
    }
    return recipe | changes


def test_sections_become_dataclasses():
    recipe = parse_recipe(raw(data={"pairs": "a.jsonl", "more": {"path": "b", "columns": {"image": "picture"}}}))
    assert recipe.model == ModelArguments(model_name_or_path="some/model", use_peft=True)
    assert recipe.data == {
        "pairs": DataSource("a.jsonl"),
        "more": DataSource("b", columns={"image": "picture"}),
    }
    assert recipe.train == {"output_dir": "out", "learning_rate": 1.0}
    assert isinstance(recipe.train["learning_rate"], float)
    assert recipe.eval_data == {}


@pytest.mark.parametrize(
    ("changes", "path", "nearest"),
    [
        ({"modle": {}}, "modle", "'model'"),
        ({"train": {"output_dir": "x", "learnin_rate": 1.0}}, "train.learnin_rate", "'train.learning_rate'"),
        ({"model": {"load_in_4_bit": True}}, "model.load_in_4_bit", "'model.load_in_4bit'"),
        ({"data": {"pairs": {"path": "x", "splitt": "y"}}}, "data.pairs.splitt", "'data.pairs.split'"),
        ({"learning_rate": 1.0}, "learning_rate", "'train.learning_rate'"),
        ({"train": {"output_dir": "x", "lora_r": 4}}, "train.lora_r", "'model.lora_r'"),
    ],
)
def test_unknown_key_names_its_path_and_the_nearest_one(changes, path, nearest):
    with pytest.raises(RecipeError, match="unknown key") as error:
        parse_recipe(raw(**changes))
    assert f"unknown key {path!r}: did you mean {nearest}?" in str(error.value)


def test_unknown_key_like_no_other_lists_the_known_ones():
    with pytest.raises(RecipeError, match=r"known are .*columns.*split"):
        parse_recipe(raw(data={"pairs": {"path": "x", "zzzzzz": 1}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate must be float, not str 'fast'"),
        ({"train": {"learning_rate": True}}, "train.learning_rate must be float, not bool True"),
        ({"train": {"max_steps": 1.5}}, "train.max_steps must be int, not float 1.5"),
        ({"train": {"max_length": "512"}}, "train.max_length must be int or nothing, not str '512'"),
        ({"train": {"report_to": 3}}, "train.report_to must be nothing or str or list[str], not int 3"),
        ({"model": {"load_in_4bit": 1}}, "model.load_in_4bit must be bool, not int 1"),
        ({"model": {"lora_scope": ["language", 3]}}, "model.lora_scope must be list[str], not list"),
        ({"data": {"pairs": {"path": 3}}}, "data.pairs.path must be str, not int 3"),
        ({"data": {"pairs": {"path": "x", "columns": {"image": 1}}}}, "data.pairs.columns must be dict[str, str]"),
        ({"data": ["x"]}, "data must be keys with values, not list"),
        ({"objective": {"name": "dpo"}}, "objective must be a list"),
        ({"objective": [{"name": "dpo", "weight": "1"}]}, "objective.0.weight must be float, not str '1'"),
        ({"objective": ["dpo", 3]}, "objective.1 must be keys with values, not int 3"),
    ],
)
def test_wrong_type_names_key_type_and_value(changes, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe(raw(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {}}, "no section 'train'"),
        ({"data": {"pairs": {"split": "train"}}}, "data.pairs has no path"),
        ({"data": {"pairs": {"path": "x", "num_rows": 0}}}, "data.pairs: num_rows must be at least 1"),
        ({"objective": [{"weight": 1.0}]}, "objective.0 has no name"),
        (
            {"data": {"a": {"path": "x", "corrupt": {"kind": "crops"}}}},
            "data.a.corrupt: unknown kind 'crops'",
        ),
        ({"data": {"a": {"path": "x", "corrupt": {"scale": 1}}}}, "data.a.corrupt: a corruption is {'kind': name"),
        (
            {"data": {"a": {"path": "x", "corrupt": "crop"}}},
            "data.a.corrupt must be dict[str, Any] or nothing",
        ),
        (
            {"data": {"a": {"path": "x", "corrupt": {"kind": "crop", "scale": [0.2, 0.1]}}}},
            "data.a.corrupt: 'crop': scale must begin with its lower end, not [0.2, 0.1]",
        ),
        (
            {"eval_data": {"a": {"path": "x", "corrupt": {"kind": "crop", "redraw": 1}}}},
            "eval_data.a.corrupt: redraw must be true or false, not 1",
        ),
        ({"model": {"dtype": "int3"}}, "model: dtype 'int3' is none of"),
    ],
)
def test_missing_or_senseless_value(changes, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe(raw(**changes))
    assert message in str(error.value)


def test_not_a_mapping():
    with pytest.raises(RecipeError, match="the recipe must be keys with values, not str 'train'"):
        parse_recipe("train")


def test_weight_and_cap_of_a_source():
    recipe = parse_recipe(raw(data={"pairs": {"path": "x", "weight": 2, "cap": 100}, "web": {"path": "y"}}))
    assert (recipe.data["pairs"].weight, recipe.data["pairs"].cap) == (2.0, 100)
    assert (recipe.data["web"].weight, recipe.data["web"].cap) == (None, None)


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("data", {"weight": -1}, "data.pairs: weight must be a number of at least 0, not -1"),
        ("data", {"cap": 0}, "data.pairs: cap must be a whole number of rows of at least 1, not 0"),
        ("data", {"cap": 1.5}, "data.pairs.cap must be int or nothing, not float 1.5"),
        ("data", {"weight": "2"}, "data.pairs.weight must be float or nothing, not str '2'"),
        ("data", {"cap": 5, "streaming": True}, "data.pairs: a cap draws among all rows: leave streaming out"),
        ("data", {"wieght": 5}, "did you mean 'data.pairs.weight'?"),
        ("eval_data", {"weight": 5}, "eval_data.pairs: every row is evaluated once"),
        ("eval_data", {"cap": 5}, "eval_data.pairs: every row is evaluated once"),
    ],
)
def test_weights_and_caps_that_make_no_sense(section, options, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe(raw(**{section: {"pairs": {"path": "x"} | options}}))
    assert message in str(error.value)


def test_captions_to_route_and_images_to_name():
    data = {
        "captions": {"path": "x", "route_captions": {"short": 20, "long": None}},
        "named": {"path": "y", "references": ["left", "right"]},
        "numbered": {"path": "z", "references": True},
    }
    recipe = parse_recipe(raw(data=data))
    assert recipe.data["captions"].routes() == Routes(short=20, long=None)
    assert recipe.data["named"].routes() is None
    assert [recipe.data[name].references for name in data] == [False, ["left", "right"], True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"route_captions": {"shrot": 3}}, "data.pairs.route_captions: routing captions has no option 'shrot'"),
        ({"route_captions": {"short": 3, "long": 2}}, "data.pairs.route_captions: long must be a whole number"),
        ({"route_captions": True}, "data.pairs.route_captions must be dict[str, Any] or nothing, not bool True"),
        ({"route_captions": {}, "streaming": True}, "data.pairs: captions are counted before training: leave str"),
        ({"route_captions": {}, "corrupt": {"kind": "crop"}}, "keep one of route_captions, corrupt and mosaic"),
        ({"route_captions": {}, "mosaic": {}}, "keep one of route_captions, corrupt and mosaic"),
        ({"route_captions": {}, "references": True}, "keep one of route_captions and references"),
        ({"references": "left"}, "data.pairs.references must be bool or list[str], not str 'left'"),
    ],
)
def test_routes_and_references_that_make_no_sense(options, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe(raw(data={"pairs": {"path": "x"} | options}))
    assert message in str(error.value)
