"""Runs `jamba chat` in a real terminal (tmux), types into it, and writes the screens to docs/chat.md.

    python -m tools.capture_chat [MODEL]

Without MODEL the demo model answers. Needs tmux.
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
_REPORTS = """Report 1 on herons: Leila Haddad counted 42 herons at Lake Tuz on Sunday. The wind was cold.
Report 2 on otters: Tomas Hedlin saw 7 otters at Cape Arda on Monday.
Report 3 on cranes: Mira Belan photographed 15 cranes at Mount Sirin on Friday. The sky was clear.
"""
_WAIT = 90.0


class Terminal:
    """A tmux session with its own server socket."""

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
        """Press keys, by tmux's names for them."""
        self._run("send-keys", *keys)

    def screen(self) -> str:
        """The text on the screen."""
        return self._run("capture-pane", "-p").rstrip("\n")

    def wait(self, pattern: str, seconds: float = _WAIT) -> str:
        """Wait until the screen shows the pattern and return it. Raises SystemExit with the screen after ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if re.search(pattern, shown := self.screen(), re.MULTILINE):
                return shown
            time.sleep(0.01)
        sys.exit(f"the terminal never showed {pattern!r}:\n{self.screen()}")

    def ready(self) -> str:
        """Wait for the prompt, and after a reply for its figures in the status line; returns the screen."""
        time.sleep(0.05)
        return self.wait(r"^>>> *$(?s:.*)context [\d,]+ of")

    def say(self, text: str) -> str:
        """Type a message and wait for the whole reply; returns the screen."""
        self.type(text)
        time.sleep(0.5)
        return self.ready()

    def clear(self) -> None:
        """Clear the screen."""
        self._run("send-keys", "-R")
        self._run("clear-history")
        self.press("C-l")
        time.sleep(0.3)

    def close(self) -> None:
        """End the tmux server."""
        self._run("kill-server")

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, check=True).stdout


def capture(model: str) -> list[tuple[str, str]]:
    """Captions and screens of a chat, an edit, a branch, a stopped reply, and a session resumed in a new process."""
    shots: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAMBA_HOME"] = str(Path(folder) / "home")
        (Path(folder) / "reports.txt").write_text(_REPORTS, encoding="utf-8")
        terminal = Terminal(Path(folder))
        command = f"jamba chat {model} --session notes".replace("  ", " ")
        try:
            terminal.type(f"cd {shlex.quote(folder)}")
            terminal.clear()
            terminal.type(command)
            terminal.ready()
            terminal.say("Who are you?")
            terminal.type("/file reports.txt")
            terminal.ready()
            terminal.type("Report 4 on geese: Rosa Kist saw 9 geese at Fort Bel.", "Escape", "Enter")
            terminal.say("Who counted the herons?")
            shots.append(
                ("Two turns, a file, and a message of two lines (Alt-Enter starts a new line)", terminal.ready())
            )
            terminal.clear()
            terminal.type("/edit")
            terminal.wait("^edit ")
            terminal.press("C-a", "C-k", "BSpace", "C-a", "C-k")
            terminal.say("Where did Tomas Hedlin see the otters?")
            shots.append(("/edit shows the last message; here it is replaced", terminal.ready()))
            terminal.clear()
            terminal.type("/branch other")
            terminal.ready()
            terminal.say("Summarize the reports.")
            terminal.type("/branches")
            terminal.ready()
            terminal.type("/load notes")
            terminal.ready()
            terminal.say("/regenerate")
            terminal.type("/stats")
            shots.append(("A branch continues under its own name; the original stays as it was", terminal.ready()))
            terminal.clear()
            terminal.type("/exit")
            terminal.wait(r"^\$ *$")
            terminal.clear()
            terminal.type(command)
            terminal.ready()
            terminal.say("Who counted the herons?")
            shots.append(("The same session in a new process: only the new message is computed", terminal.ready()))
            terminal.clear()
            terminal.type("/undo")
            terminal.ready()
            terminal.type("Summarize the reports.")
            terminal.wait(r"^Here is a summary")
            terminal.press("C-c")
            shots.append(("/undo, and a reply stopped with Ctrl-C: the text so far is kept", terminal.ready()))
            terminal.clear()
            terminal.type("/help")
            shots.append(("The commands", terminal.ready()))
        finally:
            terminal.close()
    return shots


def page(shots: list[tuple[str, str]]) -> str:
    """The screens as a Markdown page."""
    parts = [
        "# A chat in the terminal",
        "",
        "Captured from tmux by `python -m tools.capture_chat`, with the demo model.",
    ]
    for caption, screen in shots:
        parts += ["", f"## {caption}", "", "```text", *(line.rstrip() for line in screen.split("\n")), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    text = page(capture(shlex.quote(sys.argv[1]) if len(sys.argv) > 1 else ""))
    (Path(__file__).resolve().parents[1] / "docs" / "chat.md").write_text(text, encoding="utf-8")
    print(text)
