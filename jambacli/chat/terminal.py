"""The chat's prompt: a multi-line editor with history and completion, and the loop of messages, replies and commands."""

from __future__ import annotations

import base64
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jambacli import settings
from jambacli.chat.commands import Chat
from jambacli.chat.screen import Screen
from jambacli.errors import JambaError, UsageError
from jambacli.session.session_file import history_path, require_writable
from jambacli.units import counted, format_context

# Terminals take this much text for the clipboard, in bytes.
_MOST_COPIED = 74_000


def _can_keep(wanted: bool) -> bool:
    """Whether the history is wanted and can be written; where it cannot, the chat has said so."""
    if not wanted:
        return False
    try:
        require_writable()
        history_path()
    except JambaError:
        return False
    return True


def talk(
    chat: Chat,
    keep_history: bool,
    stats: bool = False,
    first: str | None = None,
    option: Callable[[str], str] = str,
    yes: bool = False,
) -> None:
    """The interactive chat: read and answer until /exit or Ctrl-D.

    ``stats``: show statistics after every reply. ``first``: a message that is sent at once. ``option``: the name under which
    errors mention an option. ``yes``: drop messages of a saved session without asking. Raises UsageError for settings that are
    not valid.
    """
    screen = Screen(option, theme=settings.value("theme") or "auto", pager=_pager())
    ask = _prompt(chat, screen, keep_history)
    screen.note(_greeting(chat, screen.console.width))
    if chat.messages:
        screen.note(chat.continuing)
        _show_last(chat, screen)
    waiting = first
    while True:
        try:
            if waiting is None:
                text = _typed(chat, ask)
            else:
                screen.console.print(f">>> {waiting}", markup=False)
                text = None
        except KeyboardInterrupt:  # the line is gone; Ctrl-D and /exit leave
            continue
        except EOFError:
            break
        except JambaError as error:
            screen.error(error)
            continue
        try:
            if text is not None and not yes and (gone := chat.would_drop(text)) and not _agreed(gone, screen):
                continue
            outcome = chat.handle(text) if text is not None else chat.say(waiting or "")
            waiting = None
            screen.notes(outcome.lines)
            if outcome.copied is not None:
                screen.note(_copy(outcome.copied, screen))
            if outcome.reply is not None:
                screen.reply(outcome.reply, chat.show_thoughts, chat.stop, lambda: chat.stopped)
                for line in closing_lines(chat):
                    screen.note(line)
                screen.note(f"[{figures(chat)}]" if stats else "")
            if outcome.leave:
                break
        except JambaError as error:
            waiting = None
            screen.error(error)
    chat.close()  # the first turn may still be on its way to the disk
    if chat.messages and (name := chat.session.name) and chat.saved:
        screen.note(f"[saved as {name}: jamba chat --session {name}]")


def _pager() -> str | None:
    """The command that shows long texts, None for none."""
    command = settings.value("pager") or os.environ.get("PAGER", "").strip()
    return None if command.lower() in ("", "off") else command


def _agreed(gone: int, screen: Screen) -> bool:
    """Whether messages may be dropped."""
    try:
        screen.console.print(f"drop {counted(gone, 'message')} of this saved chat? [y/N] ", end="", markup=False)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        screen.console.print()
        return False


def _prompt(chat: Chat, screen: Screen, keep_history: bool) -> Callable[..., str]:
    """Reads a message: ``ask(prompt, default)``. Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.patch_stdout import patch_stdout

    from jambacli.chat.completion import completer

    keys = KeyBindings()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _newline(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _send(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":  # a backslash at the end of a line continues the message
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("c-g")
    def _edit(event: Any) -> None:
        event.current_buffer.open_in_editor()

    # The history is as private as the sessions.
    prompt: PromptSession[str] = PromptSession(
        history=FileHistory(str(history_path())) if _can_keep(keep_history) else InMemoryHistory(),
        completer=completer(chat),
        complete_while_typing=False,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="... ",
        tempfile_suffix=".md",
    )

    def ask(what: str, default: str = "") -> str:
        with patch_stdout():
            return prompt.prompt(what, default=default, bottom_toolbar=lambda: status_line(chat, screen.console.width))

    return ask


def _typed(chat: Chat, ask: Callable[..., str]) -> str:
    """The next input. /edit without a text offers the message itself to be changed; /e opens the editor."""
    text = ask(">>> ")
    word, _, rest = text.strip().partition(" ")
    if word == "/e":
        return ask(">>> ", _in_editor(rest))
    number = chat.to_edit(text)
    return text if number is None else f"/edit {number} {ask('edit ', chat.message(number))}"


def _in_editor(text: str) -> str:
    """``text`` as it is after the user's editor was closed. Raises UsageError if that does not run."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, ("nano", "vi")), "")
    if not editor:
        raise UsageError("there is no editor; set the environment variable EDITOR")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        try:
            code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
        except (OSError, ValueError) as error:
            raise UsageError(f"the editor {editor!r} does not run: {error}") from error
        if code:
            raise UsageError(f"the editor {editor!r} ended with exit code {code}; nothing is sent")
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")


