"""GGUF's tokenizer.* metadata from a checkpoint's tokenizer files.

Pieces, scores and types come from tokenizer.model where it agrees with tokenizer.json, otherwise from tokenizer.json.
tokenizer_config.json, special_tokens_map.json, config.json and generation_config.json say which pieces are special.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jambacli.convert.hf_checkpoint import read_json
from jambacli.convert.sentencepiece import SentencePieceModel, read_sentencepiece
from jambacli.convert.tokenizer_json import AddedToken, TokenizerJson, read_tokenizer_json
from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.values import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_ROWS = 1 << 22
ADDED_SCORE, UNUSED_SCORE, UNMERGED_SCORE = -1000.0, -10000.0, -1e9
EOM_ID = "tokenizer.ggml.eom_token_id"
# End-of-turn tokens of Jamba's chat formats, for checkpoints that do not name theirs.
_TURN_ENDS = ("<|eom|>", "<|im_end|>", "<|eot_id|>")
Rows = list[tuple[str, Any, str]]

logger = logging.getLogger(__name__)


@dataclass
class Vocabulary:
    """The pieces by id, with their scores and GGUF types, and the tokenizer's settings.

    ``kind`` is "llama" (SentencePiece BPE) or "gpt2" (byte-level BPE, which has ``merges`` and no scores). ``add_bos`` and
    ``ids`` ("bos", "eos", "unk", "pad") apply where tokenizer_config.json does not say.
    """

    kind: str
    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    add_space_prefix: bool = False
    add_bos: bool = True
    ids: dict[str, int] = field(default_factory=dict)

    def id_of(self, text: str) -> int | None:
        """The id of the piece ``text``, or None."""
        try:
            return self.pieces.index(text)
        except ValueError:
            return None


def tokenizer_metadata(folder: Path, config: Mapping[str, Any], rows: int, template: str | None) -> Rows:
    """All tokenizer.ggml.* keys for the checkpoint in ``folder``, as (key, value, GGUF type).

    ``rows`` is the number of embedding rows: a smaller vocabulary is padded with unused pieces. ``config`` is config.json.
    The chat ``template`` is searched for the token that ends a turn. JambaError without a tokenizer, BadFileError for a
    damaged one.
    """
    files = _TokenizerFiles(folder, config)
    vocab = read_vocabulary(folder, files.settings)
    _fit(vocab, rows, folder)
    out: Rows = [
        (keys.TOKENIZER_MODEL, vocab.kind, "str"),
        (keys.TOKENIZER_PRE, vocab.pre, "str"),
        (keys.TOKENS, vocab.pieces, "arr[str]"),
    ]
    if vocab.kind == "llama":
        out.append((keys.SCORES, vocab.scores, "arr[f32]"))
    out.append((keys.TOKEN_TYPES, vocab.types, "arr[i32]"))
    if vocab.kind == "gpt2":
        out.append((keys.MERGES, vocab.merges, "arr[str]"))
    ids = _special_ids(vocab, files, template)
    out += [(key, i, "u32") for key, i in ids.items()]
    add_bos, add_eos = files.settings.get("add_bos_token"), files.settings.get("add_eos_token")
    add_bos = add_bos if isinstance(add_bos, bool) else vocab.add_bos
    out += [
        (keys.ADD_BOS, add_bos and keys.BOS_ID in ids, "bool"),
        (keys.ADD_EOS, add_eos is True, "bool"),
        (keys.ADD_SPACE_PREFIX, vocab.add_space_prefix, "bool"),
    ]
    return out


def read_vocabulary(folder: Path, settings: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of ``folder``'s tokenizer.model or tokenizer.json; ``settings`` is tokenizer_config.json."""
    model_path, json_path = folder / "tokenizer.model", folder / "tokenizer.json"
    model = read_sentencepiece(model_path) if model_path.is_file() else None
    data = read_tokenizer_json(json_path) if json_path.is_file() else None
    if model is None and data is None:
        raise JambaError(f"{folder}: there is no tokenizer (tokenizer.model or tokenizer.json) next to the weights")
    if model is not None and data is not None and (problem := _disagreement(model, data)):
        # transformers loads tokenizer.json; tokenizer.model may be left over from a base model.
        logger.warning("%s: tokenizer.model and tokenizer.json differ (%s); using tokenizer.json", folder, problem)
        model = None
    vocab = _from_sentencepiece(model) if model is not None else _from_json(data, settings)  # type: ignore[arg-type]
    if model.normalizes if model is not None else data is not None and data.normalizes:
        logger.warning(
            "%s: the tokenizer normalizes text first, which GGUF cannot express; some ids may differ", folder
        )
    added: list[AddedToken] = []
    if data is not None:
        added, vocab.add_bos = list(data.added), data.starts_with is not None
    _add_tokens(vocab, added + _added_elsewhere(folder, settings), folder)
    _add_tokens(vocab, _named_special(vocab, settings), folder)
    return vocab


