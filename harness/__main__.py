"""The suite's commands beside training: python -m harness COMMAND ..."""

from __future__ import annotations

import importlib
import os
import sys

COMMANDS = {
    "acceptance": "accept a GPU: acceptance [BENCHMARK...]",
    "check": "judge logs by the rules: check LOG...",
    "docker": "build an image and train in it: docker BENCHMARK|all",
    "plot": "draw a run's quality over time: plot FOLDER",
    "report": "what all runs say, in tables and a page: report [RESULTS...]",
}


def main(arguments: list[str]) -> int:
    """Hand over to a command, whose module only then is imported; returns the exit status."""
    if arguments in (["-h"], ["--help"]):
        print("usage: python -m harness COMMAND ...\n")
        for name, text in COMMANDS.items():
            print(f"  {name:<10} {text}")
        print("\nCOMMAND --help says more.")
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        wrong = f"there is no command {arguments[0]!a}" if arguments else "no command is given"
        print(f"error: {wrong}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"harness.{arguments[0]}")
    return int(command.main(arguments[1:]))


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
