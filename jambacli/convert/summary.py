"""The Summary of a Hugging Face checkpoint directory, from its headers and JSON files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from jambacli.convert.chat_templates import chat_templates
from jambacli.convert.hf_checkpoint import Checkpoint
from jambacli.convert.model_card import general_metadata
from jambacli.convert.tensor_names import plan, used_tensors, with_own_head
from jambacli.convert.to_gguf import check_config
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
    source = folder / "config.json"
    with Checkpoint.open(folder, lambda values: check_config(values, source)) as checkpoint:
        config = with_own_head(JambaConfig.from_hf(checkpoint.config, source), checkpoint, folder)
        rows = []
        for planned in plan(config, used_tensors(checkpoint), folder):
            kinds = {piece.tensor.dtype.lower() for piece in planned.pieces}
            nbytes = sum(piece.nbytes for piece in planned.pieces)
            if kinds:
                rows.append((planned.name, count(planned.shape), "+".join(sorted(kinds)), nbytes))
        files = sorted({tensor.path for tensor in checkpoint.tensors.values()})
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
            file_type=kinds_by_bytes.most_common(1)[0][0].upper(),
            params=sum(group.params for group in groups),
            active_params=config.active_params(),
            weight_bytes=sum(group.nbytes for group in groups),
            file_bytes=sum(path.stat().st_size for path in files),
            groups=groups,
            vocabulary=_vocabulary(folder, checkpoint.config, config),
            template=describe_template(chat_templates(folder).get("default")),
            about=describe_origin(about),
            parts=[(clean(path.name), path.stat().st_size) for path in files],
            notes=["it is converted once, when it is first used; jamba convert makes a .gguf to keep"],
        )


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
