"""Measures prefill and decode rates as llama-bench defines them.

A ``Runner`` is anything that can be timed: this program's model, or another program. Runners take turns, repetition by
repetition, so that drift of the machine's speed affects all of them equally.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from jambacli.evaluation.timing import wait_for
from jambacli.hardware.peaks import peak_memory
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel, Span
from jambacli.model.state import SequenceState
from jambacli.runtime.memory_plan import prefill_flops

#: How a context is filled before a measurement: "read" computes it, "random" writes random keys, values and states.
Fill = Literal["read", "random"]
#: The deepest context that is read by default. Reading takes minutes there, and hours at 262,144 tokens.
READ_DEPTH = 32_768

# Tokens of random keys and values; a deeper context repeats them.
_RANDOM_TOKENS = 4096


@dataclass(frozen=True)
class Case:
    """One measurement: prefill of ``n_prompt`` tokens, then decode of ``n_gen``, after ``depth`` tokens of context.

    ``at_once``: the tokens of each sequence that a step of decode takes; ``n_gen`` is a multiple of it. ``sequences``: how
    many decode together, ``n_gen`` tokens each after a context of ``depth`` of its own; without a prompt.
    """

    n_prompt: int
    n_gen: int
    depth: int = 0
    at_once: int = 1
    sequences: int = 1

    @property
    def name(self) -> str:
        """llama-bench's name for it: ``pp512``, ``tg128``, ``pp512+tg128``, with ``@ d8192``.

        ``b4``: 4 sequences together; ``t4``: 4 tokens of one sequence a step.
        """
        parts = ([f"pp{self.n_prompt}"] if self.n_prompt else []) + ([f"tg{self.n_gen}"] if self.n_gen else [])
        sequences = f" b{self.sequences}" if self.sequences > 1 else ""
        at_once = f" t{self.at_once}" if self.at_once > 1 else ""
        return "+".join(parts) + sequences + at_once + (f" @ d{self.depth}" if self.depth else "")

    @property
    def tokens(self) -> int:
        """The tokens of one run, of all sequences."""
        return self.n_prompt + self.n_gen * self.sequences


def fill_at(depth: int, fill: Fill | None = None) -> Fill | None:
    """How a context of ``depth`` tokens is filled: as ``fill`` says, by default according to READ_DEPTH. None: it is empty."""
    if not depth:
        return None
    return fill or ("read" if depth <= READ_DEPTH else "random")


def fill_randomly(state: SequenceState, depth: int, seed: int = 2) -> None:
    """Bring an empty state to position ``depth`` without computing: decode takes the same time, its text means nothing.

    Keys and values are normal with deviation 1, about a trained model's size; Mamba states have deviation 0.1.
    """
    import torch

    from jambacli.kernels import reference

    random = torch.Generator().manual_seed(seed)
    state.begin(depth)
    for cache in state.caches:
        for x in (cache.k, cache.v):
            tokens, heads, row = min(depth, _RANDOM_TOKENS), *x.shape[1:]
            values = torch.randn(tokens, heads, state.head_dim, generator=random)
            stored = torch.empty(tokens, heads, row, dtype=x.dtype)
            reference.kv_store(values, stored)
            stored = stored.to(x.device)
            for start in range(0, depth, tokens):
                part = x[start : min(start + tokens, depth)]
                part.copy_(stored[: len(part)])
    for states in (state.conv, state.ssm):
        states.copy_(0.1 * torch.randn(states.shape, generator=random))
    state.commit(depth)


class Runner(Protocol):
    """Something that runs a model. ``start`` begins sequences, to which ``prefill`` and ``decode`` add tokens."""

    name: str

    def start(self, depth: int, room: int, sequences: int = 1) -> None:
        """Begin ``sequences`` sequences, each with ``depth`` tokens (untimed) and room for ``room`` more."""

    def prefill(self, tokens: int) -> float:
        """Prefill ``tokens`` tokens of the first sequence; returns seconds until the logits of the last are computed."""

    def decode(self, tokens: int, at_once: int = 1) -> float:
        """Generate ``tokens`` of every sequence, ``at_once`` of each in a step with the logits of all; returns seconds."""

    def peak_memory(self) -> int:
        """Peak resident bytes of the process so far."""


@dataclass
class Result:
    """The repetitions of one case on one runner. Rates in tokens per second."""

    case: Case
    runner: str
    rates: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    peak_memory: int = 0

    @property
    def rate(self) -> float:
        """Median tokens per second."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Standard deviation of the rates, 0 for a single one."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0

    @property
    def step_seconds(self) -> float:
        """Median seconds of a step of decode, where the case has no prompt."""
        return self.case.at_once * self.case.sequences / self.rate

    @property
    def first_token_seconds(self) -> float | None:
        """Median seconds to the first token after a prompt; None without a prompt."""
        return statistics.median(self.first_token) if self.first_token else None