def _disagreement(model: SentencePieceModel, data: TokenizerJson) -> str | None:
    if data.kind != "llama":
        return "one is SentencePiece, the other byte-level"
    for i, (piece, kind) in enumerate(zip(model.pieces, model.types, strict=True)):
        if kind in (NORMAL, BYTE) and data.pieces.get(i, piece) != piece:
            return f"id {i} is {shown(piece)} and {shown(data.pieces[i])}"
    return None


def _from_sentencepiece(model: SentencePieceModel) -> Vocabulary:
    ids = {"unk": model.unk_id, "bos": model.bos_id, "eos": model.eos_id, "pad": model.pad_id}
    return Vocabulary(
        kind="llama",
        pieces=list(model.pieces),
        scores=list(model.scores),
        types=list(model.types),
        add_space_prefix=model.add_dummy_prefix,
        ids={name: i for name, i in ids.items() if 0 <= i < len(model.pieces)},
    )


def _from_json(data: TokenizerJson, settings: Mapping[str, Any]) -> Vocabulary:
    vocab = Vocabulary(data.kind, add_space_prefix=data.add_space_prefix)
    if data.pre is None:
        logger.warning("GGUF has no name for how this byte-level tokenizer splits text; some ids may differ")
    vocab.pre = data.pre or "default"
    unknown = {data.unknown, _text_of(settings.get("unk_token"))}
    scores = data.scores()
    for i in range(max(data.pieces, default=-1) + 1):
        piece = data.pieces.get(i)
        if piece is None:
            _append_unused(vocab)
            continue
        kind = UNKNOWN if piece in unknown else BYTE if data.is_byte(piece) else NORMAL
        # A piece of one character needs no merge, whatever its score; text never becomes any other unmerged piece.
        vocab.pieces.append(piece)
        vocab.types.append(kind)
        vocab.scores.append(scores.get(piece, UNMERGED_SCORE) if kind == NORMAL else 0.0)
    if data.kind == "gpt2":
        vocab.merges = [f"{left} {right}" for left, right in data.merges]
    return vocab


def _added_elsewhere(folder: Path, settings: Mapping[str, Any]) -> list[AddedToken]:
    """Tokens that added_tokens.json and tokenizer_config.json's added_tokens_decoder add to the vocabulary."""
    added: list[AddedToken] = []
    decoder = settings.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        if len(key) < 10 and key.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            added.append(AddedToken(int(key), entry["content"], bool(entry.get("special"))))
    if (folder / "added_tokens.json").is_file():
        known = {token.id for token in added}
        for text, i in read_json(folder / "added_tokens.json").items():
            if type(i) is int and i >= 0 and i not in known:
                added.append(AddedToken(i, text, False))
    return added


def _named_special(vocab: Vocabulary, settings: Mapping[str, Any]) -> list[AddedToken]:
    """Pieces of the vocabulary that tokenizer_config.json names as special, without ids."""
    named = [_text_of(settings.get(f"{name}_token")) for name in ("bos", "eos", "pad")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key)
        more = list(more.values()) if isinstance(more, dict) else more
        named += [_text_of(text) for text in more] if isinstance(more, list) else []
    ids = {piece: i for i, piece in enumerate(vocab.pieces)}
    return [AddedToken(ids[text], text, True) for text in named if text in ids]


def _add_tokens(vocab: Vocabulary, added: list[AddedToken], folder: Path) -> None:
    """Add tokens: new ids are appended, normal pieces take the type of the added token."""
    for token in added:
        if token.id >= len(vocab.pieces) + 65536:
            raise BadFileError(
                folder, f"added token {shown(token.text)} has the id {token.id}, far beyond the vocabulary"
            )
        while token.id >= len(vocab.pieces):
            _append_unused(vocab)
        kind, same = vocab.types[token.id], vocab.pieces[token.id] == token.text
        if kind in (UNKNOWN, BYTE) or (same and kind in (CONTROL, USER_DEFINED)):
            continue
        if kind == NORMAL and not same:
            piece, added_as = shown(vocab.pieces[token.id]), shown(token.text)
            raise BadFileError(folder, f"id {token.id} is {piece} in the vocabulary, but {added_as} as an added token")
        vocab.pieces[token.id] = token.text
        vocab.types[token.id] = CONTROL if token.special else USER_DEFINED
        vocab.scores[token.id] = ADDED_SCORE if kind == UNUSED else 0.0


