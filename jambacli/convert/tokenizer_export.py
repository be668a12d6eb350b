"""A checkpoint's tokenizer files from the vocabulary in a GGUF file: tokenizer.json, tokenizer_config.json, chat templates.

A GGUF file of a SentencePiece model has pieces and scores but no merges; they are computed (``jambacli.text.merges``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jambacli.convert.chat_templates import NAMES
from jambacli.gguf import jamba_metadata as keys
from jambacli.text.tokenizer import CONTROL, UNKNOWN, USER_DEFINED, Tokenizer

_FILE_NAME = re.compile(r"[0-9A-Za-z_]{1,64}")


def tokenizer_files(metadata: Mapping[str, Any], source: object, context: int) -> dict[str, str]:
    """The text of each file by its name below the checkpoint's directory; none where the GGUF has no tokenizer.

    ``context``: the model's context in tokens. Raises BadFileError, naming ``source``, for a damaged vocabulary.
    """
    if metadata.get(keys.TOKENIZER_MODEL) in (None, "", "none", "no_vocab"):
        return {}
    tokenizer = Tokenizer(metadata, source)
    files = {"tokenizer.json": json.dumps(_tokenizer_json(tokenizer), ensure_ascii=False) + "\n"}
    templates = _templates(metadata)
    settings = _settings(tokenizer, metadata, context)
    files["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    for name, text in templates.items():
        files["chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"] = text
    return files


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    from tokenizers import AddedToken, decoders, normalizers, processors
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(tokenizer.library_tokenizer().to_str())
    pieces, types = tokenizer.pieces, tokenizer.types
    for i, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        # In the vocabulary's order: the library numbers tokens that it does not know in the order in which they come.
        if kind in (CONTROL, UNKNOWN) and backend.token_to_id(piece) == i:
            backend.add_special_tokens([AddedToken(piece, normalized=False, special=True)])
        elif kind == USER_DEFINED and tokenizer.is_marker(i) and backend.token_to_id(piece) == i:
            backend.add_tokens([AddedToken(piece, normalized=False)])
    steps: list[Any] = []
    if tokenizer.kind == "llama":
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if tokenizer.add_space_prefix:
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            steps.append(decoders.Strip(" ", 1, 0))
        backend.decoder = decoders.Sequence(steps)
    else:
        backend.decoder = decoders.ByteLevel()
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        bos = pieces[tokenizer.bos_id]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_id)]
        )
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def _settings(tokenizer: Tokenizer, metadata: Mapping[str, Any], context: int) -> dict[str, Any]:
    """tokenizer_config.json."""
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": metadata.get(keys.ADD_EOS) is True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    special = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "unk": tokenizer.unk_id,
        "pad": tokenizer.pad_id,
        "sep": tokenizer.sep_id,
        "cls": tokenizer.cls_id,
        "mask": tokenizer.mask_id,
    }
    for name, i in special.items():
        if i is not None:
            settings[f"{name}_token"] = tokenizer.pieces[i]
        elif name in ("bos", "pad"):
            settings[f"{name}_token"] = None  # else the one of config.json would be taken
    return settings


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    if isinstance(text := metadata.get(keys.CHAT_TEMPLATE), str):
        found["default"] = text
    names = metadata.get(NAMES)
    for name in names if isinstance(names, list) else ():
        text = metadata.get(f"{keys.CHAT_TEMPLATE}.{name}") if isinstance(name, str) else None
        if isinstance(text, str) and _FILE_NAME.fullmatch(name):
            found[name] = text
    return found
