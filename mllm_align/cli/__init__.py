"""The command line, `mllm-align`: demo, train, eval run, report, recipes, export, data ..., world train-base."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from mllm_align.cli import check, counterfactual, embed, evaluation, reject, retrieve, training
from mllm_align.cli.commands import DEBUG_HELP


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 2 after an error that the user can mend.

    As a shell has it, 130 says that it was interrupted and 141 that who read its output stopped reading.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # It warns of an optional kernel at every start on some CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads has enough, as `head`; the interpreter must not try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; what was saved is kept: give the command again (a training run with --resume)", file=sys.stderr
        )
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mllm-align", description="Make a vision-language model look at the image.")
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training.add(commands)
    evaluation.add(commands)
    data = commands.add_parser("data", help="look at data and make it").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for command in (check, counterfactual, embed, retrieve, reject):
        command.add(data)
    return parser
