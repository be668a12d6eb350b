"""Parses model names into repositories, types, files, revisions and registries, without the network or the store.

``jamba:q4_0``, ``hf.co/OWNER/REPO[@REVISION][:QUANT]``, ``OWNER/REPO[@REVISION]/FILE.gguf``, ``ollama:[HOST/]NAME[:TAG]``.
"""

from __future__ import annotations

import difflib
import re
import urllib.parse
from dataclasses import dataclass, replace

from jambacli.errors import UsageError
from jambacli.hub.aliases import DEMO_NAME, REPO, SHORT, Model, Table, load_table
from jambacli.hub.paths import is_safe_path

MAX_NAME = 400
QUANT = re.compile(
    r"(?:UD-)?(?:I?Q\d(?:_\w+)?|TQ\d_\d|F16|F32|BF16|FP16|FP32|(?:MX|NV)FP4\w*|EXPERTS_INT8)", re.I | re.ASCII
)
_HOSTS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/", re.I)
_REVISION = re.compile(r"[\w.][\w./-]{0,199}", re.ASCII)
_OLLAMA_PART = re.compile(r"[A-Za-z0-9_][\w.-]{0,127}", re.ASCII)
_OLLAMA_HOST = re.compile(r"(?:\w[\w-]*\.)*\w[\w-]*(?::\d{1,5})?|\[[0-9a-fA-F:]{2,39}\](?::\d{1,5})?", re.ASCII)
_MAX_ALIAS_STEPS = 8
_NOT_A_NAME = "is not a model name; write it like jamba:q4_0, OWNER/REPO:Q4_K_M or ollama:NAME:TAG"


@dataclass(frozen=True)
class Hub:
    """A model on the Hugging Face hub: ``file`` of ``repo``, or its GGUF of type ``quant``. ``revision`` None is main."""

    repo: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        rest = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return f"hf.co/{self.repo}{at}{rest}"


@dataclass(frozen=True)
class Ollama:
    """A model in a registry with Ollama's API. ``host`` None is the default registry; ``scheme`` is http or https."""

    host: str | None
    scheme: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        host = f"{'http://' if self.scheme == 'http' else ''}{self.host}/" if self.host else ""
        space = f"{self.namespace}/" if self.host or self.namespace != "library" else ""
        return f"ollama:{host}{space}{self.model}:{self.tag}"


@dataclass(frozen=True)
class Name:
    """A parsed name.

    ``text``: the name as it is listed. ``sources``: where to look for it, in order. ``weights``: the repository of the
    checkpoint it can be made from. ``quant``: the type in the name, upper case. ``model``: the alias table's entry for it.
    """

    text: str
    sources: tuple[Hub | Ollama, ...]
    weights: str | None = None
    quant: str | None = None
    model: Model | None = None


def parse_name(text: str, *, revision: str | None = None, table: Table | None = None) -> Name:
    """The meaning of ``text``. Raises UsageError for text that cannot be a name and for unknown names, listing similar
    ones."""
    shown = f"{text[:100]!a}"
    if not text or len(text) > MAX_NAME or not text.isprintable() or "\\" in text:
        raise UsageError(f"{shown} {_NOT_A_NAME}")
    if revision is not None and not is_safe_revision(revision):
        raise UsageError("is not a branch, a tag or a commit", field="revision", value=revision[:100])
    table = table or load_table()
    name = _parse(text.strip(), table, 0)
    if revision is not None:
        if any(isinstance(source, Ollama) for source in name.sources):
            raise UsageError(f"{shown}: Ollama registries have no revisions; use a tag instead")
        sources = tuple(replace(s, revision=revision) for s in name.sources if isinstance(s, Hub))
        text = str(sources[0]) if "/" in name.text and sources else f"{name.text}@{revision}"
        name = replace(name, sources=sources, text=text)
    return name


