"""The documentation is true: the command reference is current, and the README's commands exist."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.repository import REPO
from tools import cli_docs


def test_the_command_reference_is_current() -> None:
    assert (REPO / "docs" / "cli.md").read_text(encoding="utf-8") == cli_docs.render()


def test_every_jamba_command_in_the_readme_parses() -> None:
    import typer.main

    from jambacli.cli import make_app

    commands = typer.main.get_command(make_app()).commands
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"(?:^|\| )jamba (\S+)(.*?)(?:  +#.*)?$", readme, re.MULTILINE)
    assert len(lines) >= 12
    for name, rest in lines:
        if name.startswith("--"):
            continue
        command = commands[name]
        if getattr(command, "commands", None):
            command = command.commands[rest.split()[0]]
        known = {o for p in command.params for o in [*p.opts, *p.secondary_opts]}
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest):
            assert option in known, f"README uses {option}, which jamba {name} does not have"


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [REPO / "README.md", *(REPO / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_help_and_listings_do_not_import_torch() -> None:
    for arguments in (["--help"], ["sessions", "list"], ["cache", "stats"]):
        code = f"import sys; sys.argv = ['jamba', *{arguments!r}]\nfrom jambacli.cli import main\n"
        code += (
            "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules, 'torch was imported'\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
