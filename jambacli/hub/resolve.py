"""The one resolver of model names to places on disk; knows nothing of what is in the files, and of no network."""

from __future__ import annotations

from pathlib import Path

from jambacli.errors import JambaError, UsageError
from jambacli.files import path_of
from jambacli.hub.demo import NAME, is_in_the_box, path_in_the_box
from jambacli.hub.names import Hub, Name, looks_like_name, parse_name
from jambacli.hub.store import Entry, Store


def resolve_model(name: str) -> Path:
    """The .gguf file (any part of a split one) or checkpoint directory that ``name`` means: a path, a pulled name, or
    the model in the box.

    Raises JambaError when it means none: one line that says how to get it, or which names are near.
    """
    path = path_of(name)
    if name and _exists(path):
        return path
    store = Store()
    if (entry := find_entry(store, name)) is not None:
        return _in_place(store, entry)
    if is_in_the_box(name):
        return path_in_the_box()
    if _looks_like_a_path(name):
        raise JambaError(f"{name}: no such file; give the path of a .gguf file or a checkpoint directory")
    hint = "give a pulled name (jamba list), or the path of a .gguf file or a checkpoint directory"
    try:
        known = parse_name(name)
    except UsageError as error:
        raise JambaError(f"{str(error).split(';')[0]}; {hint}" if "/" in name else f"{error}; {hint}") from None
    raise JambaError(f"{name} is not here yet; get it with: jamba pull {known.text}; or {hint}")


def find_entry(store: Store, text: str) -> Entry | None:
    """The registered model that ``text`` means: by its very name, or by a name that leads to the same source."""
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


def find_named(store: Store, name: Name) -> Entry | None:
    """The registered model of a parsed name. JambaError where several are meant equally."""
    if (entry := store.get(name.text)) is not None:
        return entry
    sources = [*name.sources]
    if name.weights and (made := name.quant or (name.model.quant if name.model else None)):
        sources.append(Hub(name.weights, made))
    entries = store.entries() if sources else []
    for source in sources:
        found = {e.set_id or e.name: e for e in entries if _is_from(e, source)}
        usual = [e for e in found.values() if len(found) == 1 or e.quant == "Q4_K_M"]
        if len(usual) == 1:
            return usual[0]
        if found:
            names = ", ".join(sorted(e.name for e in found.values()))
            raise JambaError(f"{name.text} could be any of {names}; name one of them")
    return None


def is_model_name(text: str) -> bool:
    """Whether ``text`` is meant as a model, not as words: a .gguf path (there or not), a checkpoint, or a model's name."""
    path = path_of(text)
    if not text or "\n" in text:
        return False
    if path.suffix == ".gguf" or _exists(path / "config.json"):
        return True
    if any(c.isspace() for c in text):
        return False
    try:
        return looks_like_name(text) or find_entry(Store(), text) is not None
    except JambaError:  # several are meant, or the alias table is damaged: resolving it will say so
        return True


def last_used() -> Path | None:
    """Where the model lies that was used last; None where there was none, or it is gone."""
    name = Store().last_used()
    if name is None:
        return None
    try:
        return resolve_model(name)
    except JambaError:
        return None


def remember_used(model: str | Path) -> None:
    """Note that ``model`` (a name or a path) is used now, for ``last_used`` and ``jamba list``."""
    store = Store()
    text = str(model)
    path = path_of(text)
    if text and _exists(path):
        where = path.absolute()
        for entry in store.entries():
            if any(_same(where, part) for part in store.paths(entry)):
                return store.remember_used(entry.name)
        return store.remember_used(str(where))
    entry_or_none = find_entry(store, text)
    if entry_or_none is not None:
        store.remember_used(entry_or_none.name)
    elif is_in_the_box(text):
        store.remember_used(NAME)
    return None


def _in_place(store: Store, entry: Entry) -> Path:
    if not store.complete(entry):
        lost = next((p for p in store.paths(entry) if not _exists(p)), store.paths(entry)[0])
        raise JambaError(f"{entry.name}: {lost} is gone or was changed; get it again with: jamba pull {entry.name}")
    return store.paths(entry)[0]


def _is_from(entry: Entry, source: object) -> bool:
    made = entry.source
    if isinstance(source, Hub):
        if made.get("kind") != "hub" or str(made.get("repo")).lower() != source.repo.lower():
            return False
        if source.revision not in (None, made.get("revision"), made.get("commit")):
            return False
        # Without a revision, only what was pulled without one is meant.
        if source.revision is None and made.get("revision") is not None:
            return False
        if source.file is not None:
            return source.file in made.get("files", ())
        return source.quant is None or entry.quant.upper() == source.quant
    return made.get("kind") == "ollama" and made.get("name") == str(source)


def _same(one: Path, other: Path) -> bool:
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
    except (OSError, ValueError):  # too long, or with a zero byte: no file has that name
        return False
