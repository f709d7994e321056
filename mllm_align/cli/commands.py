"""How a command is declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

DEBUG_HELP = "show the traceback of an error"


def print_error(error: BaseException) -> None:
    """The error as one line on the standard error stream."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)


def add_command(commands: Any, name: str, run: Callable[[Any], None], text: str) -> argparse.ArgumentParser:
    """A command that calls `run` with what was parsed; its own arguments are still to be added.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
        name: One word.
        run: Is given the parsed arguments. Heavy imports belong inside it, so that --help answers at once.
        text: What it does, for the help: lower case, without a full stop.
    """
    parser = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    # Left out unless given, so that it does not undo the same flag before the command.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG_HELP)
    parser.set_defaults(command=run)
    return parser


def device(text: str) -> str:
    """A device that is there: the `type` of an argument.

    Raises:
        argparse.ArgumentTypeError: If there is none of that name, or it cannot be used here.
    """
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        usable = "cpu, or cuda:0" if torch.cuda.is_available() else "cpu"
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used ({reason}): give {usable}") from None
    return text
