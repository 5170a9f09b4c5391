"""``python -m msr_cuda <command>``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ._info import format_info, info
from .swap import _command as swap_command
from .train import _command as train_command
from .train import sealing


def _info_command(arguments: argparse.Namespace) -> int:
    facts = info()
    print(json.dumps(facts, indent=2) if arguments.json else format_info(facts))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command, returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m msr_cuda", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info_parser = commands.add_parser(
        "info", help="versions, how the extension was built, which kernels are there"
    )
    info_parser.add_argument("--json", action="store_true", help="for programs")
    info_parser.set_defaults(run=_info_command)
    swap_command.add_parser(commands)
    train_command.add_parser(commands)
    sealing.add_parsers(commands)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
