"""Names the packages; everything else is in pyproject.toml.

`eval/` and `recipes/` install under names of their own, which package discovery alone cannot do.
"""

from setuptools import find_packages, setup

evaluation = [f"mllm_align_eval.{name}" for name in find_packages("eval")]
setup(
    packages=[*find_packages(include=["mllm_align*"]), "mllm_align_eval", *evaluation, "mllm_align_recipes"],
    package_dir={"mllm_align_eval": "eval", "mllm_align_recipes": "recipes"},
)
