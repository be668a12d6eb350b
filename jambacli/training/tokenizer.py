"""Trains the demo model's tokenizer and encodes samples with it.

It is of the Jamba 1.5 family's kind: BPE with byte fallback, no space prefix, single digits and Jamba's markers. Pieces never
cross a space, a line break, a digit or punctuation, so words can be encoded one by one and cached.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jambacli.data.reports import Span

PAD, BOS, EOS, UNKNOWN = "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unk|>"
MARKERS = [
    PAD, BOS, EOS, UNKNOWN, "<|bom|>", "<|eom|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>",
    "<documents>", "</documents>", "<tool_definitions>", "</tool_definitions>", "<active_output_modes>",
    "</active_output_modes>", "<citations>", "</citations>", "<tool_calls>", "</tool_calls>",
]  # fmt: skip
_WORDS = re.compile(r" ?[^\s]+|\s")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """The content of a tokenizer.json with ``vocab_size`` entries, trained on ``texts``."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|[0-9]|[^\w\s]"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    printable = [chr(c) for c in range(33, 127)] + ["\n", "▁"]
    reserved = len(MARKERS) + 256
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - reserved,
            initial_alphabet=printable,
            limit_alphabet=len(printable),
            show_progress=False,
        ),
    )
    learnt = json.loads(bpe.to_str())["model"]
    order = sorted(learnt["vocab"], key=learnt["vocab"].get)
    pieces = [*MARKERS, *(f"<0x{b:02X}>" for b in range(256)), *order]
    merges, made = [], set()
    for pair in learnt["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        if left + right not in made:  # keep one merge per piece, so that scores can express the order
            merges.append([left, right])
            made.add(left + right)
    special = [
        {
            "id": i,
            "content": m,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, m in enumerate(MARKERS)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": UNKNOWN, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": True, "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": merges,
        },
    }  # fmt: skip


class Encoder:
    """Encodes samples as ids, with the loss weight and the document number of each id."""

    def __init__(self, tokenizer_json: Path) -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_file(str(tokenizer_json))
        self._words: dict[str, list[int]] = {}
        self.markers = {m: i for i, m in enumerate(MARKERS)}
        self.vocab_size: int = self._backend.get_vocab_size()

    def text(self, text: str) -> list[int]:
        """The ids of a text without markers."""
        ids: list[int] = []
        for word in _WORDS.findall(text):
            known = self._words.get(word)
            if known is None:
                known = self._backend.encode(word, add_special_tokens=False).ids
                if len(self._words) < 200_000:
                    self._words[word] = known
            ids += known
        return ids

    def sample(self, spans: Sequence[Span], other_weight: float) -> tuple[list[int], list[float], list[str]]:
        """Ids, loss weights and document numbers of a sample, bos first. A weight is 1 for tokens to be learnt, else
        ``other_weight``."""
        ids, weights, document_ids = [self.markers[BOS]], [0.0], [""]
        for span in spans:
            new = [self.markers[span.text]] if span.marker else self.text(span.text)
            ids += new
            weights += [1.0 if span.learn else other_weight] * len(new)
            document_ids += [span.document_id] * len(new)
        return ids, weights, document_ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, markers included."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))
