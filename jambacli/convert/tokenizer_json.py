"""Reads the vocabulary of a Hugging Face tokenizer.json.

Two kinds are supported: BPE with byte fallback (converted SentencePiece BPE) and byte-level BPE (GPT-2's).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jambacli.convert.hf_checkpoint import read_json
from jambacli.errors import BadFileError, UnsupportedError
from jambacli.gguf.values import shown

MAX_FILE_BYTES = 64 << 20
MAX_ID = 1 << 22
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

# llama.cpp's names of pre-tokenizers, by the regex in tokenizer.json.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_BY_REGEX = {_CONTRACTIONS + r"\p{N}{1,3}" + _TAIL: "llama-bpe", _CONTRACTIONS + r"\p{N}" + _TAIL: "qwen2"}


@dataclass(frozen=True)
class AddedToken:
    """An entry of added_tokens; ``special`` tokens are markup: plain text is never tokenized to them."""

    id: int
    text: str
    special: bool


@dataclass
class TokenizerJson:
    """A BPE vocabulary: ``pieces`` by id, ``merges`` as pairs in rank order, and the ``added`` tokens.

    ``kind`` is "llama" (SentencePiece style) or "gpt2" (byte level). ``pre`` is llama.cpp's name of the pre-tokenizer, None
    where it has none. ``starts_with`` is the special token that the post-processor puts first.
    """

    kind: Literal["llama", "gpt2"]
    pieces: dict[int, str]
    merges: list[tuple[str, str]]
    added: list[AddedToken] = field(default_factory=list)
    unknown: str | None = None
    pre: str | None = "default"
    add_space_prefix: bool = False
    starts_with: str | None = None
    normalizes: bool = False

    def is_byte(self, text: str) -> bool:
        """Whether a piece is a byte-fallback piece such as ``<0x0A>``."""
        return self.kind == "llama" and bool(_BYTE_PIECE.fullmatch(text))

    def scores(self) -> dict[str, float]:
        """SentencePiece scores that give the same order of merges: minus the rank of the first merge that makes a piece.

        Merged pieces only. In a converted SentencePiece vocabulary, all ways to make a piece have adjacent ranks.
        """
        ranks: dict[str, float] = {}
        for rank, (left, right) in enumerate(self.merges):
            ranks.setdefault(left + right, -float(rank))
        return ranks


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Parse ``path``; BadFileError where it is damaged, UnsupportedError for a kind that GGUF has no name for."""
    data = read_json(path, MAX_FILE_BYTES)
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise BadFileError(path, "model.vocab is missing")
    if model.get("type", "BPE") != "BPE" or not isinstance(model["vocab"], dict):
        raise UnsupportedError(f"{path}: this is a {shown(str(model.get('type')))} vocabulary; only BPE is supported")
    components = list(_components(data, "normalizer", "pre_tokenizer", "decoder"))
    byte_level = any(c.get("type") == "ByteLevel" for c in components)
    if not byte_level and not model.get("byte_fallback"):
        raise UnsupportedError(
            f"{path}: this BPE vocabulary is not byte-level and has no byte fallback; GGUF has no name for it"
        )
    unknown = model.get("unk_token")
    return TokenizerJson(
        kind="gpt2" if byte_level else "llama",
        pieces=_pieces(path, model["vocab"]),
        merges=_merges(path, model.get("merges")),
        added=_added(path, data.get("added_tokens")),
        unknown=unknown if isinstance(unknown, str) else None,
        pre=_pre(data) if byte_level else "default",
        add_space_prefix=not byte_level and any(_prepends_space(c) for c in components),
        starts_with=_first_special(data.get("post_processor")),
        normalizes=any(c.get("type") in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Precompiled") for c in components),
    )


def _pieces(path: Path, vocab: dict[str, Any]) -> dict[int, str]:
    pieces: dict[int, str] = {}
    for text, i in vocab.items():
        if type(i) is not int or not 0 <= i < MAX_ID:
            raise BadFileError(path, f"piece {shown(text)} has the invalid id {shown(str(i))}")
        if i in pieces:
            raise BadFileError(path, f"pieces {shown(pieces[i])} and {shown(text)} share the id {i}")
        pieces[i] = text
    return pieces


def _merges(path: Path, merges: Any) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for merge in merges if isinstance(merges, list) else [None]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            raise BadFileError(path, f"model.merges is not a list of pairs (entry {len(pairs)})")
        pairs.append((parts[0], parts[1]))
    return pairs


def _added(path: Path, entries: Any) -> list[AddedToken]:
    added: list[AddedToken] = []
    for entry in entries if isinstance(entries, list) else []:
        i = entry.get("id") if isinstance(entry, dict) else None
        if type(i) is not int or not 0 <= i < MAX_ID or not isinstance(entry.get("content"), str):
            raise BadFileError(path, f"added_tokens has an invalid entry: {shown(str(entry))}")
        added.append(AddedToken(i, entry["content"], bool(entry.get("special"))))
    return added


def _components(data: Mapping[str, Any], *keys: str) -> Iterator[dict[str, Any]]:
    """All components of the pipelines under ``keys``, with sequences flattened."""
    waiting: list[Any] = [data.get(key) for key in keys]
    while waiting:
        component = waiting.pop(0)
        if isinstance(component, dict):
            yield component
            for inner in ("normalizers", "pretokenizers", "decoders", "processors"):
                if isinstance(component.get(inner), list):
                    waiting += component[inner]


def _prepends_space(component: Mapping[str, Any]) -> bool:
    if component.get("type") == "Prepend":
        return component.get("prepend") in ("▁", " ")
    if component.get("type") == "Metaspace" and "prepend_scheme" in component:
        return component["prepend_scheme"] != "never"
    return component.get("type") == "Metaspace" and bool(component.get("add_prefix_space"))


def _pre(data: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer, or None; see llama-vocab.cpp for what each name splits on."""
    steps = [c for c in _components(data, "pre_tokenizer") if c.get("type") != "Sequence"]
    splits = [c for c in steps if c.get("type") == "Split"]
    if not splits:
        digits = any(c.get("type") == "Digits" and c.get("individual_digits") for c in steps)
        uses_regex = any(c.get("type") == "ByteLevel" and c.get("use_regex", True) for c in steps)
        return None if not uses_regex else "starcoder" if digits else "gpt-2"
    pattern = splits[0].get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return _PRE_BY_REGEX.get(regex) if len(splits) == 1 and isinstance(regex, str) else None


def _first_special(processor: Any) -> str | None:
    """The special token that a TemplateProcessing step puts before a single text."""
    for step in _components({"post": processor}, "post"):
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            first = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
            if isinstance(first, dict) and isinstance(first.get("id"), str):
                return str(first["id"])
    return None
