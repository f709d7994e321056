"""The house rules that a machine can hold: which room imports which, how long files are, what has a docstring."""

from __future__ import annotations

import ast
import importlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"mllm_align": "mllm_align", "mllm_align_eval": "eval"}
MAX_LINES, MEDIAN_LINES = 400, 150

ENGINE = {"data", "families", "vision", "signals", "models"}
# What a room may import of ours, besides itself and the contract. None: everything.
MAY_IMPORT: dict[str, set[str] | None] = {
    "contract": set(),
    "objectives": set(),
    "data": set(),
    "families": set(),
    "vision": {"families"},
    "signals": {"families", "vision"},
    "models": {"families", "vision", "signals"},
    "encoding": ENGINE,
    "trainers": ENGINE | {"encoding"},
    "recipe": ENGINE | {"objectives", "trainers"},
    "mllm_align_eval": {"data", "families", "signals", "models", "encoding"},
    "demo": None,
    "cli": None,
    "__main__": None,
}
PURE = {"contract", "objectives"}


class Import(NamedTuple):
    """One import: the absolute module it names, the line, and whether importing the file does not run it."""

    module: str
    line: int
    deferred: bool


def modules(root: Path) -> dict[str, Path]:
    """Absolute module name to file, of every package in the tree."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def room_of(module: str) -> str:
    """The room of a module of ours: "mllm_align" for the root itself."""
    first, *rest = module.split(".")
    return rest[0] if first == "mllm_align" and rest else first


def imports(module: str, path: Path) -> Iterator[Import]:
    """Every import of a file: relative ones resolved, those inside functions and by literal name included."""
    tree = ast.parse(path.read_text())
    deferred = {id(node) for block in filter(_is_deferred, ast.walk(tree)) for node in ast.walk(block)}
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        for name in _names(node, package):
            yield Import(name, node.lineno, id(node) in deferred)


def _is_deferred(node: ast.AST) -> bool:
    """Whether importing the file does not run this block: a function, or what is there for type checkers alone."""
    if isinstance(node, ast.If):
        return getattr(node.test, "attr", getattr(node.test, "id", None)) == "TYPE_CHECKING" and not node.orelse
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _names(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        # "from mllm_align import trainers" names a room just as "import mllm_align.trainers" does.
        return [f"{origin}.{alias.name}" for alias in node.names] if origin in PACKAGES else [origin]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        if name in ("import_module", "__import__", "lazy_import") and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def forbidden_imports(root: Path) -> list[str]:
    """One line per import that the table does not allow."""
    wrong = []
    for module, path in modules(root).items():
        room = room_of(module)
        if room != "mllm_align" and room not in MAY_IMPORT:
            wrong.append(f"{module}: room {room!r} is not in the table")
            continue
        for item in imports(module, path):
            where = f"{module}:{item.line} imports {item.module}"
            first = item.module.split(".")[0]
            if first in PACKAGES:
                wrong += [where] if not _allowed(room, item) else []
            elif room in PURE and first not in {*sys.stdlib_module_names, "torch"}:
                wrong.append(f"{where}, which is neither torch nor the standard library")
    return wrong


def _allowed(room: str, item: Import) -> bool:
    if item.module == "mllm_align.__version__":
        return True
    if room == "mllm_align":
        # The root hands out names when they are asked for; importing it must cost nothing.
        return item.deferred and room_of(item.module) != "mllm_align_eval"
    target, may = room_of(item.module), MAY_IMPORT[room]
    return may is None or target in {room, "contract", *may}


def too_long(root: Path) -> list[str]:
    """Files of more than the allowed number of lines, tests and benchmarks included."""
    folders = [*PACKAGES.values(), "tests", "benchmarks"]
    lengths = {path: _lines(path) for folder in folders for path in sorted((root / folder).rglob("*.py"))}
    return [f"{path.relative_to(root)}: {length} lines" for path, length in lengths.items() if length > MAX_LINES]


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def undocumented(root: Path) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    wrong = []
    for module, path in modules(root).items():
        tree = ast.parse(path.read_text())
        if tree.body and not ast.get_docstring(tree):
            wrong.append(module)
        wrong += [f"{module}.{name}" for name in _bare(tree)]
    return wrong


def _bare(parent: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        # A setter or an overload is documented where the name is first defined.
        decorators = {getattr(item, "attr", getattr(item, "id", "")) for item in node.decorator_list}
        if not ast.get_docstring(node) and not decorators & {"setter", "overload"}:
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in _bare(node))


def test_rooms_import_what_the_table_allows() -> None:
    assert forbidden_imports(ROOT) == []


def test_no_file_is_too_long() -> None:
    assert too_long(ROOT) == []
    assert statistics.median(_lines(path) for path in modules(ROOT).values()) < MEDIAN_LINES


def test_public_names_have_docstrings() -> None:
    assert undocumented(ROOT) == []


@pytest.mark.parametrize("module", [name for name in modules(ROOT) if not name.endswith("__main__")])
def test_every_module_imports(module: str) -> None:
    importlib.import_module(module)


def test_contract_and_objectives_need_nothing_but_torch() -> None:
    code = """
