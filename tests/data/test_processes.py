"""Processes on a CPU find each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_align.data.processes import processes
from runs import start_ranks, wait_for_ranks

TELLING = """
import sys
from pathlib import Path
from mllm_align.data.processes import processes
state = processes()
Path(sys.argv[1]).joinpath(f"of{state.process_index}").write_text(str(state.num_processes))
state.wait_for_everyone()
"""


def test_alone_there_is_one() -> None:
    assert (processes().num_processes, processes().process_index) == (1, 0)


@pytest.mark.ddp
def test_two_know_each_other(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(TELLING)
    wait_for_ranks(start_ranks(str(script), tmp_path))
    assert [tmp_path.joinpath(f"of{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
