"""The command line. `commands` holds one short function a command, `display` what they print."""

from __future__ import annotations

import json
import os
import sys
import warnings


def main() -> None:
    """Run `tunewright`. A Problem becomes one sentence on standard error and its exit code, never a traceback."""
    from tunewright.cli.commands import app
    from tunewright.errors import Problem

    # Other people's deprecations and load reports are not the user's to mend, and would tear the live display.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|tensorboard|huggingface_hub)(\.|$)")
    try:
        app(prog_name="tunewright")
    except Problem as problem:
        print_problem(problem)
        sys.exit(problem.exit_code)


def print_problem(problem: BaseException) -> None:
    """One sentence, or one JSON object where the command was asked for JSON."""
    from tunewright.cli.display import printable
    from tunewright.errors import BadData, Problem

    assert isinstance(problem, Problem)
    if "--json" in sys.argv:
        record = {"message": problem.message, "code": problem.code, "param": problem.param}
        print(json.dumps({"error": record}), flush=True)
        return
    print(f"tunewright: {printable(problem.message)}", file=sys.stderr)
    if isinstance(problem, BadData) and len(problem.faults) > 1:
        print(f"\nAll of it: tunewright check {printable(problem.param or '')}", file=sys.stderr)