import sys, mllm_align, mllm_align.contract, mllm_align.objectives.load
print(sorted({"transformers", "peft", "accelerate", "datasets", "PIL"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def build_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("mllm_align/objectives/mine.py", "import mllm_align.contract\nfrom mllm_align.objectives.dpo import DPO"),
        ("mllm_align/objectives/mine.py", "import math\nimport torch.nn.functional as F\nfrom . import dpo"),
        ("mllm_align/data/world/scenes.py", "from ..schema import Row\nfrom ...contract import View\nimport PIL"),
        ("mllm_align/vision/pooling.py", "from mllm_align import families, contract"),
        ("mllm_align/trainers/trainer.py", "from mllm_align.data import x\nfrom mllm_align import __version__"),
        ("mllm_align/recipe.py", "from mllm_align.trainers.trainer import AlignTrainer"),
        ("mllm_align/cli/x.py", "import mllm_align_eval.runner, mllm_align.demo"),
        ("mllm_align/demo/arms.py", "from mllm_align_eval import runner"),
        ("mllm_align/__init__.py", "def __getattr__(name):\n    from mllm_align.trainers import trainer"),
        (
            "mllm_align/__init__.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mllm_align.models import load_model",
        ),
        ("eval/runner.py", "from mllm_align.models import load_model\nfrom mllm_align_eval import report"),
    ],
)
def test_allowed_arrows_pass(tmp_path: Path, file: str, code: str) -> None:
    assert forbidden_imports(build_tree(tmp_path, {file: code})) == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("mllm_align/contract.py", "from mllm_align.data import schema"),
        ("mllm_align/contract.py", "import numpy"),
        ("mllm_align/objectives/mine.py", "import transformers"),
        ("mllm_align/objectives/mine.py", "from mllm_align.signals.measure import measure"),
        ("mllm_align/data/collator.py", "from ..families import family_of"),
        ("mllm_align/data/world/rows.py", "from ...objectives import dpo"),
        ("mllm_align/data/__init__.py", "from ..models import load_model"),
        ("mllm_align/families/llava.py", "def f():\n    from mllm_align.signals import packing"),
        (
            "mllm_align/families/llava.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mllm_align.data",
        ),
        ("mllm_align/signals/measure.py", "from mllm_align import models"),
        ("mllm_align/signals/measure.py", "from .. import models"),
        ("mllm_align/signals/measure.py", "from mllm_align import load_model"),
        ("mllm_align/models/loading.py", "import importlib\nimportlib.import_module('mllm_align.trainers')"),
        ("mllm_align/trainers/trainer.py", "from mllm_align.objectives.svco import SVCO"),
        ("mllm_align/trainers/trainer.py", "import mllm_align"),
        ("mllm_align/recipe.py", "from mllm_align.demo import arms"),
        ("mllm_align/recipe.py", "from mllm_align_eval import runner"),
        ("mllm_align/helpers.py", "import math"),
        ("mllm_align/__init__.py", "from mllm_align.trainers import trainer"),
        ("eval/runner.py", "from mllm_align.trainers import trainer"),
        ("eval/benchmarks/pope.py", "from mllm_align.demo import arms"),
    ],
)
def test_forbidden_arrows_are_found(tmp_path: Path, file: str, code: str) -> None:
    assert len(forbidden_imports(build_tree(tmp_path, {file: code}))) == 1


def test_long_files_and_missing_docstrings_are_found(tmp_path: Path) -> None:
    code = '''"""Module."""
class Public:
    """Yes."""
    def method(self): ...
    def _private(self): ...
    @property
    def size(self):
        """Yes."""
    @size.setter
    def size(self, value): ...
class Bare: ...
class _Hidden:
    def method(self): ...
async def bare(): ...
'''
    build_tree(tmp_path, {"mllm_align/a.py": code, "eval/b.py": "x = 1\n", "tests/c.py": "\n" * 401, "eval/d.py": ""})
    assert undocumented(tmp_path) == [
        "mllm_align.a.Public.method",
        "mllm_align.a.Bare",
        "mllm_align.a.bare",
        "mllm_align_eval.b",
    ]
    assert too_long(tmp_path) == ["tests/c.py: 401 lines"]
