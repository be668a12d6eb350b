"""Entry point of ``jamba`` and ``python -m jambacli``: import the rest, without a traceback on Ctrl-C."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit codes are those of ``jambacli.cli.main``."""
    if sys.argv[1:2] == ["__complete"]:  # a Tab in a shell: nothing slow is imported
        from jambacli.commands.complete import main as complete

        return complete(sys.argv[2:])
    try:
        from jambacli.startup import end_process, importing, own_process

        own_process()
        with importing():
            from jambacli.cli import main as run
    except KeyboardInterrupt:  # Ctrl-C during the imports needs no traceback
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    try:
        run()
    finally:
        end_process()


if __name__ == "__main__":
    main()
