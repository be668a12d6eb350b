"""``python -m jambacli`` is the ``jamba`` command."""

from jambacli.cli import main

main()
