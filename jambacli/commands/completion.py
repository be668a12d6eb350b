"""``jamba completion``: words completed with Tab in bash, zsh and fish."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jambacli import ui
from jambacli.errors import JambaError, UsageError
from jambacli.files import atomic_write, path_of

_MARK = "# completion of jamba"

# Each asks `jamba __complete` (see commands.complete). What it prints is only ever data: no eval, and everything quoted.
_BASH = r"""# Completion of jamba in bash; written by: jamba completion bash
_jamba() {
    local jamba=${1/#\~\//$HOME/} word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("$jamba" __complete bash "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
}
# Where it gives no word, bash completes the names of files.
complete -o bashdefault -o default -F _jamba jamba
"""
_ZSH = r"""#compdef jamba
# Completion of jamba in zsh; written by: jamba completion zsh
_jamba() {
    local jamba=${(Q)words[1]} line head
    local -a lines values shown
    jamba=${jamba/#\~\//$HOME/}
    lines=("${(@f)$("$jamba" __complete zsh "${(@Q)words[2,CURRENT-1]}" -- "${(Q)PREFIX}" 2>/dev/null)}")
    for line in "${(@)lines[2,-1]}"; do
        values+=("${line%%$'\t'*}")
        shown+=("${line%%$'\t'*}${${line#*$'\t'}:+  -- ${line#*$'\t'}}")
    done
    if (( $#values )); then
        compadd -l -d shown -a values
    elif [[ $lines[1] == files$'\t'* ]]; then
        head=${lines[1]#*$'\t'}
        [[ -n $head ]] && compset -P "${(b)head}"
        _files
    fi
}
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _jamba "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _jamba jamba
fi
"""
_FISH = r"""# Completion of jamba in fish; written by: jamba completion fish
function __jamba_complete
    set -l words (commandline -opc)
    set -l raw (commandline -ct)
    set -l current (string unescape -- "$raw"; or string replace -r "^[\"']" '' -- "$raw")
    set -l jamba (string replace -r '^~/' "$HOME/" -- $words[1])
    set -e words[1]
    set -l lines (command $jamba __complete fish $words -- "$current" 2>/dev/null)
    if string match -q 'files*' -- $lines[1]
        set -l head (string split -m 1 \t -- $lines[1])[2]
        set -l rest (string sub -s (math (string length -- "$head") + 1) -- "$current")
        set -l found (string replace -r '^~/' "$HOME/" -- "$rest")*
        for path in $found
            test -d "$path"; and set path "$path/"
            string match -q '~/*' -- "$rest"; and set path (string replace -- "$HOME/" '~/' "$path")
            echo -- "$head$path"
        end
    end
    set -e lines[1]
    for line in $lines
        echo -- $line
    end
end
complete -c jamba -e
complete -c jamba -f -a '(__jamba_complete)'
"""


class Shell(StrEnum):
    """A shell that can be completed in."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


SCRIPTS = {Shell.bash: _BASH, Shell.zsh: _ZSH, Shell.fish: _FISH}


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="The shell.", show_choices=False)],
    install: Annotated[bool, typer.Option("--install", help="Install it for this user.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what --install made.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print a script that completes commands, options, models, sessions, presets, types and files in a shell."""
    if install and remove:
        raise UsageError("exclude each other", field=("install", "remove"))
    if not install and not remove:
        if as_json:
            print(json.dumps({"shell": shell.value, "script": SCRIPTS[shell]}))
        else:
            print(SCRIPTS[shell], end="")
        return
    script, start = _places(shell)
    try:
        if install:
            script.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(script) as file:
                file.write(SCRIPTS[shell].encode())
            if start is not None:
                _add_line(start, f"[ -r {_quoted(script)} ] && . {_quoted(script)}  {_MARK}")
            where = f"{script}" if start is None else f"{script}, which {start} reads"
            ui.note(f"written {where}; it holds in every new {shell}")
        else:
            script.unlink(missing_ok=True)
            if start is not None:
                _add_line(start, None)
            ui.note(f"removed {script}")
        if as_json:
            read_by = None if start is None else str(start)
            print(json.dumps({"shell": shell.value, "file": str(script), "installed": install, "read_by": read_by}))
    except OSError as error:
        raise JambaError(f"{error.filename or script}: {error.strerror or error}") from error


def _places(shell: Shell) -> tuple[Path, Path | None]:
    """Where the script goes, and the file that must read it, None where the shell finds it by itself.

    Raises JambaError for a user without a home directory.
    """
    try:
        home = Path.home()
    except RuntimeError as error:
        raise JambaError("this user has no home directory; save the script yourself") from error

    def folder(variable: str, default: str) -> Path:
        given = os.environ.get(variable, "")
        return path_of(given) if given.startswith("/") else home / default

    data = folder("XDG_DATA_HOME", ".local/share")
    if shell is Shell.fish:
        return folder("XDG_CONFIG_HOME", ".config") / "fish" / "completions" / "jamba.fish", None
    if shell is Shell.bash:
        return data / "jamba" / "completion.bash", home / ".bashrc"
    return data / "jamba" / "completion.zsh", folder("ZDOTDIR", "") / ".zshrc"


def _add_line(path: Path, line: str | None) -> None:
    """Replace the line of this program in a shell's start file, or with None remove it; all others stay."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        text = b""
    kept = [one for one in text.splitlines(keepends=True) if not one.rstrip().endswith(_MARK.encode())]
    if line is not None:
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
        kept.append(f"{line}\n".encode())
    if b"".join(kept) != text:
        # Behind a link, if it is one: start files are often kept elsewhere.
        with atomic_write(path) as file:
            if path.exists():
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(b"".join(kept))


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
