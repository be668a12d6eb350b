"""Log probabilities of a reference model in a file, in the format that llama-perplexity saves and compares with.

Little-endian: the magic ``_logits_``; i32 tokens per window (n_ctx), tokens in the vocabulary (n_vocab) and windows; the
token ids, i32 [windows, n_ctx]; then for each window the log probabilities that follow its tokens n_ctx // 2 up to, but
without, the last one. Each of these rows holds two f32, a scale and the smallest log probability, and one u16 per token of
the vocabulary, rounded up to an even number: log p = scale * u16 + smallest. What is less probable than exp(-16) times the
most probable token is stored as the smallest.

A window starts from an empty state, and its first token is replaced by BOS where the vocabulary adds one; the file holds the
token that was replaced.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from jambacli.errors import BadFileError, JambaError
from jambacli.evaluation.perplexity import Window, scored_pieces
from jambacli.files import atomic_write, open_regular
from jambacli.progress import Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    import torch

    from jambacli.api import Jamba

MAGIC = b"_logits_"
_HEADER = struct.Struct("<8s3i")
_MOST_CTX = 1 << 24
_MOST_VOCAB = 1 << 24
#: Nats below the most probable token that the 16 bits cover.
_RANGE = 16.0


def _row_values(n_vocab: int) -> int:
    """16-bit values per row: a scale, a minimum, and the vocabulary rounded up to an even number."""
    return 4 + 2 * ((n_vocab + 1) // 2)


@dataclass(frozen=True)
class Chunks:
    """A text in consecutive chunks of ``n_ctx`` token ids, as llama-perplexity cuts it; what is left at the end is unused."""

    ids: list[list[int]]
    n_ctx: int

    def windows(self, bos: int | None) -> list[Window]:
        """The chunks as windows: the second half is scored, without the first token of it; ``bos``: replaces the first token,
        None for a vocabulary that adds none."""
        return [Window([bos, *ids[1:]] if bos is not None else ids, self.n_ctx // 2 + 1) for ids in self.ids]


def chunks_of(model: Jamba, text: str, ctx: int, max_tokens: int | None = None) -> Chunks:
    """Cut ``text`` as llama-perplexity cuts a file: BOS, the tokens without a last line break, whole chunks of ``ctx``.

    ``max_tokens``: use at most this many. Raises JambaError for a text that is shorter than a chunk.
    """
    if ctx < 4:
        raise JambaError("leaves nothing to score; give at least 4", field="ctx", value=ctx)
    tokenizer = model.tokenizer
    bos = bos_of(model)
    ids = [] if bos is None else [bos]
    ids += tokenizer.encode(text.removesuffix("\n"))
    n = min(len(ids), len(ids) if max_tokens is None else max_tokens) // ctx
    if n < 1:
        raise JambaError(
            f"the text has {len(ids)} tokens, fewer than one window of {ctx}", remedy="use a smaller {ctx}"
        )
    return Chunks([ids[i * ctx : (i + 1) * ctx] for i in range(n)], ctx)


def bos_of(model: Jamba) -> int | None:
    """The token that begins every window, None for a vocabulary that adds none."""
    return model.tokenizer.bos_id if model.tokenizer.add_bos else None


class BaseLogits:
    """An opened file of log probabilities. Attributes: ``path``, ``n_vocab``, ``chunks``.

    Raises JambaError where it cannot be read, BadFileError, naming the field, where it is damaged or another kind of file.
    """

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = Path(path)
        try:
            with open_regular(self.path) as file:
                size = file.seek(0, 2)
                file.seek(0)
                head = file.read(_HEADER.size)
                if len(head) < _HEADER.size or not head.startswith(MAGIC):
                    raise BadFileError(path, "not a file of log probabilities: it does not begin with _logits_")
                _, n_ctx, n_vocab, n_chunk = _HEADER.unpack(head)
                for name, value, most in (("n_ctx", n_ctx, _MOST_CTX), ("n_vocab", n_vocab, _MOST_VOCAB)):
                    if not 4 <= value <= most:
                        raise BadFileError(path, f"damaged: {name} is {value}")
                self.n_vocab, self._rows = n_vocab, n_ctx - 1 - n_ctx // 2
                ids_bytes = 4 * n_ctx * n_chunk
                expected = _HEADER.size + ids_bytes + 2 * self._rows * _row_values(n_vocab) * n_chunk
                if n_chunk < 1 or expected > size:
                    raise BadFileError(
                        path, f"damaged or cut off: {n_chunk} windows take {expected} bytes, it has {size}"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
        ids = np.frombuffer(self._map, "<i4", n_ctx * n_chunk, _HEADER.size).reshape(n_chunk, n_ctx)
        if int(ids.min()) < 0 or int(ids.max()) >= n_vocab:
            raise BadFileError(path, f"damaged: a token id is outside the vocabulary of {n_vocab}")
        self.chunks = Chunks(ids.tolist(), n_ctx)
        self._start = _HEADER.size + ids_bytes

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def log_probabilities(self, window: int, first: int, count: int) -> torch.Tensor:
        """Rows ``first`` to ``first + count`` of a window: float64 [count, n_vocab]. BadFileError for one that is no
        distribution."""
        import numpy as np
        import torch

        values = _row_values(self.n_vocab)
        offset = self._start + 2 * values * (window * self._rows + first)
        raw: np.ndarray = np.frombuffer(self._map, "<u2", count * values, offset).reshape(count, values)
        factors = np.ascontiguousarray(raw[:, :4]).view("<f4")
        scale, least = factors[:, :1], factors[:, 1:]
        if not (np.isfinite(factors).all() and (scale >= 0).all() and (least <= 0).all()):
            raise BadFileError(self.path, f"damaged: a scale of window {window} is not a valid number")
        rows = scale * raw[:, 4 : 4 + self.n_vocab].astype(np.float32) + least
        if float(rows.max()) > 1e-2:
            raise BadFileError(self.path, f"damaged: a probability of window {window} is above 1")
        return torch.from_numpy(rows).double()


def write_base(
    path: Path,
    model: Jamba,
    chunks: Chunks,
    kv_type: str = "f16",
    progress: Progress = no_progress,
) -> None:
    """Write the log probabilities of ``model`` after the chunks' tokens to ``path``, atomically.

    The size is 2 * (n_vocab + 4) bytes per scored token. Raises JambaError for logits that are not finite or a full disk.
    """
    with (
        atomic_write(path, recorded=True) as file,
        progress(f"Reading with {model.name}", len(chunks.ids) * chunks.n_ctx, "tokens") as done,
    ):
        write_header(file, chunks, model.config.vocab_size)
        for window in chunks.windows(bos_of(model)):
            for logits in scored_pieces(model, window, kv_type):
                file.write(encoded(logits, model.name).tobytes())
            done(len(window.ids))


def write_header(file: BinaryIO, chunks: Chunks, n_vocab: int) -> None:
    """Write what precedes the log probabilities."""
    import numpy as np

    file.write(_HEADER.pack(MAGIC, chunks.n_ctx, n_vocab, len(chunks.ids)))
    file.write(np.array(chunks.ids, "<i4").tobytes())


def encoded(logits: torch.Tensor, name: str) -> np.ndarray:
    """Logits float32 [rows, n_vocab] as rows of the file: uint16 [rows, 4 + n_vocab rounded up to even].

    ``name``: of the model, for the JambaError about logits that are not finite.
    """
    import numpy as np

    x = logits.numpy()
    if not np.isfinite(x).all():
        raise JambaError(f"the logits of {name} are not finite; the file is probably damaged")
    most = x.max(-1, keepdims=True)
    least = np.maximum(x.min(-1, keepdims=True), most - np.float32(_RANGE))
    log_sum = np.log(np.exp((x - most).astype(np.float64)).sum(-1, keepdims=True)).astype(np.float32)
    scale = (most - least) / np.float32(65535)
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(scale > 0, np.rint((x - least) / scale), 0)
    out = np.zeros((len(x), _row_values(x.shape[1])), "<u2")
    out[:, :2] = np.ascontiguousarray(scale, "<f4").view("<u2")
    out[:, 2:4] = np.ascontiguousarray(least - most - log_sum, "<f4").view("<u2")
    out[:, 4 : 4 + x.shape[1]] = np.clip(levels, 0, 65535).astype("<u2")
    return out


def same_text(base: BaseLogits, chunks: Sequence[Chunks]) -> None:
    """Compare texts with the one that a file was made from; JambaError where they differ."""
    ids = [row for part in chunks for row in part.ids]
    if any(part.n_ctx != base.chunks.n_ctx for part in chunks) or ids != base.chunks.ids:
        raise JambaError(
            f"{base.path} was made from another text, in another order or with other windows; leave the texts out"
        )