class ModelRunner:
    """This program's model as a Runner.

    On a GPU a run ends when the GPU has finished, and decode reads the most likely token back after each step, as generation
    does. ``peak_memory`` is the memory of the device that computes. ``fill``: see ``fill_at``.
    """

    def __init__(
        self,
        model: JambaModel,
        kv_type: str = "f16",
        chunk: int = 512,
        name: str = "jamba",
        fill: Fill | None = None,
    ) -> None:
        import torch

        self.name = name
        self._model, self._kv_type, self._chunk, self._fill = model, kv_type, chunk, fill
        self._random = torch.Generator().manual_seed(1)
        self._states = [model.new_state(1, kv_type)]

    def start(self, depth: int, room: int, sequences: int = 1) -> None:
        """See Runner."""
        gpu = self._model.device.type == "cuda"
        if gpu and len(self._states) == sequences and self._states[0].ctx == depth + room:
            for state in self._states:
                state.reset()  # keeps the recorded graphs, as a conversation does
        else:
            self._states = [self._model.new_state(depth + room, self._kv_type) for _ in range(sequences)]
            if gpu and room > 3:
                self.decode(3)
                for state in self._states:
                    state.reset()
        first = self._states[0]
        if fill_at(depth, self._fill) == "random":
            fill_randomly(first, depth)
        elif depth:
            self.prefill(depth)
        for state in self._states[1:] if depth else []:
            state.load_kv(0, depth, list(first.kv(0, depth)))
            state.restore(state.checkpoint(depth, first.conv, first.ssm))

    def prefill(self, tokens: int) -> float:
        """See Runner."""
        import torch

        ids = torch.randint(0, self._model.config.vocab_size, (tokens,), generator=self._random)
        began = time.perf_counter()
        parts = ids.split(self._chunk)
        for i, part in enumerate(parts):
            self._model.forward(part, self._states[0], logits="last" if i == len(parts) - 1 else "none")
        wait_for(self._model.device)
        return time.perf_counter() - began

    def decode(self, tokens: int, at_once: int = 1) -> float:
        """See Runner."""
        import torch

        shape = tokens // at_once, len(self._states), at_once
        ids = torch.randint(0, self._model.config.vocab_size, shape, generator=self._random)
        began = time.perf_counter()
        for step in ids:
            spans = [Span(state, part, "all") for state, part in zip(self._states, step, strict=True)]
            for logits in self._model.forward_spans(spans):
                if logits is not None and logits.device.type == "cuda":
                    logits.argmax(dim=-1).tolist()
        return time.perf_counter() - began

    def peak_memory(self) -> int:
        """See Runner."""
        if self._model.device.type == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated(self._model.device))
        return peak_memory()


def measure(
    runners: Sequence[Runner],
    cases: Sequence[Case],
    repetitions: int,
    done: Callable[[int], None] = lambda n: None,
    results: list[Result] | None = None,
) -> list[Result]:
    """Run every case ``repetitions`` times on every runner; calls ``done(1)`` after each run. Results by case, then runner.

    A short untimed run comes first. With a depth, all repetitions continue one sequence, so the depth grows a little.
    ``results``: the list to which those of a case are added as soon as it is finished.
    """
    for runner in runners:
        runner.start(0, 40)
        runner.prefill(32)
        runner.decode(4)
    results = [] if results is None else results
    for case in cases:
        row = [Result(case, runner.name) for runner in runners]
        room = case.n_prompt + case.n_gen
        if case.depth:
            for runner in runners:
                runner.start(case.depth, room * repetitions, case.sequences)
        for _ in range(repetitions):
            for runner, result in zip(runners, row, strict=True):
                if not case.depth:
                    runner.start(0, room, case.sequences)
                seconds = runner.prefill(case.n_prompt) if case.n_prompt else 0.0
                if case.n_prompt:
                    result.first_token.append(seconds)
                if case.n_gen:
                    seconds += runner.decode(case.n_gen, case.at_once)
                result.rates.append(case.tokens / seconds)
                result.peak_memory = runner.peak_memory()
                done(1)
        results += row
    return results


def prefill_speed(config: JambaConfig, results: Sequence[Result]) -> float | None:
    """Floating-point operations per second of the longest prefill from an empty context, for later estimates.

    None if nothing measured is representative: prompts below 256 tokens, or a model so small that overhead dominates.
    """
    representative = [r for r in results if r.case.n_prompt >= 256 and not r.case.n_gen and not r.case.depth]
    if not representative or config.active_params() < 50_000_000:
        return None
    longest = max(representative, key=lambda r: r.case.n_prompt)
    return prefill_flops(config, longest.case.n_prompt) * longest.rate / longest.case.n_prompt


def weight_bytes_per_token(model: JambaModel) -> float:
    """Bytes of weights that one decode step reads: all but the embedding table, and of the experts only the chosen."""
    from quant.formats import QTensor

    config = model.config
    share = config.n_experts_used / max(config.n_experts, 1)
    total = float(model.output.nbytes)
    for layer in model.layers:
        for part in (layer.mixer, layer.ffn):
            for value in vars(part).values():
                if isinstance(value, QTensor):
                    total += value.nbytes * (share if len(value.shape) == 3 else 1)
                elif hasattr(value, "nbytes"):
                    total += value.nbytes
    return total
