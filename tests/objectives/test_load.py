from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from mllm_align.objectives import DPO, SVCO, NextToken, Weighted
from mllm_align.objectives.load import objective_from, short_names


@pytest.fixture
def user_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's package `my_pkg` with a file of objectives, one that fails to import, and things that are none."""
    (tmp_path / "my_pkg").mkdir()
    (tmp_path / "my_pkg" / "__init__.py").write_text("")
    (tmp_path / "my_pkg" / "broken.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "my_pkg" / "losses.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass

            from mllm_align.contract import Needs, Outcome, Term, View

            VIEW = View("image", "chosen")

            @dataclass(frozen=True)
            class Mine:
                power: float
                floor: float = 0.0
                needs = Needs(views=(VIEW,))

                def __call__(self, policy, reference):
                    total = (-policy.logps[VIEW]).pow(self.power).sum()
                    return Outcome((Term("mine", 1.0, total, policy.has(VIEW).sum()),))

            class Free(Mine):
                def __init__(self, **options):
                    object.__setattr__(self, "options", options)

            def make(power):
                return Mine(power)

            def number():
                return 3

            class Vague(Mine):
                needs = ("image", "chosen")

            three = 3
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_pkg"]:
        del sys.modules[name]


def test_short_names_are_those_of_the_package() -> None:
    assert {"svco": SVCO, "dpo": DPO, "next_token": NextToken}.items() <= short_names().items()
    assert {"rdpo", "mdpo", "chip", "ddpo", "orpo", "vdpo", "image_preference", "info_nce"} <= set(short_names())
    assert "weighted" not in short_names()


def test_builds_by_short_name_with_options() -> None:
    assert objective_from("svco") == SVCO()
    assert objective_from({"name": "svco", "beta_attend": 0.5}) == SVCO(beta_attend=0.5)
    assert objective_from({"name": "next_token", "matched": False}) == NextToken(matched=False)
    assert objective_from({"name": "svco", "symmetric": False}).needs == SVCO(symmetric=False).needs


def test_hands_back_what_is_an_objective_already() -> None:
    given = DPO(beta=0.3)
    assert objective_from(given) is given


def test_a_list_is_a_weighted_sum() -> None:
    made = objective_from(
        [
            {"name": "svco", "weight": 2, "sources": "pairs", "beta_reject": 0.2},
            {"name": "next_token", "weight": 0.5, "sources": ["instructions", "text"]},
            "dpo",
            SVCO(),
        ]
    )
    assert isinstance(made, Weighted)
    assert [(part.objective, part.weight, part.sources) for part in made.parts] == [
        (SVCO(beta_reject=0.2), 2.0, ("pairs",)),
        (NextToken(), 0.5, ("instructions", "text")),
        (DPO(), 1.0, None),
        (SVCO(), 1.0, None),
    ]


@pytest.mark.parametrize("key", [{"weight": 0.5}, {"sources": "pairs"}])
def test_weight_or_sources_beside_one_name_are_kept(key: dict) -> None:
    (part,) = objective_from({"name": "dpo", **key}).parts
    assert part.objective == DPO()
    assert (part.weight, part.sources) == (key.get("weight", 1.0), ("pairs",) if "sources" in key else None)


@pytest.mark.usefixtures("user_package")
@pytest.mark.parametrize("path", ["my_pkg.losses:Mine", "my_pkg.losses.Mine", "my_pkg.losses:make"])
def test_builds_by_a_users_import_path(path: str) -> None:
    made = objective_from({"name": path, "power": 2.0})
    assert type(made).__name__ == "Mine"
    assert made.power == 2.0
    assert objective_from([{"name": path, "power": 2.0, "weight": 0.5}, "dpo"]).parts[0].name == "mine"


@pytest.mark.usefixtures("user_package")
def test_a_class_that_takes_any_option_gets_them() -> None:
    assert objective_from({"name": "my_pkg.losses:Free", "anything": 1}).options == {"anything": 1}


@pytest.mark.usefixtures("user_package")
@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("scvo", ValueError, "unknown objective 'scvo'; did you mean 'svco'.*known: .*dpo, .*svco.*your own"),
        ("SVCO", ValueError, "did you mean 'svco'"),
        ("zzzzzz", ValueError, r"unknown objective 'zzzzzz' \(known"),
        ({"name": "svco", "beta_atend": 1}, ValueError, "no option 'beta_atend'; did you mean 'beta_attend'"),
        ({"name": "dpo", "wieght": 1}, ValueError, "no option 'wieght'; did you mean 'weight'"),
        ({"name": "dpo", "source": "a"}, ValueError, "no option 'source'; did you mean 'sources'"),
        ({"name": "dpo", "beta": "0.1"}, ValueError, "beta must be a number above 0, got '0.1'"),
        ({"nmae": "dpo"}, ValueError, "needs a `name`, got the keys nmae"),
        ({}, ValueError, "needs a `name`, got the keys none"),
        ("my_pkg.losses:Mien", ValueError, "my_pkg.losses has no 'Mien'; did you mean 'Mine'"),
        ("my_pkg.lossses:Mine", ValueError, "no module 'my_pkg.lossses'; is it installed"),
        ("your_pkg.losses:Mine", ValueError, "no module 'your_pkg'"),
        ("my_pkg.losses:Mine", ValueError, "'my_pkg.losses:Mine' needs a value for power"),
        ({"name": "my_pkg.losses:make", "pwer": 2}, ValueError, "no option 'pwer'; did you mean 'power'"),
        ("my_pkg.losses:three", TypeError, "neither a class nor a function"),
        ("my_pkg.losses:number", TypeError, "my_pkg.losses:number is no objective"),
        ({"name": "my_pkg.losses:Vague", "power": 2}, TypeError, "Vague is no objective: it must have `needs`"),
        (3, TypeError, "3 is no objective"),
        (DPO, TypeError, "is no objective"),
        ([], ValueError, "at least one"),
        ([{"name": "dpo", "weight": "1"}], ValueError, "part 1: weight must be a number"),
    ],
)
def test_mistakes_are_named_with_their_mend(spec: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        objective_from(spec)


@pytest.mark.usefixtures("user_package")
def test_a_users_file_that_fails_to_import_says_so_itself() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        objective_from("my_pkg.broken:Mine")
