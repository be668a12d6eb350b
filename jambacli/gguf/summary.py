"""The Summary of a model that `jamba show` prints, and how to get it from a GGUF file.

Only headers and metadata are read. Control characters are removed from all text, because it goes to a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.values import Metadata
from jambacli.model.config import JambaConfig
from jambacli.units import counted, format_count

# llama.cpp's names of general.file_type.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

GROUPS = ("embedding", "mamba", "attention", "experts", "mlp", "norms", "output", "other")
_GROUP_PATTERNS = [
    ("embedding", re.compile(r"token_embd\.")),
    ("output", re.compile(r"output\.weight")),
    ("norms", re.compile(r".*_norm\.weight")),
    ("mamba", re.compile(r"blk\.\d+\.ssm_")),
    ("attention", re.compile(r"blk\.\d+\.attn_")),
    ("experts", re.compile(r"blk\.\d+\.ffn_(?:gate_inp|\w+_exps)\b")),
    ("mlp", re.compile(r"blk\.\d+\.ffn_")),
]
_SPECIAL = {
    "bos": keys.BOS_ID, "eos": keys.EOS_ID, "eot": keys.EOT_ID, "unk": keys.UNKNOWN_ID, "pad": keys.PADDING_ID,
}  # fmt: skip
_TOKENIZERS = {"llama": "SentencePiece", "gpt2": "byte-level BPE"}
MAX_TEXT = 200


@dataclass(frozen=True)
class Group:
    """The tensors of one kind; ``formats`` counts them by format name."""

    name: str
    tensors: int
    params: int
    nbytes: int
    formats: dict[str, int]


@dataclass(frozen=True)
class Special:
    """A special token: its role ("bos"), its id and its piece ("" where the vocabulary lacks it)."""

    role: str
    id: int
    piece: str


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer: its GGUF model name ("llama", "gpt2"), its number of tokens, the special ones, its settings."""

    model: str
    kind: str
    size: int
    special: list[Special]
    add_bos: bool | None
    add_space_prefix: bool | None


@dataclass(frozen=True)
class Template:
    """A chat template: its family, what it supports ("tools", "documents", "thinking"), and why it does not work, if so."""

    family: str
    handles: list[str]
    problem: str | None = None


@dataclass(frozen=True)
class Summary:
    """A model's description. ``weight_bytes`` are those of its tensors, ``file_bytes`` those of all its files."""

    name: str
    path: Path
    container: str
    architecture: str
    config: JambaConfig
    file_type: str | None
    params: int
    active_params: int
    weight_bytes: int
    file_bytes: int
    groups: list[Group]
    vocabulary: Vocabulary | None
    template: Template | None
    about: dict[str, str]
    parts: list[tuple[str, int]]
    notes: list[str]
    #: (format, shape) by GGUF name; empty for an HF checkpoint.
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict, repr=False)

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk per parameter."""
        return self.weight_bytes * 8 / self.params

    @property
    def expert_bytes(self) -> int:
        """Bytes of experts and routers."""
        return sum(group.nbytes for group in self.groups if group.name == "experts")


def summarize(path: Path) -> Summary:
    """The summary of the GGUF file at ``path``, or of the split set that it is a part of.

    Raises JambaError, BadFileError or UnsupportedError, naming file and field, where it is not a valid Jamba model.
    """
    with GGUFFile.open(path) as file:
        config = keys.jamba_config(file.metadata, file.tensors)
        groups = group_tensors(
            (info.name, count(info.shape), info.format.name, info.nbytes) for info in file.tensors.values()
        )
        number = file.metadata.get(keys.FILE_TYPE)
        vocabulary, notes = _vocabulary(file.metadata, config)
        expected = keys.expected_tensors(config).keys()
        # llama.cpp reads these beside NVFP4; the second are for its products of 4-bit activations only.
        factors = {keys.factor_name(name) for name in expected} | {
            name.removesuffix("weight") + "input_scale" for name in expected
        }
        extra = file.tensors.keys() - expected - factors
        if extra:
            notes.append(
                f"{counted(len(extra), 'tensor')} that llama.cpp does not know, such as {clean(min(extra), 60)}"
            )
        return Summary(
            name=clean(file.metadata.get(keys.NAME)) or clean(path.stem),
            path=file.path,
            container=f"GGUF v{file.version}",
            architecture=keys.ARCH,
            config=config,
            file_type=FILE_TYPES.get(number, f"type {number}") if isinstance(number, int) else None,
            params=sum(group.params for group in groups),
            active_params=config.active_params(),
            weight_bytes=sum(group.nbytes for group in groups),
            file_bytes=file.size,
            groups=groups,
            vocabulary=vocabulary,
            template=describe_template(file.metadata.get(keys.CHAT_TEMPLATE)),
            about=describe_origin(file.metadata),
            parts=[(clean(part.name), part.stat().st_size) for part in file.paths],
            notes=notes,
            tensors={name: (info.format.name, tuple(info.shape)) for name, info in file.tensors.items()},
        )


def clean(text: object, limit: int = MAX_TEXT) -> str:
    """``text`` on one line, unprintable characters replaced, at most ``limit`` characters; "" for anything but a str."""
    if not isinstance(text, str):
        return ""
    line = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text[: 4 * limit]).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def count(shape: Iterable[int]) -> int:
    """The number of values in ``shape``: the product of its dimensions."""
    n = 1
    for dim in shape:
        n *= dim
    return n


def group_tensors(tensors: Iterable[tuple[str, int, str, int]]) -> list[Group]:
    """Sum ``(GGUF name, values, format name, bytes)`` rows by kind of tensor, in the order of GROUPS."""
    found: dict[str, Group] = {}
    for name, params, fmt, nbytes in tensors:
        kind = next((kind for kind, pattern in _GROUP_PATTERNS if pattern.match(name)), "other")
        old = found.get(kind, Group(kind, 0, 0, 0, {}))
        formats = {**old.formats, fmt: old.formats.get(fmt, 0) + 1}
        found[kind] = Group(kind, old.tensors + 1, old.params + params, old.nbytes + nbytes, formats)
    return [found[kind] for kind in GROUPS if kind in found]


def describe_template(source: object) -> Template | None:
    """A chat template's family, by the markup in its text, and what it supports, by the variables it reads."""
    if not isinstance(source, str) or not source.strip():
        return None
    if "<|bom|>" in source:
        family = "Jamba 1.5 to 1.7"
    elif "<|im_start|>" in source:
        family = "ChatML"
    else:
        family = "custom"
    marks = {"tools": r"\btools\b", "documents": r"\bdocuments\b", "thinking": r"<think>"}
    return Template(family, [name for name, pattern in marks.items() if re.search(pattern, source)], _fault(source))