def _copy(text: str, screen: Screen) -> str:
    """Copy to the clipboard: of the terminal (OSC 52, also through ssh), and with the desktop's program where there is one.
    Returns what to tell."""
    data = text.encode("utf-8", "replace")
    programs = (
        (["wl-copy"], "WAYLAND_DISPLAY"),
        (["xclip", "-selection", "clipboard"], "DISPLAY"),
        (["pbcopy"], ""),
    )
    done = False
    for command, needed in programs:
        if shutil.which(command[0]) and (not needed or os.environ.get(needed)):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                done = subprocess.run(command, input=data, check=False, timeout=5, **quiet).returncode == 0  # type: ignore[call-overload]
                break
    encoded = base64.b64encode(data)
    if len(encoded) <= _MOST_COPIED:
        screen.console.file.write(f"\x1b]52;c;{encoded.decode()}\x07")
        screen.console.file.flush()
    elif not done:
        raise UsageError(
            "the reply is too long for the terminal's clipboard; /save-as FILE.md writes the chat to a file"
        )
    return f"copied: {counted(len(text), 'character')}"


def _greeting(chat: Chat, width: int) -> str:
    """The first line: the model, and as many hints as fit."""
    hints = ["/help lists the commands", "Alt-Enter inserts a new line", "Ctrl-D exits"]
    while len(line := f"{chat.model.name} - {', '.join(hints)}") > width and len(hints) > 1:
        del hints[1]
    return line


def _show_last(chat: Chat, screen: Screen) -> None:
    """The last exchange, as it was shown."""
    question, answer = chat.last_exchange
    lines = question.split("\n")
    screen.console.print("\n".join([f">>> {lines[0]}", *(f"... {line}" for line in lines[1:])]), markup=False)
    screen.markdown(answer)
    screen.note("")


def closing_lines(chat: Chat) -> list[str]:
    """The lines under a reply: the places it cites, or a remark that it cites none; and why it was cut off, if it was."""
    places, remark, ending = chat.attachments.places, chat.attachments.remark, ending_line(chat)
    lines = ["Sources:", *(f"- {place}" for place in places)] if places else []
    if remark and chat.session.stats.finish == "stop":
        lines = [f"[{remark}]"]
    return [*lines, *([ending] if ending else [])]


def ending_line(chat: Chat) -> str:
    """Why the last reply was cut off; "" if the model ended it."""
    s, session = chat.session.stats, chat.session
    if s.finish == "length":
        return f"[cut off after {s.generated_tokens:,} tokens; /continue resumes it]"
    if s.finish == "context":
        return f"[the context of {session.sequence.ctx:,} tokens is full; /undo, /clear or chat --overflow make room]"
    if s.finish == "stop" and not s.generated_tokens:
        return "[the model has nothing to add]"
    return ""


def figures(chat: Chat) -> str:
    """The last reply's tokens and tokens per second."""
    return ", ".join(_figures(chat))


def _figures(chat: Chat) -> list[str]:
    s = chat.session.stats
    parts = [f"{s.reused_tokens:,} reused", f"{s.prefilled_tokens:,} read", f"{s.generated_tokens:,} written"]
    return [*parts, f"{s.decoded_tokens / s.decode_seconds:.1f} tokens/s"] if s.decode_seconds else parts


def status_line(chat: Chat, width: int = 200) -> str:
    """The line under the prompt, of at most ``width`` characters: the session, the context used, the last reply's statistics.

    If it does not fit, the least important parts are left out first.
    """
    session = chat.session
    name, numbers = session.name or "not stored", _figures(chat) if session.stats.prompt_tokens else []
    context = f"context {chat.used:,} of {format_context(session.sequence.ctx)}"
    while True:
        last = [f"last: {', '.join(numbers)}"] if numbers else []
        for parts in ([name, context, *last], [context, *last]):
            if len(line := " | ".join(parts)) <= width:
                return line
        if not numbers:
            return context[:width]
        numbers.pop()
