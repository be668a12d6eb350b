"""Text <-> token ids with the vocabulary in a GGUF's metadata.

There are two kinds: SentencePiece BPE with byte fallback (``tokenizer.ggml.model`` "llama") and byte-level BPE ("gpt2"). Both
run on the tokenizers library. Pieces that look like markup (``<|eom|>``, ``<documents>``) are **markers**. They are encoded as
single tokens only when the caller asks for it, so that a document that contains one stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jambacli.errors import BadFileError, UnsupportedError
from jambacli.text.merges import cached_merges
from jambacli.text.streaming import StreamDecoder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
Markers = Literal["none", "user", "all"]

# Pre-tokenizer regexes by tokenizer.ggml.pre, from the models' own tokenizer.json files.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Characters of control tokens that are found by themselves. Real vocabularies have at most 10,000, such as "[control_767]".
_MAX_MARKERS = 1 << 15
_PRE = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable characters for the 256 bytes (character -> byte)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_ALPHABET = _byte_alphabet()


def _looks_like_markup(piece: str) -> bool:
    return len(piece) > 2 and not piece.isspace() and piece.strip("▁ ") != ""


class Tokenizer:
    """A model's tokenizer.

    Attributes: ``pieces`` (list of str), ``types`` (list of int, GGUF token types), ``bos_id``, ``eos_id``, ``unk_id``,
    ``pad_id``, ``sep_id``, ``cls_id``, ``mask_id`` (int or None), ``stop_ids`` (frozenset: the file's eos, eot and eom),
    ``add_bos``, ``template`` (str or None).
    """

    def __init__(self, metadata: Mapping[str, Any], source: object = "model", cache: Path | None = None) -> None:
        """Build from GGUF metadata; ``source`` names the file in errors, ``cache`` is a directory for merge rules.

        Raises BadFileError for an inconsistent vocabulary, UnsupportedError for another kind of tokenizer.
        """
        self._source = source
        self.kind = str(metadata.get("tokenizer.ggml.model", ""))
        if self.kind in ("", "none", "no_vocab"):
            raise UnsupportedError(
                f"{source}: the file has no tokenizer; convert the checkpoint again, with its tokenizer files"
            )
        if self.kind not in ("llama", "gpt2"):
            raise UnsupportedError(
                f"{source}: tokenizer.ggml.model {self.kind!r} is not supported (llama and gpt2 are)"
            )
        pieces = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(pieces, list) or not pieces:
            raise BadFileError(source, "tokenizer.ggml.tokens is missing or empty")
        self.pieces: list[str] = pieces
        n = len(pieces)
        types = self._numbers(metadata, "token_type", NORMAL)
        if not (abs(types) < 1 << 31).all():
            raise BadFileError(source, "tokenizer.ggml.token_type has values that are not token types")
        self._types = types.astype(np.int64)
        self.types: list[int] = self._types.tolist()
        self._scores = self._numbers(metadata, "scores", 0.0)
        self._merges = metadata.get("tokenizer.ggml.merges")
        self._pre = str(metadata.get("tokenizer.ggml.pre", "default"))
        self._cache = cache
        self.vocab_size = n
        self.bos_id = self._special(metadata, "bos")
        self.pad_id = self._special(metadata, "padding")
        self.unk_id = self._special(metadata, "unknown")
        self.sep_id = self._special(metadata, "seperator")  # so spelt in the GGUF specification
        self.cls_id = self._special(metadata, "cls")
        self.mask_id = self._special(metadata, "mask")
        self.eos_id = self._special(metadata, "eos")
        stops = (self.eos_id, *(self._special(metadata, k) for k in ("eot", "eom")))
        self.stop_ids = frozenset(i for i in stops if i is not None)
        self.add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", self.kind == "llama"))
        self.add_space_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
        template = metadata.get("tokenizer.chat_template")
        self.template = template if isinstance(template, str) and template.strip() else None
        self._is_marker = [False] * n
        for i in self._of_type(CONTROL, USER_DEFINED):
            self._is_marker[i] = self.types[i] == CONTROL or _looks_like_markup(pieces[i])
        self._marker_ids = {
            p: i for i in self._of_type(CONTROL, USER_DEFINED) if self._is_marker[i] and (p := pieces[i])
        }
        self._bytes: dict[int, bytes] | None = None
        self._bpe: Any = None
        self._patterns: dict[str, re.Pattern[str] | None] = {}

    def _special(self, metadata: Mapping[str, Any], name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadFileError(self._source, f"tokenizer.ggml.{name}_token_id is not a token id")
        if value == 0xFFFFFFFF:
            return None
        if not 0 <= value < len(self.pieces):
            raise BadFileError(self._source, f"tokenizer.ggml.{name}_token_id {value} is outside the vocabulary")
        return value

    def _numbers(self, metadata: Mapping[str, Any], name: str, default: float) -> np.ndarray:
        """One number per token: the file's, or ``default`` if it has none. Raises BadFileError for NaNs."""
        n = len(self.pieces)
        stored = metadata.get(f"tokenizer.ggml.{name}")
        if stored is None:
            return np.full(n, default)
        try:
            values = np.asarray(stored)
        except ValueError:  # nested lists of different lengths
            values = np.empty((0, 0))
        if values.ndim != 1 or values.dtype.kind not in "iuf" or np.isnan(values).any():
            raise BadFileError(self._source, f"tokenizer.ggml.{name} is not a list of numbers")
        if len(values) != n:
            raise BadFileError(self._source, f"tokenizer.ggml.{name} has {len(values)} entries, tokens has {n}")
        return values

    def _of_type(self, *types: int) -> list[int]:
        """The ids of the tokens of these types, in order."""
        return np.flatnonzero(np.isin(self._types, types)).tolist()

    def marker_id(self, text: str) -> int | None:
        """The id of a marker such as ``<|assistant|>``; None when the vocabulary has no such token."""
        return self._marker_ids.get(text)

    def is_marker(self, token: int) -> bool:
        """Whether a token is markup (control or marker-like user-defined) rather than text."""
        return self._is_marker[token]

    def encode(self, text: str, markers: Markers = "none") -> list[int]:
        """The token ids of ``text``, without bos.

        ``markers``: which markers in the text become single tokens: "none" (content, in which all of them stay text), "user"
        (user-defined pieces only, as in sentencepiece) or "all" (rendered chat templates).
        """
        if not text:
            return []
        if self.add_space_prefix and self.kind == "llama":
            text = " " + text
        pattern = self.marker_pattern(markers)
        if pattern is None:
            return self._encode_plain(text)
        ids: list[int] = []
        start = 0
        for match in pattern.finditer(text):
            token = self._marker_ids.get(match[0])
            if token is None or (markers == "user" and self.types[token] != USER_DEFINED):
                continue
            ids += self._encode_plain(text[start : match.start()])
            ids.append(token)
            start = match.end()
        return ids + self._encode_plain(text[start:])

    def decode(self, ids: Iterable[int], markers: bool = False) -> str:
        """The text of ``ids``, with or without markers; invalid UTF-8 becomes U+FFFD."""
        stream = self.stream(markers)
        return "".join(stream.push(i) for i in ids) + stream.flush()

    def stream(self, markers: bool = False) -> StreamDecoder:
        """A decoder for tokens pushed one at a time; it emits whole characters only."""
        return StreamDecoder(self.token_bytes, markers)

    def token_bytes(self, token: int, markers: bool = False) -> bytes:
        """The bytes of a token; b"" for a marker unless ``markers``. Raises IndexError outside the vocabulary."""
        if token < 0:
            raise IndexError(f"token {token} is negative")
        if self._bytes is None:
            self._bytes = self._byte_tokens()
        if self._is_marker[token] and not markers:
            return b""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spelled(token)
        return known

    def _byte_tokens(self) -> dict[int, bytes]:
        """The bytes of the byte tokens; the bytes of other tokens are computed when needed."""
        named: dict[int, bytes] = {}
        for token in self._of_type(BYTE):
            piece = self.pieces[token]
            try:
                named[token] = bytes([int(piece[3:5], 16)])
            except ValueError:
                raise BadFileError(self._source, f"byte token {piece!r} is not of the form <0xNN>") from None
        return named

    def _spelled(self, token: int) -> bytes:
        piece = self.pieces[token]
        if self.kind == "gpt2" and self.types[token] == NORMAL and all(c in _ALPHABET for c in piece):
            return bytes(_ALPHABET[c] for c in piece)
        text = piece.replace("▁", " ") if self.kind == "llama" else piece
        return text.encode("utf-8", "surrogateescape")

    def marker_pattern(self, markers: Markers) -> re.Pattern[str] | None:
        """A regex whose matches may be markers (check them with ``marker_id``); None when there are no markers to find."""
        if markers == "none":
            return None
        if markers not in self._patterns:
            names = [p for p, i in self._marker_ids.items() if markers == "all" or self.types[i] == USER_DEFINED]
            # Markers in angle brackets are found by their form and looked up: a regex of a thousand alternatives is slow.
            angled = [p for p in names if re.fullmatch(r"<[^<>]+>", p)]
            other = sorted(set(names) - set(angled), key=lambda p: (-len(p), p))
            if (size := sum(map(len, other))) > _MAX_MARKERS:
                raise BadFileError(
                    self._source,
                    f"its control tokens outside of angle brackets have {size:,} characters; the limit is {_MAX_MARKERS:,}",
                )
            parts = [re.escape(p) for p in other]
            if angled:
                parts.append(rf"<[^<>]{{1,{max(len(p) for p in angled) - 2}}}>")
            self._patterns[markers] = re.compile("|".join(parts)) if parts else None
        return self._patterns[markers]

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        backend = self.library_tokenizer()
        # A lone surrogate has no UTF-8 encoding and becomes "?", rather than an error deep in the library.
        text = text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
        return list(backend.encode(text, add_special_tokens=False).ids)

    def library_tokenizer(self) -> Any:
        """The vocabulary as a ``tokenizers.Tokenizer``, in which markers are text. It must not be changed."""
        if self._bpe is None:
            self._bpe = self._build()
        return self._bpe

    def _build(self) -> Any:
        from tokenizers import AddedToken, models, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        names = self.pieces
        if not _utf8("".join(names)):
            # Pieces that are not valid text get unique names that no input contains, so that ids stay in place.
            names = [p if p.isprintable() or _utf8(p) else f"\x00undecodable{i}" for i, p in enumerate(names)]
        vocab = dict(
            zip(reversed(names), range(len(names) - 1, -1, -1), strict=True)
        )  # the first token of a name counts
        atom_ids = [i for i in self._of_type(USER_DEFINED) if not self._is_marker[i]]
        if self.kind == "llama":
            mergeable = np.isin(self._types, (NORMAL, UNUSED))
            mergeable[atom_ids] = True
            rules = cached_merges(names, self._scores.tolist(), mergeable.tolist(), self._cache)
            name = names.__getitem__
            merges = list(zip(map(name, rules[:, 0].tolist()), map(name, rules[:, 1].tolist()), strict=True))
            unknown = next((names[i] for i in self._of_type(UNKNOWN)), None)
            backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, byte_fallback=True))
            backend.normalizer = normalizers.Replace(" ", "▁")
        else:
            if not isinstance(self._merges, list):
                raise BadFileError(self._source, "tokenizer.ggml.merges is missing")
            pairs = [tuple(m.split(" ", 1)) for m in self._merges]
            known = [p for p in pairs if len(p) == 2 and p[0] in vocab and p[1] in vocab and p[0] + p[1] in vocab]
            backend = Backend(models.BPE(vocab=vocab, merges=known, ignore_merges=self._pre in ("llama-bpe", "llama3")))
            from tokenizers import Regex

            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(_PRE.get(self._pre, _GPT2)), behavior="isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        atoms = [
            AddedToken(names[i].replace("▁", " ") if self.kind == "llama" else names[i], normalized=False)
            for i in atom_ids
        ]
        self._atoms_keep_ids(backend, atoms)
        return backend

    def _atoms_keep_ids(self, backend: Any, atoms: list[Any]) -> None:
        backend.add_tokens(atoms)
        if backend.get_vocab_size(with_added_tokens=True) > len(self.pieces):
            raise BadFileError(self._source, "a user-defined token does not map to its own id")


def _utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
