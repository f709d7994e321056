"""One benchmark per file: its questions as items, its readings, its metrics. A further one is a row of the table."""

from mllm_align_eval.benchmark import Benchmark
from mllm_align_eval.benchmarks.mmvp import MMVP
from mllm_align_eval.benchmarks.pope import POPE
from mllm_align_eval.benchmarks.world import validation_items, world_items

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (POPE, MMVP)}

__all__ = ["BENCHMARKS", "validation_items", "world_items"]
