"""The ``jamba`` command's very first step, also ``python -m jambacli``: import the rest, quietly if interrupted there."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit codes are those of ``jambacli.cli.main``."""
    try:
        from jambacli.startup import importing, own_process

        own_process()
        with importing():
            from jambacli.cli import main as run
    except KeyboardInterrupt:  # Ctrl-C before anything has begun is no error to show the insides of
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
