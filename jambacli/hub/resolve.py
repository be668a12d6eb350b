"""Resolves model names to paths on disk. It uses no network and opens no model file."""

from __future__ import annotations

import difflib
from pathlib import Path

from jambacli.errors import JambaError, UsageError
from jambacli.files import path_of
from jambacli.hub.aliases import DEFAULT_QUANT
from jambacli.hub.demo import DEMO_NAME, demo_model_path, is_demo_model
from jambacli.hub.names import Hub, Name, looks_like_name, parse_name
from jambacli.hub.store import Store, StoreEntry


def resolve_model(name: str) -> Path:
    """The .gguf file (any part of a split one) or HF checkpoint directory that ``name`` means: a path, a pulled name, or
    the demo model.

    Raises JambaError for any other name, in one line that says how to get the model or which names are similar.
    """
    path = path_of(name)
    if name and _exists(path):
        return path
    store = Store()
    if (entry := find_entry(store, name)) is not None:
        return _stored_path(store, entry)
    if is_demo_model(name):
        return demo_model_path()
    if _looks_like_a_path(name):
        raise JambaError(f"{name}: no such file; give the path of a .gguf file or a checkpoint directory")
    hint = "give the name of a pulled model (jamba list), or the path of a .gguf file or a checkpoint directory"
    try:
        known = parse_name(name)
    except UsageError as error:
        if near := difflib.get_close_matches(name.lower(), [e.name for e in store.entries()], 2, 0.6):
            hint = f"of the pulled models, {' or '.join(near)} is similar; {hint}"
        raise JambaError(f"{str(error).split(';')[0]}; {hint}" if "/" in name else f"{error}; {hint}") from None
    raise JambaError(f"{name} has not been pulled; get it with: jamba pull {known.text}; or {hint}")


def find_entry(store: Store, text: str) -> StoreEntry | None:
    """The registered model that ``text`` means: by its exact name, or by a name of the same source. None when none is."""
    if not text or len(text) > 400 or not text.isprintable():
        return None
    for exact in (text, text.lower()):
        if (entry := store.get(exact)) is not None:
            return entry
    try:
        name = parse_name(text)
    except JambaError:
        return None
    return find_named(store, name)


def find_named(store: Store, name: Name) -> StoreEntry | None:
    """The registered model of a parsed name, None when there is none. Raises JambaError when several match equally."""
    if (entry := store.get(name.text)) is not None:
        return entry
    sources = [*name.sources]
    if name.weights and (made := name.quant or (name.model.quant if name.model else None)):
        sources.append(Hub(name.weights, made))
    entries = store.entries() if sources else []
    for source in sources:
        found = {e.set_id or e.name: e for e in entries if _is_from(e, source)}
        preferred = [e for e in found.values() if len(found) == 1 or e.quant == DEFAULT_QUANT]
        if len(preferred) == 1:
            return preferred[0]
        if found:
            names = ", ".join(sorted(e.name for e in found.values()))
            raise JambaError(f"{name.text} could be any of {names}; name one of them")
    return None


def is_model_name(text: str) -> bool:
    """Whether ``text`` means a model rather than a prompt: a .gguf path (existing or not), a checkpoint directory, or the
    name of a model."""
    path = path_of(text)
    if not text or "\n" in text:
        return False
    if path.suffix == ".gguf" or _exists(path / "config.json"):
        return True
    if any(c.isspace() for c in text):
        return False
    try:
        return looks_like_name(text) or find_entry(Store(), text) is not None
    except JambaError:  # several models match, or the alias table is damaged: resolving the name will say so
        return True


def last_used() -> Path | None:
    """The path of the model used last; None if there is none or it no longer exists."""
    name = Store().last_used()
    if name is None:
        return None
    try:
        return resolve_model(name)
    except JambaError:
        return None


def remember_used(model: str | Path) -> None:
    """Record that ``model`` (a name or a path) is used now, for ``last_used`` and ``jamba list``."""
    store = Store()
    text = str(model)
    path = path_of(text)
    if text and _exists(path):
        full = path.absolute()
        for entry in store.entries():
            if any(_same_file(full, part) for part in store.paths(entry)):
                return store.remember_used(entry.name)
        return store.remember_used(str(full))
    entry_or_none = find_entry(store, text)
    if entry_or_none is not None:
        store.remember_used(entry_or_none.name)
    elif is_demo_model(text):
        store.remember_used(DEMO_NAME)
    return None


def _stored_path(store: Store, entry: StoreEntry) -> Path:
    if not store.is_complete(entry):
        lost = next((p for p in store.paths(entry) if not _exists(p)), store.paths(entry)[0])
        raise JambaError(f"{entry.name}: {lost} is missing or was changed; get it again with: jamba pull {entry.name}")
    return store.paths(entry)[0]


def _is_from(entry: StoreEntry, source: object) -> bool:
    made = entry.source
    if isinstance(source, Hub):
        if made.get("kind") != "hub" or str(made.get("repo")).lower() != source.repo.lower():
            return False
        if source.revision not in (None, made.get("revision"), made.get("commit")):
            return False
        # A name without a revision means a model that was pulled without one.
        if source.revision is None and made.get("revision") is not None:
            return False
        if source.file is not None:
            return source.file in made.get("files", ())
        return source.quant is None or entry.quant.upper() == source.quant
    return made.get("kind") == "ollama" and made.get("name") == str(source)


def _same_file(one: Path, other: Path) -> bool:
    if one.name != other.name:
        return False
    try:
        return one.samefile(other)
    except OSError:
        return False


def _looks_like_a_path(name: str) -> bool:
    return name.endswith(".gguf") or name.startswith(("/", "./", "../", "~"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # the name is too long or has a zero byte, so no file has it
        return False
