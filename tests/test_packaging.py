"""What is installed: the wheel holds everything, works far from the tree, and the pins are the tested stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mllm_align

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"mllm_align": "mllm_align", "eval": "mllm_align_eval", "recipes": "mllm_align_recipes"}
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines)  # type: ignore[union-attr]
    return {canonicalize_name(name): pin for name, pin in found.items()}


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]


def tree_files() -> set[str]:
    """Every file of the packages, under the name that it is installed as."""
    found = set()
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", "77", reason="setuptools >= 77 builds the wheel")
    pytest.importorskip("build", reason="the build package builds the wheel")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert tree_files() - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES.values())
    assert {
        "mllm_align/demo/base/model.safetensors",
        "mllm_align/py.typed",
        "mllm_align_recipes/demo_svco.yaml",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(own)
    # What the wheel depends on comes from the environment of the tests, behind the wheel itself.
    (own / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = home / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}

    def run(*arguments: str) -> str:
        command = [str(python), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run("-c", "import mllm_align, mllm_align_eval as e; print(mllm_align.__file__, e.__file__)").split()
    assert all(Path(path).is_relative_to(own) for path in where)
    assert "demo_svco\n" in run("-m", "mllm_align.cli", "recipes")
    overrides = ["data.pairs.num_rows=2", "data.instructions.num_rows=2", "train.use_cpu=true"]
    assert "Trained parameters" in run("-m", "mllm_align.cli", "train", "demo_svco", "--dry-run", "--set", *overrides)


def test_version_is_written_once_in_each_place() -> None:
    assert PYPROJECT["project"]["version"] == mllm_align.__version__


def test_import_is_light_and_lazy() -> None:
    code = (
        "import sys, mllm_align; heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from mllm_align import AlignConfig, AlignTrainer, load_model, load_recipe\n"
        "assert AlignTrainer.__module__.startswith('mllm_align.trainers')\n"
        "try: mllm_align.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise AssertionError"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_pin_lies_in_the_declared_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_pins_cover_whatever_is_installed_with_us() -> None:
    """Every dependency of a dependency is pinned, so that an installation next year is the same."""
    open_names, seen = [canonicalize_name(r.name) for r in declared()], set()
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        wanted = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
        open_names += [canonicalize_name(r.name) for r in wanted]
    # A GPU build of torch brings its own libraries, which differ by platform.
    libraries = {name for name in seen if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert seen - libraries - set(pins()) == set()


@pytest.mark.parametrize("name", ["torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets"])
def test_tests_run_on_the_pinned_stack(name: str) -> None:
    assert version(name).split("+")[0] == pins()[name]


def test_third_party_imports_are_declared() -> None:
    """A fresh installation must bring whatever the packages import."""
    names = {canonicalize_name(r.name) for r in declared()}
    spelled = {"PIL": "pillow", "faiss": "faiss-cpu", "yaml": "pyyaml", "mpl_toolkits": "matplotlib"}
    # torch and transformers cannot be without these.
    names |= {"tokenizers", "tqdm"}
    # An extra of its own, which the bridge to it alone imports, and which is not in the tested stack.
    bridged = {"lmms_eval": ROOT / "eval" / "lmms_bridge"}
    assert "lmms-eval" in PYPROJECT["project"]["optional-dependencies"]
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    for folder in ("mllm_align", "eval"):
        for path in (ROOT / folder).rglob("*.py"):
            code = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
            for module in pattern.findall(code):
                known = module in sys.stdlib_module_names or module in PACKAGES.values()
                known = known or (module in bridged and bridged[module] in path.parents)
                assert known or canonicalize_name(spelled.get(module, module)) in names, f"{path}: {module}"