def _fault(template: str) -> str | None:
    """Why a chat template does not work, None if it parses."""
    from jambacli.text.template import TemplateError, compiled

    try:
        compiled(template, "")
    except TemplateError as error:
        return clean(error.problem_in_file)
    return None


def describe_origin(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The general.* strings on the model's author, base model and licence, cleaned."""
    about: dict[str, str] = {}
    licence = clean(metadata.get(keys.LICENSE))
    named = clean(metadata.get("general.license.name"))
    if licence or named:
        # The hub writes "other" for a licence that it does not list.
        about["license"] = named if named and licence in ("", "other") else licence
    repo = clean(metadata.get("general.base_model.0.repo_url")).removeprefix("https://huggingface.co/")
    if base := repo or clean(metadata.get("general.base_model.0.name")):
        about["base_model"] = base
    for name in ("organization", "author", "quantized_by", "version"):
        if text := clean(metadata.get(f"general.{name}"), 60):
            about[name] = text
    if source := clean(metadata.get("general.source.repo_url")).removeprefix("https://huggingface.co/"):
        about["source"] = source
    return about


def _vocabulary(metadata: Metadata, config: JambaConfig) -> tuple[Vocabulary | None, list[str]]:
    """The tokenizer's description, and notes on its defects."""
    model = clean(metadata.get(keys.TOKENIZER_MODEL), 40)
    if keys.TOKENS not in metadata or metadata.type_name(keys.TOKENS) != "arr[str]":
        return None, ["the file has no vocabulary, so text cannot be tokenized"]
    size = metadata.count(keys.TOKENS)
    notes, special = [], []
    if size != config.vocab_size:
        notes.append(f"the vocabulary has {size:,} tokens, the embedding {config.vocab_size:,} rows")
    for role, key in _SPECIAL.items():
        id = metadata.get(key)
        if not isinstance(id, int) or isinstance(id, bool):
            continue
        known = 0 <= id < size
        special.append(Special(role, id, clean(metadata.string_at(keys.TOKENS, id), 40) if known else ""))
        if not known:
            notes.append(f"the {role} token {id} is not in the vocabulary")
    switches = [metadata.get(key) for key in (keys.ADD_BOS, keys.ADD_SPACE_PREFIX)]
    add_bos, add_space_prefix = (value if isinstance(value, bool) else None for value in switches)
    kind = _TOKENIZERS.get(model, model or "unknown")
    return Vocabulary(model, kind, size, special, add_bos, add_space_prefix), notes


def size_label(config: JambaConfig) -> str:
    """The parameter count as text, ``51.6B parameters``, and the active ones per token where they are fewer."""
    total, active = format_count(config.params()), format_count(config.active_params())
    return f"{total} parameters" if total == active else f"{total} parameters, {active} active"