def with_quant(name: Name, quant: str) -> Name:
    """``name`` with type ``quant``. Raises UsageError when the name already has another type or names one file."""
    kind = canonical_quant(quant)
    if name.quant is not None and name.quant != kind:
        problem = f"is not the type in the name {name.text}"
        raise UsageError(problem, field="quant", value=quant[:40], remedy="leave one of them out")
    if any(isinstance(s, Ollama) or s.file for s in name.sources):
        raise UsageError(f"{name.text} already names one file", remedy="leave {quant} out")
    sources = tuple(replace(s, quant=kind) for s in name.sources if isinstance(s, Hub))
    return replace(name, sources=sources, quant=kind, text=name.text if name.quant else _tagged(name, kind))


def _tagged(name: Name, quant: str) -> str:
    if "/" in name.text:
        return f"{name.text}:{quant}"
    family, _, tag = name.text.partition(":")
    return f"{family}:{quant.lower()}" if tag in ("", "latest") else f"{name.text}-{quant.lower()}"


def canonical_quant(text: str) -> str:
    """The canonical spelling of a type: upper case, F16 for FP16."""
    upper = text.upper()
    return {"FP16": "F16", "FP32": "F32"}.get(upper, upper)


def is_safe_revision(text: str) -> bool:
    """Whether ``text`` can be a git revision and has no parts that lead to a parent directory."""
    return bool(_REVISION.fullmatch(text)) and all(part.strip(".") for part in text.split("/"))


def looks_like_name(text: str) -> bool:
    """Whether ``text`` has the form of a model name rather than of a prompt: a short name, hf.co/..., ollama:... or
    OWNER/REPO:QUANT."""
    if len(text) > MAX_NAME or not text.isprintable() or any(c.isspace() for c in text):
        return False
    if text.lower().startswith("ollama:") or _HOSTS.match(text):
        return True
    repo, _, quant = text.rpartition(":")
    if REPO.fullmatch(repo):
        return bool(QUANT.fullmatch(quant))
    family, colon, _ = text.lower().partition(":")
    table = load_table()
    return text.lower() in table.names() or (
        bool(colon)
        and SHORT.fullmatch(text.lower()) is not None
        and any(n.startswith(f"{family}:") for n in table.names())
    )


def _parse(text: str, table: Table, depth: int) -> Name:
    if depth > _MAX_ALIAS_STEPS:
        raise UsageError(f"{text[:100]!a}: the aliases in aliases.json form a cycle; correct the file")
    if text.lower().startswith("ollama:"):
        return _ollama(text)
    if "/" in text:
        return _hub(text)
    full = text.lower() if text.lower() in (*table.aliases, *table.models) or ":" in text else f"{text.lower()}:latest"
    if not SHORT.fullmatch(full):
        raise UsageError(f"{text[:100]!a} {_NOT_A_NAME}")
    found = _short(full, table, depth)
    if found is None:
        raise UsageError(f"unknown model {text[:100]!a}; {_nearest(full, table)}")
    return replace(found, text=full)


def _short(full: str, table: Table, depth: int) -> Name | None:
    """A name of the table, alone or followed by a type (``jamba:mini-q4_0``, ``jamba:q4_0``)."""
    if full in table.aliases:
        return _parse(table.aliases[full], table, depth + 1)
    if full in table.models:
        return _of_model(table.models[full], None)
    family, _, tag = full.partition(":")
    if QUANT.fullmatch(tag):
        base = f"{family}:latest" if f"{family}:latest" in table.names() else family
        return _with_type(base, tag, table, depth)
    for base in sorted(table.names(), key=len, reverse=True):
        rest = full.removeprefix(f"{base}-")
        if rest != full and QUANT.fullmatch(rest):
            return _with_type(base, rest, table, depth)
    return None


def _with_type(base: str, quant: str, table: Table, depth: int) -> Name | None:
    found = _short(base, table, depth) if base in table.names() else None
    if found is None or found.quant is not None or any(isinstance(s, Ollama) or s.file for s in found.sources):
        return None
    if found.model is not None:
        return _of_model(found.model, canonical_quant(quant))
    return with_quant(found, quant)


def _of_model(model: Model, quant: str | None) -> Name:
    kind = quant or model.quant
    return Name(model.name, tuple(Hub(repo, kind) for repo in model.gguf), model.weights, quant, model)


