"""Collects an importance matrix: runs a text through a model and sums the squares of the inputs of each weight's columns.

Chunks of tokens, sums and counts are those of llama-imatrix. What is collected so far is kept beside the output in regular
intervals, so that an interrupted run goes on where it was; its result has the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.files import atomic_write, refuse_existing
from jambacli.gguf import jamba_metadata as keys
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from jambacli.kernels.observe import observe
from jambacli.model.attention import Attention
from jambacli.model.jamba import JambaModel
from jambacli.model.moe import MoE
from jambacli.progress import Progress, no_progress
from jambacli.quantize.imatrix import COUNTS, SUMS, Imatrix, imatrix_of, read_legacy
from jambacli.text.tokenizer import Tokenizer

__all__ = ["Sums", "chunks_of", "collect", "merge", "read_sums", "weight_names", "write_gguf", "write_legacy"]

FORMATS = ("gguf", "legacy")
_MEANS = ".in_sum"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
#: Tokens of a chunk, as llama-imatrix has them by default.
CHUNK = 512
# Seconds between two copies of what is collected so far.
_SAVE_EVERY = 30.0
_MAX_PARTIAL = 1 << 31
# Rows of an input that are summed together.
_ROWS = 64
#: An expert that saw fewer tokens is mentioned: its columns' importance is hardly known.
FEW_TOKENS = 64


@dataclass
class Sums:
    """What was collected: for each weight (GGUF name) the sums over its inputs x of x² (``squares``, float64 [experts, n]),
    of x (``sums``, the same shape; absent where a merged file has none) and their number (``counts``, float64 [experts]).

    A plain matrix counts as one expert. ``datasets``: names of the texts. ``chunks``: how many of ``chunk`` tokens.
    """

    squares: dict[str, np.ndarray] = field(default_factory=dict)
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    chunks: int = 0
    chunk: int = CHUNK

    def add(self, name: str, experts: int, index: int, squares: np.ndarray, sums: np.ndarray, count: float) -> None:
        """Add one batch of inputs of expert ``index`` of the weight ``name``."""
        if name not in self.squares:
            self.squares[name] = np.zeros((experts, len(squares)))
            self.sums[name] = np.zeros((experts, len(squares)))
            self.counts[name] = np.zeros(experts)
        self.squares[name][index] += squares
        self.sums[name][index] += sums
        self.counts[name][index] += count

    def few(self, least: float = FEW_TOKENS) -> dict[str, list[tuple[int, float]]]:
        """The experts that saw fewer than ``least`` tokens, as (expert, tokens), by the name of their stack."""
        found = {}
        for name, counts in self.counts.items():
            if len(counts) > 1 and (poor := [(i, float(n)) for i, n in enumerate(counts) if n < least]):
                found[name] = poor
        return found

    def imatrix(self, path: str = "") -> Imatrix:
        """The mean squares, as ``quantize`` takes them."""
        return imatrix_of(path, self.squares, self.counts, tuple(self.datasets), self.chunks)


def weight_names(model: JambaModel) -> dict[int, str]:
    """The GGUF name of every weight that is multiplied with activations, by the address of its bytes."""
    found: dict[int, str] = {}
    if model.output is not model.embedding:
        found[model.output.data.data_ptr()] = keys.OUTPUT
    else:
        found[model.embedding.data.data_ptr()] = keys.TOKEN_EMBD
    for i, layer in enumerate(model.layers):
        mixer, ffn = layer.mixer, layer.ffn
        if isinstance(mixer, Attention):
            parts = {
                "attn_q": mixer.q_proj,
                "attn_k": mixer.k_proj,
                "attn_v": mixer.v_proj,
                "attn_output": mixer.out_proj,
            }
        else:
            parts = {
                "ssm_in": mixer.in_proj,
                "ssm_x": mixer.x_proj,
                "ssm_dt": mixer.dt_proj,
                "ssm_out": mixer.out_proj,
            }
        end = "_exps" if isinstance(ffn, MoE) else ""
        parts |= {f"ffn_gate{end}": ffn.gate, f"ffn_up{end}": ffn.up, f"ffn_down{end}": ffn.down}
        found |= {w.data.data_ptr(): f"blk.{i}.{name}.weight" for name, w in parts.items()}
        if isinstance(ffn, MoE):
            found[ffn.router.data_ptr()] = f"blk.{i}.ffn_gate_inp.weight"
    return found


def chunks_of(
    tokenizer: Tokenizer, texts: Sequence[str], chunk: int = CHUNK, *, markup: bool = False
) -> tuple[list[list[int]], int]:
    """The tokens of the texts, one after the other, in runs of ``chunk``, as llama-imatrix cuts them: the first token of each
    run gives way to bos, and the rest that does not fill a run is left out. And how many tokens the texts have.

    A text shorter than a run becomes one short run. ``markup``: markers such as ``<|eom|>`` in the text become their tokens.
    JambaError where there is nothing to read.
    """
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    ids = list(bos)
    for text in texts:
        ids += tokenizer.encode(text, "all" if markup else "user")
    if len(ids) <= len(bos):
        raise JambaError("the text is empty: there is nothing to collect from")
    whole = len(ids) // chunk
    runs = [ids[i * chunk : (i + 1) * chunk] for i in range(whole)] if whole else [ids]
    return [bos + run[len(bos) :] for run in runs], len(ids)


def collect(
    model: JambaModel,
    chunks: Sequence[Sequence[int]],
    output: Path | None = None,
    *,
    identity: str = "",
    datasets: Sequence[str] = (),
    start: Sums | None = None,
    all_experts: bool = False,
    output_matrix: bool = False,
    kv_type: str = "f16",
    progress: Progress = no_progress,
) -> Sums:
    """Run every chunk (token ids) through ``model`` from an empty state; the sums over all of them.

    ``output``: the file that they are for; beside it, what is collected so far is kept in ``….partial`` and continued from by a
    run with the same ``identity`` (of the model's file), chunks and options. ``start``: sums of earlier texts to add to.
    ``all_experts``: see ``kernels.observe``. ``output_matrix``: collect for the output matrix too. ``kv_type``: of keys and
    values. Raises JambaError for activations that are not finite, naming the weight.
    """
    if not chunks:
        raise JambaError("the text is empty: there is nothing to collect from")
    digest = _digest(identity, chunks, all_experts, output_matrix, kv_type)
    partial = None if output is None else _Partial(output.with_name(f".{output.name}.partial"), digest)
    found, done = partial.read() if partial is not None else (Sums(), 0)
    experts = model.config.n_experts
    latest = _Latest()

    def observer(name: str, x: torch.Tensor, expert: int | None, shares: torch.Tensor | None) -> None:
        if name in (keys.OUTPUT, keys.TOKEN_EMBD) and not output_matrix:
            return
        count = float(len(x)) if shares is None else float(shares.sum())
        with np.errstate(invalid="ignore", over="ignore"):  # _check_finite reports them
            found.add(name, 1 if expert is None else experts, expert or 0, *latest.sums_of(x, shares), count)

    observed = replace(
        model, ops=observe(model.ops, weight_names(model), observer, all_experts=all_experts), decoder=None
    )
    with progress("Collecting", sum(map(len, chunks)), "tokens") as advance:
        advance(sum(map(len, chunks[:done])))
        saved = time.monotonic()
        for number in range(done, len(chunks)):
            ids = torch.tensor(list(chunks[number]))
            state = observed.new_state(len(ids), kv_type)
            for piece in ids.split(model.prefill_chunk):
                observed.forward(piece, state, logits="all" if output_matrix else "none")
                advance(len(piece))
            latest.forget()
            _check_finite(found)
            if partial is not None and time.monotonic() - saved > _SAVE_EVERY:
                partial.write(found, number + 1)
                saved = time.monotonic()
    found.datasets, found.chunks, found.chunk = list(datasets), len(chunks), max(map(len, chunks))
    return found if start is None else merge([start, found])


class _Latest:
    """The sums over the rows of the latest input: several products have the same."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let go of the input."""
        self._given: tuple[torch.Tensor | None, torch.Tensor | None, int] = (None, None, 0)
        self._sums: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0))

    def sums_of(self, x: torch.Tensor, shares: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """The sums of squares and of values, float64 [n], of x float32 [T, n]."""
        seen, seen_shares, version = self._given
        if x is not seen or shares is not seen_shares or x._version != version:
            self._sums, self._given = _sums_over(x, shares), (x, shares, x._version)
        return self._sums


def _sums_over(x: torch.Tensor, shares: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    squares, sums = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    # Few rows at a time stay in the processor's cache; a float32 sum of so few is as exact as one needs.
    step = _ROWS if x.device.type == "cpu" else len(x)
    product = torch.empty(min(step, len(x)), x.shape[1], device=x.device)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        weighted = part if shares is None else part * shares[start : start + step, None]
        squares += torch.mul(weighted, part, out=product[: len(part)]).sum(0).cpu().numpy()
        sums += weighted.sum(0).cpu().numpy()
    return squares, sums


def _check_finite(found: Sums) -> None:
    for name, squares in found.squares.items():  # in the order in which the model computes
        if not np.isfinite(squares).all():
            raise JambaError(f"the inputs of {name} are not finite; the file is probably damaged")


def finish(output: Path) -> None:
    """Remove what ``collect`` has kept beside the output, which is complete."""
    output.with_name(f".{output.name}.partial").unlink(missing_ok=True)


def merge(parts: Sequence[Sums]) -> Sums:
    """The sums over all parts. Raises JambaError, naming the weight, for sums of different models."""
    total = Sums(chunk=parts[0].chunk)
    without = {name for part in parts for name in part.squares if name not in part.sums}
    for part in parts:
        for name, squares in part.squares.items():
            counts = part.counts[name]
            if name not in total.squares:
                total.squares[name], total.counts[name] = squares.copy(), counts.copy()
                if name not in without:
                    total.sums[name] = part.sums[name].copy()
                continue
            mine, theirs = total.squares[name].shape, squares.shape
            # An older file has the experts of a stack in one row, with one count.
            if mine[0] * mine[1] != theirs[0] * theirs[1] or (mine != theirs and 1 not in (mine[0], theirs[0])):
                raise JambaError(f"{name} has {_columns(mine)} in one imatrix and {_columns(theirs)} in another")
            shape = max(mine, theirs)
            total.squares[name] = total.squares[name].reshape(shape) + squares.reshape(shape)
            total.counts[name] = np.broadcast_to(total.counts[name], shape[:1]) + np.broadcast_to(counts, shape[:1])
            if name not in without:
                total.sums[name] = total.sums[name] + part.sums[name]
        total.datasets += part.datasets
        total.chunks += part.chunks
    return total


def _columns(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} columns" if shape[0] == 1 else f"{shape[0]} experts of {shape[1]} columns"


def read_sums(path: Path, chunk: int = CHUNK) -> Sums:
    """The sums in an imatrix file of either format; ``chunk``: the tokens of a chunk, which the older one does not hold.

    Raises JambaError where the file cannot be read, BadFileError naming the field where it is damaged or no imatrix.
    """
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        if not is_gguf:
            return _from_legacy(read_legacy(path), chunk)
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
    with GGUFFile.open(path) as gguf:
        names = [name.removesuffix(SUMS) for name in gguf.tensors if name.endswith(SUMS)]
        if not names:
            raise BadFileError(path, f"not an imatrix: no tensor's name ends in {SUMS}")
        found = Sums()
        for name in names:
            squares, counts = _floats(path, gguf, name + SUMS), _floats(path, gguf, name + COUNTS)
            if not counts.size or squares.size % counts.size:
                raise BadFileError(path, f"damaged imatrix: {squares.size} sums and {counts.size} counts for {name!a}")
            if (squares < 0).any() or (counts < 0).any():
                raise BadFileError(path, f"damaged imatrix: {name!a} has negative sums or counts")
            found.squares[name], found.counts[name] = squares.reshape(counts.size, -1), counts
            if name + _MEANS in gguf.tensors:
                sums = _floats(path, gguf, name + _MEANS)
                if sums.size != squares.size:
                    raise BadFileError(
                        path, f"damaged imatrix: {squares.size} squares and {sums.size} sums for {name!a}"
                    )
                found.sums[name] = sums.reshape(counts.size, -1)
        datasets, chunks, size = (gguf.metadata.get(key) for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE))
        found.datasets = [str(name) for name in datasets] if isinstance(datasets, list) else []
        found.chunks = chunks if isinstance(chunks, int) and 0 <= chunks < 1 << 31 else 0
        found.chunk = size if isinstance(size, int) and 0 < size < 1 << 31 else chunk
        return found


def _floats(path: Path, file: GGUFFile, name: str) -> np.ndarray:
    if name not in file.tensors:
        raise BadFileError(path, f"damaged imatrix: tensor {name!a} is missing")
    if (fmt := file.tensors[name].format.name) != "f32":
        raise BadFileError(path, f"damaged imatrix: tensor {name!a} is {fmt}, it must be f32")
    values = np.frombuffer(file.data(name).tobytes(), "<f4").astype(np.float64)
    if not np.isfinite(values).all():
        raise BadFileError(path, f"damaged imatrix: tensor {name!a} holds a NaN or an infinity")
    return values


def _from_legacy(legacy: Imatrix, chunk: int) -> Sums:
    """As llama-imatrix takes them: each call of an entry counts as ``chunk`` inputs, of every expert alike."""
    counts = {name: float(max(calls, 1) * chunk) for name, calls in legacy.calls.items()}
    return Sums(
        squares={name: means.astype(np.float64)[None] * counts[name] for name, means in legacy.entries.items()},
        counts={name: np.array([count]) for name, count in counts.items()},
        datasets=list(legacy.datasets),
        chunks=legacy.chunks,
        chunk=chunk,
    )


def write_gguf(sums: Sums, path: Path, *, force: bool = False) -> None:
    """Write the newer format: a GGUF file with ``NAME.in_sum2``, ``NAME.counts`` and ``NAME.in_sum``, in order of names.

    Counts become whole numbers, to which llama.cpp would round them, and their sums change in proportion.
    """
    with GGUFWriter(path, force=force) as writer:
        writer.add("general.type", "imatrix", "str")
        writer.add(_DATASETS, sums.datasets, "arr[str]")
        writer.add(_CHUNKS, sums.chunks, "u32")
        writer.add(_CHUNK_SIZE, sums.chunk, "u32")
        tensors: dict[str, np.ndarray] = {}
        for name in sorted(sums.squares):
            counts = sums.counts[name][:, None]
            whole = np.where(counts > 0, np.maximum(np.rint(counts), 1), 0)
            factor = np.divide(whole, counts, out=np.ones_like(whole), where=counts > 0)
            tensors[name + SUMS], tensors[name + COUNTS] = sums.squares[name] * factor, whole
            if name in sums.sums:
                tensors[name + _MEANS] = sums.sums[name] * factor
        for name, values in tensors.items():
            writer.plan_tensor(name, values.shape, "f32")
        writer.begin()
        for name, values in tensors.items():
            writer.write_tensor(name, values.astype("<f4").tobytes())
        writer.finish()


def write_legacy(sums: Sums, path: Path, *, force: bool = False) -> None:
    """Write the older format (``read_legacy``), which keeps means; an expert without tokens gets ones."""
    refuse_existing(path, force)
    names = [name for name in sorted(sums.squares) if sums.counts[name].any()]
    with atomic_write(path) as out:
        out.write(struct.pack("<i", len(names)))
        for name in names:
            counts = sums.counts[name][:, None]
            calls = max(1, int(-(-counts.max() // sums.chunk)))
            means = np.divide(sums.squares[name], counts, out=np.ones_like(sums.squares[name]), where=counts > 0)
            raw = name.encode()
            out.write(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, means.size))
            out.write((means * calls).astype("<f4").tobytes())
        dataset = (sums.datasets[-1] if sums.datasets else "").encode()
        out.write(struct.pack("<ii", sums.chunks, len(dataset)) + dataset)


def _digest(identity: str, chunks: Sequence[Sequence[int]], *options: bool | str) -> str:
    digest = hashlib.sha256(json.dumps([identity, *options, len(chunks)]).encode())
    for chunk in chunks:
        digest.update(np.asarray([len(chunk), *chunk], dtype="<i4").tobytes())
    return digest.hexdigest()


class _Partial:
    """What is collected so far, in a safetensors file that belongs to one model, text and set of options (``digest``)."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest

    def read(self) -> tuple[Sums, int]:
        """The sums and the number of chunks in them; none where there is no such file, or another run's."""
        from safetensors import SafetensorError, safe_open

        found = Sums()
        kinds = {"squares": found.squares, "sums": found.sums, "counts": found.counts}
        try:
            if not self.path.is_file() or self.path.stat().st_size > _MAX_PARTIAL:
                return Sums(), 0
            with safe_open(self.path, "np") as file:
                about = file.metadata() or {}
                if about.get("digest") != self.digest:
                    return Sums(), 0
                keys_in_file: list[str] = list(file.keys())
                for key in keys_in_file:
                    kind, name = key.split(":", 1)
                    kinds[kind][name] = file.get_tensor(key)
                return found, int(about["chunks"])
        except (OSError, ValueError, KeyError, SafetensorError):  # damaged: it is started anew
            return Sums(), 0

    def write(self, sums: Sums, chunks: int) -> None:
        """Replace the file. Raises JambaError where it cannot be written."""
        from safetensors.numpy import save

        tensors = {f"{kind}:{name}": values for kind in ("squares", "sums", "counts") for name, values in
                   getattr(sums, kind).items()}  # fmt: skip
        data = save(tensors, {"digest": self.digest, "chunks": str(chunks)})
        with atomic_write(self.path, durable=False) as file:
            file.write(data)


def check_format(name: str | None, output: Path) -> str:
    """The format of the output: ``name``, else by its suffix. Raises UsageError for an unknown one."""
    if name is None:
        return "legacy" if output.suffix == ".dat" else "gguf"
    if name not in FORMATS:
        raise UsageError(f"is not one of {', '.join(FORMATS)}", field="format", value=name)
    return name


def shapes_match(sums: Sums, tensors: Mapping[str, Any], path: object) -> None:
    """Raise JambaError, naming the weight, where ``sums`` belong to another model than ``tensors`` (name to shape)."""
    sums.imatrix(str(path)).check({name: tuple(shape) for name, shape in tensors.items()})
