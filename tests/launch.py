"""Python scripts in processes of their own, forked from one that has imported what they need.

To import torch, transformers and the trainers takes a process some seconds, most of what a small test in several
processes would cost; the server that they are forked from does it once. A script runs as `python SCRIPT ...` would run
it: as `__main__`, with arguments, environment and folder of its own.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing as mp
import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

# By the server, which runs nothing; those it does not find, the script imports where it needs them.
PRELOADED = (
    "transformers",
    "peft",
    "bitsandbytes",
    "trl",
    "sentence_transformers",
    "faiss",
    "mllm_align.trainers",
    "mllm_align.encoding",
    "mllm_align_eval.run",
)


def serve() -> None:
    """Starts the server, where there is none: from now on whoever asks for `forkserver` processes has them from it."""
    mp.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
    ensure_running()


class Script:
    """`python ARGV...` in a process of its own, which has begun.

    Args:
        argv: A script and its arguments, or `-m`, a module and its arguments.
        environment: Beside and before what this process has.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        serve()
        self._log = tempfile.NamedTemporaryFile(prefix="script", suffix=".log")  # noqa: SIM115, closed with the script
        importable = os.pathsep.join(path for path in sys.path if path)
        given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": importable, **(environment or {})}
        # Scripts may start processes themselves, which daemons may not.
        self._process = mp.get_context("forkserver").Process(
            target=_run, args=(list(argv), given, self._log.name), daemon=False
        )
        self._process.start()
        atexit.register(self.kill)  # before all processes are waited for

    def wait(self, seconds: float | None = None) -> int | None:
        """How it ended, less than 0 for a signal; None where it still runs after so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.join()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    @property
    def said(self) -> str:
        """What it has written to its standard output and error."""
        return Path(self._log.name).read_text(errors="replace")


def _run(argv: list[str], environment: dict[str, str], log: str) -> None:
    _begin(environment, log)
    code: Any = 0
    try:
        if argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            sys.path.insert(0, os.path.dirname(os.path.abspath(argv[0])))
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    # Where the interpreter is taken down, threads of gloo now and then end the process with an abort (1 of 100), after
    # all that is tested is done.
    os._exit(code if isinstance(code, int) else int(code is not None))


def _begin(environment: dict[str, str], log: str) -> None:
    import torch

    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