def _hub(text: str) -> Name:
    path = _HOSTS.sub("", text, count=1)
    help = "write it like OWNER/REPO, OWNER/REPO:Q4_K_M or OWNER/REPO/FILE.gguf"
    if "://" in path:
        raise UsageError(f"{text[:100]!a} is not on the Hugging Face hub; {help}")
    link = re.fullmatch(r"([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/(.+?)(?:\?.*)?", path)
    if link and path != text:
        path = f"{link[1]}@{urllib.parse.unquote(link[2])}/{urllib.parse.unquote(link[3])}"
        path = path.replace("@main/", "/", 1)
    owner, _, rest = path.partition("/")
    repo_at, _, file = rest.partition("/")
    quant = None
    if not file and ":" in repo_at:
        repo_at, _, quant = repo_at.partition(":")
    repo, at, revision = repo_at.partition("@")
    repo = f"{owner}/{repo}"
    if not REPO.fullmatch(repo) or ".." in repo:
        raise UsageError(f"{text[:100]!a} is not a repository of the hub; {help}")
    if at and not is_safe_revision(revision):
        raise UsageError(f"{text[:100]!a}: {revision[:60]!a} is not a revision; give a branch, a tag or a commit")
    if file and (not is_safe_path(file) or not file.lower().endswith(".gguf")):
        raise UsageError(f"{text[:100]!a}: {file[:60]!a} is not a .gguf file of a repository; {help}")
    if quant is not None:
        if not re.fullmatch(r"[\w.-]{1,40}", quant, re.ASCII):
            raise UsageError(f"{text[:100]!a}: {quant[:60]!a} is not a quantization type; {help}")
        quant = None if quant.lower() == "latest" else canonical_quant(quant)
    source = Hub(repo, quant, file or None, revision or None)
    return Name(str(source), (source,), repo, quant)


def _ollama(text: str) -> Name:
    path = text[len("ollama:") :]
    help = "write it like ollama:NAME:TAG, ollama:OWNER/NAME:TAG or ollama:HOST/OWNER/NAME:TAG"
    match = re.fullmatch(r"(?:(https?)://)?(.+)", path)
    if not match:
        raise UsageError(f"{text[:100]!a} names no model; {help}")
    scheme, parts = match[1] or "https", match[2].split("/")
    last, _, tag = parts[-1].partition(":")
    host = parts.pop(0) if len(parts) == 3 or (match[1] and len(parts) > 1) else None
    namespace = parts[0] if len(parts) == 2 else "library"
    valid = len(parts) <= 2 and all(_OLLAMA_PART.fullmatch(p) for p in (namespace, last, tag or "latest"))
    if (
        not valid
        or ".." in path
        or (host is not None and not _OLLAMA_HOST.fullmatch(host))
        or (match[1] and host is None)
    ):
        raise UsageError(f"{text[:100]!a} is not a name in an Ollama registry; {help}")
    source = Ollama(host, scheme, namespace, last, tag or "latest")
    return Name(str(source), (source,), None, None)


def _nearest(full: str, table: Table) -> str:
    """The most similar names, and all known names, the demo model's among them."""
    names = sorted({*table.names(), DEMO_NAME})
    family, _, tag = full.partition(":")
    families = sorted({name.partition(":")[0] for name in names if ":" in name})
    near = [f"{f}:{tag}" for f in difflib.get_close_matches(family, families, 1, 0.6) if _short(f"{f}:{tag}", table, 0)]
    base, _, quant = full.rpartition("-")
    if not near and QUANT.fullmatch(quant):
        near = [f"{name}-{quant}" for name in difflib.get_close_matches(base, names, 3, 0.6)]
    near = near or [name for name in names if name.partition(":")[2] == family]  # "tiny" for jamba:tiny
    near = near or difflib.get_close_matches(full, names, 3, 0.6)
    head = f"did you mean {' or '.join(near)}? There are" if near else "there are"
    return f"{head} {', '.join(names)}, each also followed by a type (jamba:3b-q8_0), and OWNER/REPO on the hub"
