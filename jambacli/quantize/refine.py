"""Refined quantization: each layer's weights rounded for its own inputs on a calibration text, layer after layer.

The calibration tokens go through the model once. A layer's inputs are those that the layers before it give, which are quantized
already; its weights are refined (``quant.feedback``) and it is run again to get the inputs of the next. One layer's inputs are
in memory at a time. Finished tensors lie beside the output (``refine_parts``) until ``quantize_file.quantize`` writes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.files import file_identity
from jambacli.gguf import jamba_metadata as keys
from jambacli.kernels import Ops, reference
from jambacli.kernels.observe import observe
from jambacli.model.jamba import JambaModel, Layer
from jambacli.model.state import SequenceState
from jambacli.progress import Progress, no_progress
from jambacli.quantize.imatrix_collect import weight_names
from jambacli.quantize.quantize_file import QuantizePlan
from jambacli.quantize.refine_parts import Parts
from jambacli.runtime.loader import build_layer, from_gguf
from jambacli.units import counted, format_bytes, format_seconds
from quant import feedback, native
from quant.formats import QTensor, get_format
from quant.native import NonFiniteRowError
from quant.quantize_blocks import quantize
from quant.refine_blocks import can_refine
from quant.rows import host_tensor

logger = logging.getLogger(__name__)

#: Calibration tokens by default.
TOKENS = 16384
# An expert's own statistics count as much as the layer's when it saw this many tokens.
_PRIOR_TOKENS = 64
# Raised when the method changes, so that tensors of an older one are not taken over.
_VERSION = 1
_SHARED = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate", "ffn_up_exps": "ffn_gate_exps"}


@dataclass(frozen=True)
class Refined:
    """Blocks of refined tensors by name, uint8 [bytes], mapped; ``close`` removes their folder once the output is written."""

    tensors: Mapping[str, np.ndarray]
    parts: Parts

    def close(self) -> None:
        """Remove the folder."""
        self.parts.remove()


def spread(chunks: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """At most ``tokens`` tokens of the chunks (at least one chunk), taken evenly over all of them."""
    longest = max(map(len, chunks))
    count = min(len(chunks), max(1, tokens // longest))
    return [list(chunks[i * len(chunks) // count]) for i in range(count)]


@contextlib.contextmanager
def refine(
    plan: QuantizePlan, chunks: Sequence[Sequence[int]], output: Path, progress: Progress = no_progress
) -> Iterator[Refined]:
    """Refine what ``plan`` quantizes, with the inputs that ``chunks`` of token ids give; for ``quantize_file.quantize``.

    A run that was stopped goes on at the layer where it was when it is called again with the same plan, chunks and output. The
    bytes depend neither on that nor on the number of threads.

    Raises UnsupportedError without the C++ library, JambaError for a model whose activations are not finite or for a full disk.
    """
    if native.library() is None:
        raise UnsupportedError("refining needs the C++ library, which is not built")
    with Parts(output, _digest(plan, chunks)) as parts:
        run = _Run(plan, chunks, parts)
        run.all_layers(progress)
        tensors = {name: found for name in run.formats if (found := parts.read(name, run.nbytes(name))) is not None}
        yield Refined(tensors, parts)


def _digest(plan: QuantizePlan, chunks: Sequence[Sequence[int]]) -> str:
    source, imatrix = plan.source, plan.request.imatrix
    about = [
        _VERSION,
        [file_identity(path.stat()) for path in source.paths],
        [(c.name, c.format) for c in plan.choices],
        None
        if imatrix is None
        else [(name, hashlib.sha256(w.tobytes()).hexdigest()) for name, w in imatrix.entries.items()],
        [list(chunk) for chunk in chunks],
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


class _Run:
    """One pass through the layers."""

    def __init__(self, plan: QuantizePlan, chunks: Sequence[Sequence[int]], parts: Parts) -> None:
        self.plan, self.chunks, self.parts = plan, chunks, parts
        self.threads = plan.request.threads or native.default_threads()
        self.model: JambaModel = from_gguf(plan.source)
        self.sizes = [len(chunk) for chunk in chunks]
        names = set(weight_names(self.model).values())
        self.formats = {
            c.name: c.format for c in plan.choices if not c.kept and c.name in names and can_refine(c.format)
        }
        self.all_formats = {c.name: c.format for c in plan.choices}

    @property
    def ops(self) -> Ops:
        """The operations, with as little rounding of activations as the backend has."""
        return self.model.ops.precise or self.model.ops

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in its new format."""
        shape = self.plan.source.tensors[name].shape
        return math.prod(shape[:-1]) * get_format(self.all_formats[name]).row_bytes(shape[-1])

    def all_layers(self, progress: Progress) -> None:
        """Refine everything that is not refined yet."""
        model = self.model
        found = self.parts.read_hidden()
        first, hidden = found if found is not None else (0, None)
        layers = len(model.layers)
        if first:
            logger.info("continuing at layer %d of %d", first + 1, layers)
        elif hidden is None:
            self._tell_time()
        with progress("Refining", layers + 1, "layers") as advance:
            if hidden is None:
                if model.output is model.embedding and keys.TOKEN_EMBD in self.formats:
                    self._tied_output()
                hidden = self._embed()
            advance(first)
            for i in range(first, layers):
                hidden = self._one_layer(i, hidden)
                self.parts.write_hidden(i + 1, hidden)
                advance(1)
            if keys.OUTPUT in self.formats and self.parts.read(keys.OUTPUT, self.nbytes(keys.OUTPUT)) is None:
                self._output(keys.OUTPUT, hidden)
            advance(1)

    # ---- the residual stream ----

    def _embed(self) -> Tensor:
        """The embeddings of all tokens in the new format, float32 [tokens, hidden]."""
        name = keys.TOKEN_EMBD
        ids = torch.tensor([token for chunk in self.chunks for token in chunk])
        refined = self._new(name)
        if refined is not None:
            return reference.embed(ids, refined)
        used, where = ids.unique(return_inverse=True)
        rows = reference.embed(used, self.model.embedding)
        fmt = self.all_formats[name]
        if fmt != self.model.embedding.format.name and fmt not in ("f32", "i8"):
            imatrix = self.plan.request.imatrix
            columns = None if imatrix is None else imatrix.weights_for(name, self.model.embedding.shape)
            weights = None if columns is None else torch.from_numpy(columns.copy())
            blocks = quantize(rows, fmt, weights, threads=self.threads)
            rows = reference.dequantize(QTensor(blocks.view(-1), get_format(fmt), tuple(rows.shape)))
        return rows[where]

    def _run_layer(self, i: int, layer: Layer, hidden: Tensor, ops: Ops) -> Tensor:
        """Layer ``i`` over all chunks, several at a time; each from an empty state."""
        out = []
        first = 0
        together = self.model.prefill_chunk if self.model.ops.name == "cpu" else 1
        for group in _groups(self.sizes, together):
            rows = hidden[first : first + sum(group)]
            first += sum(group)
            states = []
            for size in group:
                state = SequenceState(self.model.config, size, "f32")
                state.begin(size)
                states.append((state.layers[i], 0))
            if len(group) == 1:
                out.append(layer.forward(rows, *states[0], ops))
            else:
                out.append(layer.forward_parts(rows, group, states, ops))
        return torch.cat(out)

    # ---- weights ----

    def _new(self, name: str) -> QTensor | None:
        """A weight as it was refined."""
        data = self.parts.read(name, self.nbytes(name)) if name in self.formats else None
        if data is None:
            return None
        return QTensor(host_tensor(data), get_format(self.formats[name]), self.plan.source.tensors[name].shape)

    def _one_layer(self, i: int, hidden: Tensor) -> Tensor:
        """Refine layer ``i`` for the inputs ``hidden`` [tokens, hidden]; what it makes of them afterwards."""
        inputs = _Inputs()
        keys_used = {inputs.key(name) for name in self.formats}
        names = {address: name for address, name in weight_names(self.model).items() if name.startswith(f"blk.{i}.")}
        observed = {address: name for address, name in names.items() if name in keys_used}
        with torch.no_grad():
            self._run_layer(i, self.model.layers[i], hidden, observe(self.ops, observed, inputs))
        for name in [name for name in names.values() if name in self.formats]:
            if self.parts.read(name, self.nbytes(name)) is None:
                self._refine(name, inputs)
        inputs.clear()
        with torch.no_grad():
            done = build_layer(self.model.config, i, lambda name: self._new(name) or self._plain(name))
            return self._run_layer(i, done, hidden, self.ops)

    def _plain(self, name: str) -> QTensor:
        """A weight that is not refined, in its new format."""
        source = self.plan.source.qtensor(name)
        fmt = self.all_formats.get(name, source.format.name)
        if fmt in (source.format.name, "i8") or len(source.shape) < 2:
            return source
        values = quantize(reference.dequantize(source), fmt, threads=self.threads)
        return QTensor(values.view(-1), get_format(fmt), source.shape)

    def _refine(self, name: str, inputs: _Inputs) -> None:
        """Refine one tensor and keep its blocks."""
        source = self.plan.source.qtensor(name)
        form = get_format(self.formats[name])
        n = source.shape[-1]
        blocks = torch.empty(*source.shape[:-1], form.row_bytes(n), dtype=torch.uint8)
        stack = len(source.shape) == 3
        shared: feedback.Curvature | None = None
        for index in range(source.shape[0] if stack else 1):
            if stack or shared is None:
                shared = self._curvature(name, inputs, index if stack else None, n)
            weights = reference.dequantize(reference.expert(source, index) if stack else source)
            try:
                feedback.refine(
                    weights, form.name, shared, out=blocks[index] if stack else blocks, threads=self.threads
                )
            except NonFiniteRowError as error:
                raise BadFileError(
                    self.plan.source.path,
                    f"tensor {name}: row {error.row}{f' of expert {index}' if stack else ''} holds a NaN or an infinity",
                ) from None
        self.parts.write(name, blocks)

    def _curvature(self, name: str, inputs: _Inputs, expert: int | None, n: int) -> feedback.Curvature:
        key = inputs.key(name)
        if (key, expert) in inputs.curvatures:
            return inputs.curvatures[key, expert]
        x = inputs.rows(key, expert, n)
        moments = feedback.second_moments(x, self.threads)
        if expert is not None:
            # Few tokens tell little of how columns go together; what all tokens of the layer say stands in.
            prior = inputs.prior(key, n, self.threads)
            moments = (moments * len(x)).add_(prior, alpha=_PRIOR_TOKENS).div_(len(x) + _PRIOR_TOKENS)
        if not bool(moments.diagonal().isfinite().all()):
            raise JambaError(f"the inputs of {name} are not finite; the file is probably damaged")
        curvature = feedback.factorize(moments, threads=self.threads)
        # Kept for the next matrix with the same inputs; those of the down projections of all experts would take gigabytes.
        inputs.curvatures = {place: known for place, known in inputs.curvatures.items() if place[0] == key}
        if key.rsplit(".", 2)[-2] in _SHARED.values():
            inputs.curvatures[key, expert] = curvature
        return curvature

    def _tied_output(self) -> None:
        """Refine the embedding for its use as the output matrix, with the inputs that the original layers give."""
        if self.parts.read(keys.TOKEN_EMBD, self.nbytes(keys.TOKEN_EMBD)) is not None:
            return
        ids = torch.tensor([token for chunk in self.chunks for token in chunk])
        hidden = reference.embed(ids, self.model.embedding)
        with torch.no_grad():
            for i, layer in enumerate(self.model.layers):
                hidden = self._run_layer(i, layer, hidden, self.ops)
        self._output(keys.TOKEN_EMBD, hidden)

    def _output(self, name: str, hidden: Tensor) -> None:
        inputs = _Inputs()
        inputs(name, reference.rms_norm(hidden, self.model.output_norm, self.model.config.rms_eps), None, None)
        self._refine(name, inputs)

    def _tell_time(self) -> None:
        """Log how long it will take and how much it keeps, by the speed of one product."""
        config, tokens = self.model.config, sum(self.sizes)
        a, b = torch.ones(512, 256), torch.ones(256, 2048)
        began = time.perf_counter()
        for _ in range(8):
            a @ b
        rate = 8 * 2 * 512 * 256 * 2048 / max(time.perf_counter() - began, 1e-6)
        work = weights = 0.0
        sides: dict[tuple[str, int], int] = {}
        for name in self.formats:
            *stack, rows, n = self.plan.source.tensors[name].shape
            count = rows * math.prod(stack)
            weights += count * n
            work += 2 * count * n * n + 4 * tokens * rows * n * (config.n_experts_used if stack else 1)
            kind = name.rsplit(".", 2)[-2]
            if kind not in _SHARED:
                sides[name.removesuffix(f"{kind}.weight"), n] = math.prod(stack)
        work += sum(experts * (n**3 / 3 + tokens / experts * n * n) for (_, n), experts in sides.items())
        seconds = work / rate + 60e-9 * weights / self.threads
        kept = sum(self.nbytes(name) for name in self.formats)
        logger.info(
            "refining %s with %s tokens: about %s, and %s beside the output meanwhile",
            counted(len(self.formats), "tensor"),
            f"{tokens:,}",
            format_seconds(seconds),
            format_bytes(kept + 4 * tokens * config.hidden),
        )