def _append_unused(vocab: Vocabulary) -> None:
    vocab.pieces.append(f"[PAD{len(vocab.pieces)}]")
    vocab.scores.append(UNUSED_SCORE)
    vocab.types.append(UNUSED)


def _fit(vocab: Vocabulary, rows: int, folder: Path) -> None:
    """Pad the vocabulary to the embedding's rows; BadFileError where it has more pieces, or a piece twice."""
    if rows > MAX_ROWS:
        raise UnsupportedError(f"{folder}: the embedding has {rows} rows; at most {MAX_ROWS} are supported")
    if len(vocab.pieces) > rows:
        raise BadFileError(
            folder, f"the tokenizer has {len(vocab.pieces)} pieces, but the embedding has only {rows} rows"
        )
    while len(vocab.pieces) < rows:
        _append_unused(vocab)
    if len(set(vocab.pieces)) < rows:
        first: dict[str, int] = {}
        for i, piece in enumerate(vocab.pieces):
            if first.setdefault(piece, i) != i:
                raise BadFileError(folder, f"the tokenizer has {shown(piece)} twice, as ids {first[piece]} and {i}")


class _TokenizerFiles:
    """The JSON files that say which pieces are special; each may be missing."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.config = config
        self.settings = _optional_json(folder / "tokenizer_config.json")
        self.special_map = _optional_json(folder / "special_tokens_map.json")
        self.generation = _optional_json(folder / "generation_config.json")

    def token_text(self, name: str) -> str | None:
        """The text of the piece called ``bos_token``, ``eos_token`` ..."""
        sources = [self.settings, self.special_map]
        if "added_tokens_decoder" not in self.settings:  # an older tokenizer: transformers lets the map decide
            sources.reverse()
        return _text_of(sources[0].get(name)) or _text_of(sources[1].get(name))

    def has_none(self, name: str) -> bool:
        """Whether the tokenizer is said to have no such piece, which transformers believes whatever config.json says."""
        return name in self.settings and self.settings[name] is None and self.token_text(name) is None

    def stop_ids(self) -> list[int]:
        """Every id that ends generation, generation_config.json's first."""
        return [i for source in (self.generation, self.config) for i in _ids_of(source.get("eos_token_id"))]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text_of(value: Any) -> str | None:
    """The text of a special token, which tokenizer_config.json stores as a string or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _ids_of(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int and i >= 0]


def _special_ids(vocab: Vocabulary, files: _TokenizerFiles, template: str | None) -> dict[str, int]:
    """GGUF's *_token_id keys: from the tokenizer's JSON files first, then from config.json, then from tokenizer.model."""
    found: dict[str, int] = {}
    for name, key in (
        ("bos", keys.BOS_ID),
        ("eos", keys.EOS_ID),
        ("unk", keys.UNKNOWN_ID),
        ("pad", keys.PADDING_ID),
    ):
        if name in ("bos", "pad") and files.has_none(f"{name}_token"):
            continue
        text = files.token_text(f"{name}_token")
        candidates = [vocab.id_of(text)] if text else []
        candidates += _ids_of(files.config.get(f"{name}_token_id"))[:1]
        candidates += _ids_of(files.generation.get(f"{name}_token_id"))[:1]
        candidates.append(vocab.ids.get(name))
        value = next((i for i in candidates if i is not None and i < len(vocab.pieces)), None)
        if value is not None:
            found[key] = value
    for name, key in (("sep", keys.SEPARATOR_ID), ("cls", keys.CLS_ID), ("mask", keys.MASK_ID)):
        # A model has no use for these, but its chat template may name them.
        text = files.token_text(f"{name}_token")
        if text and (value := vocab.id_of(text)) is not None:
            found[key] = value
    stops = [i for i in dict.fromkeys(files.stop_ids()) if i != found.get(keys.EOS_ID) and i < len(vocab.pieces)]
    if not stops and template:
        ends = (vocab.id_of(text) for text in _TURN_ENDS if text in template)
        stops = [i for i in ends if i is not None and i != found.get(keys.EOS_ID)][:1]
    # The id in the template ends a turn; GGUF has a key for one more (eom).
    stops.sort(key=lambda i: not (template and vocab.pieces[i] in template))
    for key, i in zip((keys.EOT_ID, EOM_ID), stops, strict=False):
        found[key] = i
    if len(stops) > 2:
        logger.warning(
            "generation stops at %d ids, but GGUF has keys for three; left out: %s", len(stops) + 1, stops[2:]
        )
    return found
