"""The Summary of a Hugging Face checkpoint directory, from its headers and JSON files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from jambacli.convert.chat_templates import chat_templates
from jambacli.convert.hf_checkpoint import DTYPE_BYTES, StoredTensor
from jambacli.convert.model_card import general_metadata
from jambacli.convert.quantized.matrices import DequantizedTensor
from jambacli.convert.source import Source, open_source
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.summary import (
    Special,
    Summary,
    Vocabulary,
    clean,
    count,
    describe_origin,
    describe_template,
    group_tensors,
)
from jambacli.model.config import JambaConfig
from jambacli.units import format_count

_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
_SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "pad_token_id"}


def summarize_checkpoint(folder: Path) -> Summary:
    """The summary of the HF checkpoint in ``folder``; JambaError where it is not a valid Jamba checkpoint."""
    with open_source(folder, to_convert=False) as source:
        checkpoint, config = source.checkpoint, source.config
        rows, own_type = [], source.type
        for planned in source.planned:
            kinds = {_kind(piece.tensor, own_type) for piece in planned.pieces}
            nbytes = sum(_nbytes(piece.tensor, piece.nbytes, own_type) for piece in planned.pieces)
            if kinds:
                rows.append((planned.name, count(planned.shape), "+".join(sorted(kinds)), nbytes))
        label = format_count(config.params())
        about = {
            key: value for key, value, _ in general_metadata(folder, checkpoint.config, name=None, size_label=label)
        }
        groups = group_tensors(rows)
        kinds_by_bytes: Counter[str] = Counter()
        for _, _, kind, nbytes in rows:
            kinds_by_bytes[kind] += nbytes
        return Summary(
            name=clean(about.get(keys.NAME)) or clean(folder.name),
            path=folder,
            container="Hugging Face checkpoint",
            architecture=keys.ARCH,
            config=config,
            file_type=kinds_by_bytes.most_common(1)[0][0].upper().replace(" FROM ", " from "),
            params=sum(group.params for group in groups),
            active_params=config.active_params(),
            weight_bytes=sum(group.nbytes for group in groups),
            file_bytes=sum(path.stat().st_size for path in source.files),
            groups=groups,
            vocabulary=_vocabulary(folder, checkpoint.config, config),
            template=describe_template(chat_templates(folder).get("default")),
            about=describe_origin(about),
            parts=[(clean(path.name), path.stat().st_size) for path in source.files],
            notes=[
                *_quantization(source),
                "it is converted once, when it is first used; jamba convert makes a .gguf to keep",
            ],
        )


def _kind(tensor: StoredTensor, own_type: str) -> str:
    return f"{own_type} from {_short(tensor)}" if isinstance(tensor, DequantizedTensor) else tensor.dtype.lower()


def _short(tensor: DequantizedTensor) -> str:
    """ "int4" of "int4, groups of 128"."""
    return tensor.layout.how.split(",")[0]


def _nbytes(tensor: StoredTensor, nbytes: int, own_type: str) -> int:
    """The bytes of a piece in the file that the checkpoint is converted to, which is what takes memory."""
    if not isinstance(tensor, DequantizedTensor):
        return nbytes
    return nbytes // DTYPE_BYTES[tensor.dtype] * DTYPE_BYTES[own_type.upper()]


def _quantization(source: Source) -> list[str]:
    """One note on how the checkpoint is quantized, if it is."""
    if source.scheme is None:
        return []
    found = [tensor for tensor in source.checkpoint.tensors.values() if isinstance(tensor, DequantizedTensor)]
    ways = Counter(tensor.layout.how for tensor in found).most_common()
    listed = "; ".join(how if len(ways) == 1 else f"{how} ({n} weights)" for how, n in ways[:4])
    listed += f"; and {len(ways) - 4} other ways" if len(ways) > 4 else ""
    return [
        f"{len(found):,} weights are quantized by {source.scheme.method}: {listed}; converting dequantizes them to "
        f"{source.type}, the sizes here"
    ]


def _vocabulary(folder: Path, values: dict[str, Any], config: JambaConfig) -> Vocabulary | None:
    """From the tokenizer files' names and config.json, without reading the tokens."""
    found = [name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        return None
    special = []
    for role, key in _SPECIAL.items():
        id = values.get(key)
        if isinstance(id, int) and not isinstance(id, bool):
            special.append(Special(role, id, ""))
    return Vocabulary("", " and ".join(found), config.vocab_size, special, None, None)