class _Inputs:
    """The inputs of one layer's matrices: an Observer that keeps them, once for matrices that share them."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int | None], list[Tensor]] = {}
        self._priors: dict[str, Tensor] = {}
        self.curvatures: dict[tuple[str, int | None], feedback.Curvature] = {}

    def key(self, name: str) -> str:
        """The weight whose inputs are kept for ``name``."""
        kind = name.rsplit(".", 2)[-2]
        return name.replace(f"{kind}.weight", f"{_SHARED.get(kind, kind)}.weight")

    def __call__(self, name: str, x: Tensor, expert: int | None, shares: Tensor | None) -> None:
        if self.key(name) == name:
            self._rows.setdefault((name, expert), []).append(x.float().clone())

    def rows(self, key: str, expert: int | None, n: int) -> Tensor:
        """The inputs of a matrix, float32 [T, n]."""
        kept = self._rows.get((key, expert))
        if kept is None:
            return torch.zeros(0, n)
        if len(kept) > 1:
            self._rows[key, expert] = kept = [torch.cat(kept)]
        return kept[0]

    def prior(self, key: str, n: int, threads: int) -> Tensor:
        """What an expert's second moments are drawn to, float32 [n, n]: those of all experts' tokens; for inputs that are the
        expert's own, their mean square in every column."""
        if key not in self._priors:
            every = [(len(part), part) for (name, _), kept in self._rows.items() if name == key for part in kept]
            count = max(1, sum(size for size, _ in every))
            if "ffn_down" in key:
                squares = sum((part.square().sum(0) for _, part in every), torch.zeros(n)) / count
                self._priors[key] = torch.diag(squares.mean().expand(n))
            else:
                total = torch.zeros(n, n)
                for _, expert in [place for place in self._rows if place[0] == key]:
                    part = self.rows(key, expert, n)
                    total.add_(feedback.second_moments(part, threads), alpha=len(part))
                self._priors[key] = total / count
        return self._priors[key]

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()
        self._priors.clear()
        self.curvatures = {}


def _groups(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """The sizes in order, in groups of at most ``most`` tokens."""
    group: list[int] = []
    for size in sizes:
        if group and sum(group) + size > most:
            yield group
            group = []
        group.append(size)
    if group:
        yield group
