"""The command line, `mllm-align`: demo, train, eval run, report, inspect, encode, recipes, export, data ...,
tower ..., world train-base."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from mllm_align.cli import (
    check,
    clip_blind,
    counterfactual,
    embed,
    encode,
    evaluation,
    inspect,
    mine_negatives,
    negatives,
    ocr,
    regions,
    reject,
    retrieve,
    tower,
    training,
    x_former,
)
from mllm_align.cli.commands import DEBUG_HELP, print_error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 2 after an error that the user can mend.

    An evaluation ends with 1 where questions could not be answered, with 3 where answers were lost (--fail-on-lost).
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
    except SystemExit as stop:
        # What rich makes of the same, after it has turned standard output away.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        print_error(error)
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
    inspect.add(commands)
    encode.add(commands)
    tower.add(commands)
    x_former.add(commands)
    data = commands.add_parser("data", help="look at data and make it").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for command in (
        check,
        clip_blind,
        counterfactual,
        embed,
        mine_negatives,
        negatives,
        ocr,
        regions,
        retrieve,
        reject,
    ):
        command.add(data)
    return parser
