"""A made-up vocabulary of any size with a chat template, for random models that read and write text.

Its pieces are joined from shorter ones like those of a trained BPE, so encoding costs as much as with a real vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jambacli.gguf import jamba_metadata as keys

if TYPE_CHECKING:
    from jambacli.text.tokenizer import Tokenizer

_MARKERS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<documents>", "</documents>"]
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
_LONGEST = 10


def pieces(size: int, seed: int = 0) -> list[str]:
    """``size`` different pieces: a space mark, letters and other characters, then joins of two earlier pieces."""
    rng = random.Random(seed)
    out = ["▁", *_LETTERS, *(chr(c) for c in range(33, 127) if chr(c) not in _LETTERS), "\n"]
    fixed = ("user", "assistant", "system")
    for word in fixed:
        out += [word[:n] for n in range(2, len(word) + 1) if word[:n] not in out]
    known = set(out)
    starts, ends = ["▁", *_LETTERS], [*_LETTERS]
    while len(out) < size:
        joined = rng.choice(starts) + rng.choice(ends)
        if joined not in known and len(joined) <= _LONGEST:
            known.add(joined)
            out.append(joined)
            starts.append(joined)
            if len(joined) < 4 and "▁" not in joined:
                ends.append(joined)
    return out[:size]


def chat_vocabulary(size: int) -> list[tuple[str, Any, str]]:
    """The tokenizer part of a GGUF's metadata, as (key, value, kind), for ``size`` tokens, at least 400."""
    tokens = ["<unk>", "<|startoftext|>", "<|endoftext|>", *_MARKERS, *(f"<0x{b:02X}>" for b in range(256))]
    types = [2, 3, 3, *[3] * len(_MARKERS), *[6] * 256]
    made = pieces(size - len(tokens))
    scores = [0.0] * len(tokens) + [-float(i) for i in range(len(made))]
    metadata: list[tuple[str, Any, str]] = [
        (keys.TOKENIZER_MODEL, "llama", "str"),
        ("tokenizer.ggml.tokens", tokens + made, "arr[str]"),
        ("tokenizer.ggml.scores", scores, "arr[f32]"),
        ("tokenizer.ggml.token_type", types + [1] * len(made), "arr[i32]"),
        ("tokenizer.ggml.add_bos_token", True, "bool"),
        ("tokenizer.ggml.add_space_prefix", False, "bool"),
        ("tokenizer.chat_template", _TEMPLATE, "str"),
    ]
    ids = {"unknown": 0, "bos": 1, "eos": 2, "eot": tokens.index("<|im_end|>")}
    return metadata + [(f"tokenizer.ggml.{name}_token_id", token, "u32") for name, token in ids.items()]


def words(rng: random.Random, count: int, tokens: Sequence[str], tokenizer: Tokenizer) -> str:
    """Text of about ``count`` tokens: words of the vocabulary ``tokens`` with spaces between them."""
    known = [t for t in tokens if t.startswith("▁") and len(t) > 3] or ["▁a"]
    text = [rng.choice(known).replace("▁", "") for _ in range(count)]
    size = len(tokenizer.encode(" ".join(text)))
    return " ".join(text[: max(count * count // max(size, 1), 1)])
