"""The commands of a chat: regenerate, edit, undo, branch, attach, load, set ..."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jambacli.chat.attachments import Attachments
from jambacli.chat.chat_session import ChatSession, Outcome, no_message, short
from jambacli.chat.settings import SETTINGS, changed, shown
from jambacli.documents.given_texts import text_or_file
from jambacli.documents.load import read_documents
from jambacli.documents.pages import entries_of
from jambacli.documents.paths import expand, typed_paths
from jambacli.errors import JambaError, UsageError
from jambacli.files import atomic_write, path_of
from jambacli.interrupts import Stop
from jambacli.session import session_file
from jambacli.session.conversation import Turn
from jambacli.session.options import SessionOptions
from jambacli.session.other_model import turns_for_another_model
from jambacli.session.session_lock import made_with
from jambacli.session.thinking import can_think
from jambacli.session.transcript import to_markdown
from jambacli.units import counted, format_context

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel

HELP = {
    "/help": "show this list",
    "/regenerate": "generate another reply to the last message",
    "/edit [N] TEXT": "change the last (or Nth) message",
    "/undo": "undo the last message and its reply, an /edit or /clear",
    "/continue": "resume a reply that was cut off",
    "/history [N]": "the (last N) messages and their numbers",
    "/e [TEXT]": "write the message in your editor (also Ctrl-G)",
    "/branch NAME": "continue under another name; the current chat is unchanged",
    "/branches": "list the branches of this chat",
    "/system [TEXT]": "show or set the system message; @FILE reads it, none removes it",
    "/file PATH ...": "attach files to the next message; none takes them back",
    "/set [NAME VALUE]": "list or set the sampling options",
    "/show": "the model, system message, sampling, context and files",
    "/model NAME": "go on with another model",
    "/save NAME": "save this chat as NAME",
    "/save-as FILE.md": "write this chat to a Markdown file",
    "/copy": "copy the last reply to the clipboard",
    "/load NAME": "resume another chat",
    "/think [on|off]": "let the model think or not; alone: show or hide its thoughts",
    "/stats": "statistics of the last reply and the context",
    "/clear": "start over with the same system message",
    "/exit": "exit (or press Ctrl-D)",
}


class Chat(ChatSession):
    """A session and the commands on it."""

    def handle(self, text: str) -> Outcome:
        """Handle one input: a message or a command. When it raises JambaError, nothing has changed."""
        word, _, rest = text.strip().partition(" ")
        if not text.strip():
            return Outcome()
        if not word.startswith("/") or "/" in word[1:]:
            return self.say(text)
        actions: dict[str, Callable[[str], Outcome]] = {
            "/help": self._help,
            "/regenerate": self._regenerate,
            "/edit": self._edit,
            "/undo": self._undo,
            "/continue": self._continue,
            "/history": self._history,
            "/branch": self._branch,
            "/branches": self._branches,
            "/system": self._system,
            "/file": self._file,
            "/set": self._set,
            "/show": self._show,
            "/model": self._model,
            "/save": self._save,
            "/save-as": self._save_as,
            "/copy": self._copy,
            "/load": self._load,
            "/think": self._think,
            "/stats": self._stats,
            "/clear": self._clear,
            "/exit": lambda _: Outcome(leave=True),
            "/quit": lambda _: Outcome(leave=True),
        }
        action = actions.get(word)
        if action is None:
            near = difflib.get_close_matches(word, actions, 1, 0.6)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"there is no command {word}; {hint}/help lists the commands (begin a message with a space to send it)"
            )
        self._stopping = Stop()
        return action(rest.strip())

    def _help(self, _: str) -> Outcome:
        return Outcome(lines=[f"{name:<17} {what}" for name, what in HELP.items()])

    def _regenerate(self, _: str) -> Outcome:
        if not self._asked():
            raise UsageError("there is no message to answer yet")
        seed = self._generation.seed
        if seed is not None:  # the same seed would give the same reply
            self._generation = replace(self._generation, seed=seed + 1)
        return Outcome(reply=self._reply(self._answer(list(self.session.conversation.turns))))

    def would_drop(self, text: str) -> int:
        """How many messages of a saved chat an input drops besides the one that it changes."""
        word, _, rest = text.strip().partition(" ")
        if not self.saved or word not in ("/clear", "/edit"):
            return 0
        return self.messages if word == "/clear" else max(self.messages - self._edited(rest.strip())[0], 0)

    def _edited(self, rest: str) -> tuple[int, str]:
        """The number and the new text of "/edit N TEXT" or "/edit TEXT"."""
        first, _, more = rest.partition(" ")
        return (int(first), more.strip()) if first.isdecimal() and more.strip() else (self.messages, rest)

    def _edit(self, rest: str) -> Outcome:
        turns, asked = self.session.conversation.turns, self._asked()
        number, text = self._edited(rest)
        if not asked or not 1 <= number <= len(asked):
            raise no_message(number, len(asked))
        if not text:
            raise UsageError("/edit needs the new text: /edit TEXT, or /edit N TEXT for the Nth message")
        at, before = asked[number - 1], list(turns)
        turns[at:] = [replace(turns[at], content=self.attachments.with_suffix(text))]
        self._remember(f"/edit of message {number}", before)
        return Outcome(reply=self._reply(self._answer(before)))

    def _undo(self, _: str) -> Outcome:
        turns, asked = self.session.conversation.turns, self._asked()
        while self._dropped:
            what, before, after = self._dropped.pop()
            messages = [t for t in turns if t.role in ("system", "user")]
            if len(messages) == len(after) and all(a is b for a, b in zip(messages, after, strict=True)):
                turns[:] = before
                self._changed()
                return Outcome(lines=[f"undone: {what}; {counted(self.messages, 'message')} in this chat again"])
            if len(messages) > len(after):  # messages came after it, which are undone first
                self._dropped.append((what, before, after))
                break
        if not asked:
            raise UsageError("there is nothing to undo")
        text = turns[asked[-1]].content
        del turns[asked[-1] :]
        self._changed()
        return Outcome(lines=[f"undone: {short(text)}"])

    def _continue(self, _: str) -> Outcome:
        return Outcome(reply=self._reply(self.session.extend(progress=self._progress, options=self._generation)))

    def _branch(self, name: str) -> Outcome:
        if not name:
            raise UsageError("/branch needs a name")
        old = self.session.name
        self._save(name)
        return Outcome(lines=[f"continuing as {name}; {old} is unchanged"])

    def _branches(self, _: str) -> Outcome:
        family = session_file.family(self.session.name or "")
        return Outcome(lines=[("* " if n == self.session.name else "  ") + n for n in family])

    def _system(self, text: str) -> Outcome:
        if not text:
            return Outcome(lines=self._system_lines())
        text = "" if text == "none" else text_or_file(text, "system")
        if not text and self.session.system is None:
            return Outcome(lines=["there is no system message"])
        self.session.set_system(text)
        self.session.commit()
        return Outcome(lines=[f"the system message is now: {short(text)}" if text else "the system message is removed"])

    def _system_lines(self) -> list[str]:
        system = self.session.system
        return ["there is no system message"] if system is None else [f"system: {line}" for line in system.split("\n")]

    def _file(self, path: str) -> Outcome:
        if not path:
            raise UsageError("/file needs a path, or none to take files back")
        if path == "none":
            self.attachments.waiting = []
            return Outcome(lines=["no files go with the next message"])
        lines: list[str] = []
        paths = typed_paths(path)
        sources = expand(paths, stdin=False)
        store = self._options.store
        documents = read_documents(sources, problem=lines.append, store=store, progress=self._progress)
        entries = entries_of(documents)
        self.attachments.waiting += entries
        count = sum(len(self.model.tokenizer.encode(e.text)) for e in entries)
        what = Path(paths[0]).name if len(documents) == 1 else f"{len(documents):,} files"
        lines += [r for d in documents for r in d.remarks]
        lines += [f"left out: {left_out}"] if (left_out := sources.left_out_text()) else []
        go = "goes" if len(documents) == 1 else "go"
        return Outcome(lines=[*lines, f"{what} ({counted(count, 'token')}) {go} with the next message"])

    def _save(self, name: str) -> Outcome:
        name = name and session_file.check_name(name)
        if name and name != self.session.name and session_file.exists(name):
            raise UsageError(f"a session named {name!r} already exists; choose another name")
        self.session.save(name or None)
        return Outcome(lines=[f"saved as {self.session.name}"])

    def _load(self, name: str) -> Outcome:
        if not name:
            raise UsageError("/load needs the name of a saved session; Tab completes it")
        name = session_file.check_name(name)
        if not session_file.exists(name):
            raise UsageError(
                f"there is no session {name!r}; the saved sessions are: {', '.join(session_file.names()[:20]) or 'none yet'}"
            )
        if name == self.session.name:
            return Outcome(lines=[f"{name} is the current chat"])
        saved = session_file.read(name)
        model = self.model
        if not made_with(saved, model) and self._load_model is not None and Path(saved.model_path).exists():
            model = self._load_model(saved.model_path)
        self._switch(name, model, replace(self._options, system=None, reread=False))
        self.attachments, self._dropped = Attachments(), []
        return Outcome(lines=[self.continuing])

    def _think(self, switch: str) -> Outcome:
        if switch:
            return self._switch_thoughts(switch.lower())
        self.show_thoughts = not self.show_thoughts
        return Outcome(lines=["thoughts are " + ("shown" if self.show_thoughts else "hidden")])

    def _switch_thoughts(self, switch: str) -> Outcome:
        if switch not in ("on", "off"):
            raise UsageError("/think takes on or off, or nothing, to show or hide the thoughts")
        able = can_think(self.model.template, self.model.tokenizer)
        if switch == "on" and not able:
            raise UsageError(f"the chat template of {self.model.name} has no thoughts to switch on")
        self._generation = replace(self._generation, think=switch == "on")
        if not able:
            return Outcome(lines=[f"{self.model.name} does not think; there is nothing to switch off"])
        return Outcome(lines=["the model thinks first" if switch == "on" else "the model answers without thinking"])

    def _stats(self, _: str) -> Outcome:
        s = self.session.stats
        lines = [f"context  {self.used:,} of {self.session.sequence.ctx:,} tokens, {counted(self.messages, 'message')}"]
        if s.prompt_tokens:
            lines.append(
                f"last     {s.prompt_tokens:,} tokens: {s.reused_tokens:,} reused, {s.prefilled_tokens:,} read; "
                f"{s.generated_tokens:,} written ({s.finish})"
            )
            lines.append(f"first    token after {s.first_token_seconds:.2f} s")
        if s.prefill_seconds:
            lines.append(f"reading  {s.prefilled_tokens / s.prefill_seconds:,.0f} tokens/s")
        if s.decode_seconds:
            lines.append(f"writing  {s.decoded_tokens / s.decode_seconds:,.1f} tokens/s")
        return Outcome(lines=lines)

    def _clear(self, _: str) -> Outcome:
        turns, gone = self.session.conversation.turns, self.messages
        before = list(turns)
        turns[:] = [t for t in turns[:1] if t.role == "system"]
        if gone:
            self._remember("/clear", before)
        self._changed()
        return Outcome(
            lines=[f"started over; /undo brings {counted(gone, 'message')} back" if gone else "started over"]
        )

    def _remember(self, what: str, before: list[Turn]) -> None:
        """Turns that were dropped can be brought back with /undo, as long as the chat is open."""
        messages = [t for t in self.session.conversation.turns if t.role in ("system", "user")]
        self._dropped.append((what, before, messages))

    def _history(self, last: str) -> Outcome:
        if last and (not last.isdecimal() or int(last) < 1):
            raise UsageError("/history takes a number of messages, or nothing for all of them")
        lines: list[str] = []
        turns, asked = self.session.conversation.turns, self._asked()
        for number, at in list(enumerate(asked, 1))[-int(last or len(asked)) :] if asked else []:
            replies = [
                t for t in turns[at + 1 : asked[number] if number < len(asked) else None] if t.role == "assistant"
            ]
            lines.append(f"{number:>3}  {short(self.message(number))}")
            lines += [f"     {short(replies[-1].content)}"] if replies else []
        return Outcome(lines=lines or ["there are no messages yet"])

    def _set(self, text: str) -> Outcome:
        defaults = self.session.sampling
        if not text:
            return Outcome(lines=[shown(self._generation, defaults, name) for name in SETTINGS])
        generation, name = changed(self._generation, text)
        generation.sampling(defaults).check_vocabulary(self.model.config.vocab_size)
        self._generation = generation
        return Outcome(lines=[shown(generation, defaults, name)])

    def _show(self, _: str) -> Outcome:
        session, waiting = self.session, self.attachments.waiting
        settings = [shown(self._generation, session.sampling, name) for name in SETTINGS]
        chosen = [s for s in settings if s.endswith("(set here)") or s.split()[0] in ("temp", "top-p")]
        sampling = ", ".join(" ".join(s.removesuffix("(set here)").split()) for s in chosen)
        files = dict.fromkeys(s.file for e in waiting for s in e.sources)
        sent = sum(t.role == "user" and bool(t.plain or t.pinned) for t in session.conversation.turns)
        return Outcome(
            lines=[
                f"model     {self.model.name} ({self.model.path})",
                f"session   {session.name or 'not stored'}, {counted(self.messages, 'message')}",
                f"system    {short(session.system) if session.system else 'none'}",
                f"sampling  {sampling} (/set lists all)",
                f"context   {self.used:,} of {format_context(session.sequence.ctx)} tokens, keys and values as "
                f"{session.state.kv_type}",
                f"files     {', '.join(map(str, files)) or 'none'} for the next message; sent with {counted(sent, 'message')}",
            ]
        )

    def _model(self, name: str) -> Outcome:
        if not name:
            return Outcome(lines=[f"{self.model.name} ({self.model.path})"])
        if self._load_model is None:
            raise UsageError("this chat cannot load another model")
        model = self._load_model(name)
        if model.template is None:
            raise UsageError(f"{model.name} has no chat template")
        before = self.session
        options = replace(self._options, system=None, ctx=None, kv_type=None, reread=True)
        if before.name is not None and session_file.exists(before.name):
            before.save()
            self._switch(before.name, model, options)
        else:
            self._switch(before.name, model, options, list(before.conversation.turns))
        self._dropped = []
        again = f"; {counted(self.messages, 'message')} are read again" if self.messages else ""
        return Outcome(lines=[f"continuing with {model.name}{again.replace('1 message are', '1 message is')}"])

    def _switch(
        self, name: str | None, model: LoadedModel, options: SessionOptions, turns: list[Turn] | None = None
    ) -> None:
        """Go on with another session, or this one under another model; when that fails, nothing has changed."""
        before = self.session, self.model
        same = name is not None and name == before[0].name
        if same:
            before[0].close()
        try:
            self.model = model
            session = self._open(name, options)
        except BaseException:
            self.model = before[1]
            if same:
                self.session = self._open(name)
            raise
        if turns is not None:
            template, own = before[1].template, model.template
            assert template is not None and own is not None
            session.conversation.turns = turns_for_another_model(turns, template.source == own.source)
        if not same:
            before[0].close()
        self.session = session
        self._count()

    def _save_as(self, path: str) -> Outcome:
        if not path:
            raise UsageError("/save-as needs the name of a file, such as chat.md")
        target = path_of(typed_paths(path)[0]).expanduser()
        if target.exists():
            raise UsageError(f"{target} exists already; choose another name")
        turns = [t.to_json() for t in self.session.conversation.turns]
        try:
            with atomic_write(target) as file:
                file.write(to_markdown(turns, title=self.session.name or "Chat", model=self.model.name).encode())
        except OSError as error:
            raise JambaError(f"cannot write {target}: {error.strerror or error}") from error
        return Outcome(lines=[f"written to {target}"])

    def _copy(self, _: str) -> Outcome:
        replies = [t for t in self.session.conversation.turns if t.role == "assistant"]
        if not replies:
            raise UsageError("there is no reply to copy yet")
        return Outcome(copied=replies[-1].content)
