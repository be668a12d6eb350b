"""Drives `jamba chat` in a real terminal (tmux) and writes what a person sees to docs/chat.md; knows only keys and screens.

    python docs/capture_chat.py [MODEL]

Without MODEL the model that comes with the program answers. Needs tmux.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, HEIGHT = 96, 30
_WAIT = 90.0


class Terminal:
    """A tmux session of its own, with its own server socket."""

    def __init__(self, folder: Path) -> None:
        self._tmux = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
        self._run("new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), "env PS1='$ ' bash --norc --noprofile")
        self.type(f'jamba() {{ {shlex.quote(sys.executable)} -m jambacli "$@"; }}')
        self.clear()

    def type(self, text: str, *keys: str) -> None:
        """Type text, then press keys (Enter by default)."""
        self._run("send-keys", "-l", text)
        self._run("send-keys", *(keys or ("Enter",)))

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names."""
        self._run("send-keys", *keys)

    def screen(self) -> str:
        """What stands on the screen."""
        return self._run("capture-pane", "-p").rstrip("\n")

    def wait(self, pattern: str, seconds: float = _WAIT) -> str:
        """The screen once it shows the pattern; SystemExit with the screen where it never does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if re.search(pattern, shown := self.screen(), re.MULTILINE):
                return shown
            time.sleep(0.05)
        sys.exit(f"the terminal never showed {pattern!r}:\n{self.screen()}")

    def ready(self) -> str:
        """The screen when the prompt is back; after a reply, with its figures in the status line."""
        time.sleep(0.3)
        return self.wait(r"^>>> *$(?s:.*)context [\d,]+ of")

    def clear(self) -> None:
        """An empty screen."""
        self._run("send-keys", "-R")
        self._run("clear-history")
        self.press("C-l")
        time.sleep(0.3)

    def close(self) -> None:
        """End it."""
        self._run("kill-server")

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, check=True).stdout


def capture(model: str) -> list[tuple[str, str]]:
    """Captions and screens of a chat, an edit, a branch, a stopped reply and a resume in a new process."""
    shots: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAMBA_HOME"] = str(Path(folder) / "home")
        terminal = Terminal(Path(folder))
        command = f"jamba chat {model} --session notes --temp 0.7 --seed 7 -n 48".replace("  ", " ")
        try:
            terminal.type(command)
            terminal.ready()
            terminal.type("Hello! Who are you?")
            terminal.ready()
            terminal.type("Tell me about the lake,", "Escape", "Enter")
            terminal.type("and about the herons.")
            shots.append(("A chat of two turns; Alt-Enter began a new line in the second message.", terminal.ready()))
            terminal.clear()
            terminal.type("/edit Tell me about the sea.")
            terminal.ready()
            terminal.type("/regenerate")
            shots.append(("The last message said differently, and another reply to it.", terminal.ready()))
            terminal.clear()
            terminal.type("/branch other")
            terminal.ready()
            terminal.type("What else is there?")
            terminal.ready()
            terminal.type("/branches")
            terminal.ready()
            terminal.type("/load notes")
            terminal.ready()
            terminal.type("/stats")
            shots.append(("A branch goes on under a name of its own; the first stays as it was.", terminal.ready()))
            terminal.clear()
            terminal.type("/exit")
            terminal.wait(r"^\$ *$")
            terminal.clear()
            terminal.type(command)
            terminal.ready()
            terminal.type("Where were we?")
            shots.append(("The same session in a new process: only the new message is read.", terminal.ready()))
            terminal.clear()
            terminal.type("/undo")
            terminal.ready()
            terminal.type("/help")
            shots.append(("What can be done.", terminal.ready()))
            terminal.type("/exit")
            terminal.wait(r"^\$ *$")
            terminal.clear()
            terminal.type(f"jamba chat {model} --session notes --temp 0.7 --seed 7 -n 4000".replace("  ", " "))
            terminal.ready()
            terminal.type("Tell me everything.")
            terminal.wait(r"Tell me everything\.\n(?!.*context)\S.{20,}")
            terminal.press("C-c")
            shots.append(("Ctrl-C stops a reply and keeps what was said.", terminal.ready()))
        finally:
            terminal.close()
    return shots


def page(shots: list[tuple[str, str]]) -> str:
    """The screens as a Markdown page."""
    parts = [
        "# A chat in the terminal",
        "",
        "Captured from tmux by `python docs/capture_chat.py`, with the model that comes with the program.",
    ]
    for caption, screen in shots:
        parts += ["", f"## {caption}", "", "```text", *(line.rstrip() for line in screen.split("\n")), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    text = page(capture(shlex.quote(sys.argv[1]) if len(sys.argv) > 1 else ""))
    (Path(__file__).parent / "chat.md").write_text(text, encoding="utf-8")
    print(text)
