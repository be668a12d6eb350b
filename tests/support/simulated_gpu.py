"""A simulated CUDA device: its tensors, streams, events, graphs and memory.

Values are computed on the CPU (Triton's kernels by its interpreter), but under a GPU's rules, so that mistakes that only a GPU
would punish fail here too: operations on tensors of both devices, kernels that get host memory, a host that reads or overwrites
page-locked memory before the copy has happened, streams that do not wait for one another, values frozen in a recorded graph,
waits while recording. Work is queued per stream and done as late as the rules allow ("late"), at once ("at once"), late on the
first stream and at once on all others ("others first"), or at random. Memory is counted, to compare it with plans.

    with simulated_gpu() as gpu:
        model = put_on_gpu(config, tensors, gpu.device, plan)

Not simulated: an allocator that reuses memory while another stream still reads it; time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import random
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.nn.attention.bias
from torch.utils._python_dispatch import _disable_current_modes

from tests.support.simulated_tensors import GPU, LowerRight, SimulatedMode, SimulatedTensor, inside_of

Order = Literal["at once", "late", "others first", "random"]


@dataclass
class _Stream:
    """Queued work in order, numbered from 1: ``given`` and ``done`` are the last numbers queued and done."""

    queue: deque[Callable[[], None]] = field(default_factory=deque)
    given: int = 0
    done: int = 0


class SimulatedGpu:
    """The device's streams, memory and recordings. ``used``, ``peak`` and ``limit`` are bytes of its tensors."""

    def __init__(self, order: Order, capability: tuple[int, int], memory: int, seed: int, computes: bool) -> None:
        self.device, self.capability, self.limit, self.computes = GPU, capability, memory, computes
        self.used = self.peak = 0
        #: Allocations so far; ``failing``: numbers of those that fail; ``largest``: bytes beyond which all fail.
        self.allocations = 0
        self.failing: set[int] = set()
        self.largest: int | None = None
        self.launches: list[str] = []
        self._order, self._random = order, random.Random(seed)
        self._lock = threading.RLock()
        self._main = _Stream()
        self._streams = [self._main]
        self._thread = threading.local()
        self._counted: set[int] = set()
        self._pinned: set[int] = set()

    # -- streams

    @property
    def current(self) -> _Stream:
        """The calling thread's stream."""
        return getattr(self._thread, "stream", self._main)

    @current.setter
    def current(self, stream: _Stream) -> None:
        self._thread.stream = stream

    @property
    def recording(self) -> Graph | None:
        """The graph that the calling thread records, if any."""
        return getattr(self._thread, "graph", None)

    def stream(self) -> _Stream:
        """A new stream."""
        new = _Stream()
        self._streams.append(new)
        return new

    def give(self, work: Callable[[], None]) -> None:
        """Queue work on the calling thread's stream, or add it to the graph that the thread records."""
        if not self.computes:
            return
        graph = self.recording
        if graph is not None:
            graph.steps.append(work)
            return
        with self._lock:
            stream = self.current
            stream.queue.append(work)
            stream.given += 1
            if self._order == "at once" or (self._order == "others first" and stream is not self._main):
                self.finish(stream)
            elif self._order == "random":
                for other in self._random.sample(self._streams, len(self._streams)):
                    if other.queue and self._random.random() < 0.5:
                        self.finish(other, other.done + self._random.randint(1, len(other.queue)))

    def finish(self, stream: _Stream, upto: int | None = None) -> None:
        """Do a stream's work, all of it or up to the number ``upto``."""
        with self._lock, _disable_current_modes(), torch.no_grad():
            while stream.queue and (upto is None or stream.done < upto):
                work = stream.queue.popleft()
                work()
                stream.done += 1

    def wait(self, what: str, stream: _Stream | None = None) -> None:
        """Let the host wait for a stream (default: the thread's own), which is forbidden while recording."""
        if self.recording is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")
        self.finish(stream or self.current)

    def wait_for_all(self, *_: Any) -> None:
        """``torch.cuda.synchronize``."""
        for stream in self._streams:
            self.wait("synchronize", stream)

    # -- memory

    def count(self, x: torch.Tensor) -> None:
        """Count a tensor's memory as the GPU's until it is freed."""
        storage = x.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        with self._lock:
            if key in self._counted or size == 0:
                return
            self.allocations += 1
            fails = self.allocations in self.failing or (self.largest is not None and size > self.largest)
            if fails or self.used + size > self.limit:
                raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
            self._counted.add(key)
            self.used += size
            self.peak = max(self.peak, self.used)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        with self._lock:
            self._counted.discard(key)
            self.used -= size

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        """Mark host memory as page-locked."""
        key = x.untyped_storage().data_ptr()
        self._pinned.add(key)
        weakref.finalize(x.untyped_storage(), self._pinned.discard, key)
        return x

    def pinned(self, x: torch.Tensor) -> bool:
        """Whether x is page-locked, so that the GPU can read it asynchronously."""
        return x.untyped_storage().data_ptr() in self._pinned


# -- replacements for parts of torch.cuda

_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
"""


@functools.cache
def _register_gpu_with_torch() -> None:
    """Register a device guard that does nothing: without one, a torch without CUDA refuses to name a GPU."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("simulating a GPU needs a C++ compiler")
    torch_home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(_GUARD)
        subprocess.run(
            [compiler, "-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch_home / 'include'}", "-o", str(library),
             str(source), f"-L{torch_home / 'lib'}", "-lc10"],
            check=True, capture_output=True,
        )  # fmt: skip
        ctypes.CDLL(str(library))


class Event:
    """As torch.cuda.Event."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu
        self._at: tuple[_Stream, int] | None = None

    def record(self, handle: _StreamHandle | None = None) -> None:
        """Mark the current end of a stream."""
        stream = self._gpu.current if handle is None else handle.inner
        self._at = stream, stream.given

    def reach(self) -> None:
        """Do all work before the mark."""
        if self._at is not None:
            self._gpu.finish(*self._at)

    def synchronize(self) -> None:
        """Let the host wait."""
        if self._gpu.recording is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing (an event)")
        self.reach()

    def query(self) -> bool:
        """Whether all work before the mark is done."""
        return self._at is None or self._at[0].done >= self._at[1]

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds to a later event: always 1, since time is not simulated."""
        if not (self.query() and other.query()):
            raise RuntimeError("CUDA error: device not ready")
        return 1.0


class Graph:
    """As torch.cuda.CUDAGraph: records the work that a stream gets during the capture."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu
        self.steps: list[Callable[[], None]] = []
        self.replays = 0

    def capture_begin(self, *_: Any, **__: Any) -> None:
        """Record the work of the calling thread from now on, on any stream but the default one."""
        if self._gpu.current is self._gpu._main:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        self._gpu._thread.graph = self

    def capture_end(self) -> None:
        """End the recording."""
        self._gpu._thread.graph = None
        if not self.steps and self._gpu.computes:
            raise RuntimeError("the graph is empty")

    def replay(self) -> None:
        """Queue all recorded work on the current stream."""
        self.replays += 1
        for step in self.steps:
            self._gpu.give(step)


class _StreamHandle:
    """As torch.cuda.Stream."""

    def __init__(self, gpu: SimulatedGpu, stream: _Stream) -> None:
        self._gpu, self.inner = gpu, stream

    def wait_event(self, event: Event) -> None:
        """Let later work of this stream wait for the event."""
        at = event._at
        if at is not None:
            self._give(lambda: self._gpu.finish(*at))

    def wait_stream(self, other: _StreamHandle) -> None:
        """Let later work of this stream wait for what the other stream has queued so far."""
        at = other.inner, other.inner.given
        self._give(lambda: self._gpu.finish(*at))

    def _give(self, work: Callable[[], None]) -> None:
        with on_stream(self._gpu, self):
            self._gpu.give(work)

    def synchronize(self) -> None:
        """Let the host wait."""
        self._gpu.wait("a stream", self.inner)


@contextlib.contextmanager
def on_stream(gpu: SimulatedGpu, handle: _StreamHandle) -> Iterator[None]:
    """``torch.cuda.stream``: sets the thread's current stream in this context."""
    before = gpu.current
    gpu.current = handle.inner
    try:
        yield
    finally:
        gpu.current = before


def _generator(plain: Callable[..., torch.Generator], device: Any = None) -> torch.Generator:
    return plain()  # random numbers for the GPU come from the CPU


@contextlib.contextmanager
def _recording(gpu: SimulatedGpu, graph: Graph) -> Iterator[None]:
    """``torch.cuda.graph``."""
    gpu.wait_for_all()
    with on_stream(gpu, _StreamHandle(gpu, gpu.stream())):
        graph.capture_begin()
        try:
            yield
        finally:
            graph.capture_end()


def _tensor(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``torch.tensor``, whose values are made outside of the dispatch mode."""

    def make(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        x = plain(data, **options)
        return x if device is None else x.to(device)

    return make


@contextlib.contextmanager
def simulated_gpu(
    order: Order = "late",
    *,
    capability: tuple[int, int] = (9, 0),
    memory: int = 1 << 40,
    seed: int = 0,
    computes: bool = True,
    attention: Literal["flash", "efficient", "none"] = "flash",
) -> Iterator[SimulatedGpu]:
    """In this context the machine has one GPU, cuda:0, with ``memory`` bytes. ``attention``: the best fused attention of its
    torch, which has memory-efficient attention whenever it has flash attention.

    With ``computes`` False it only counts kernels launched and bytes, for models of any size; all values are zeros.
    """
    from triton.runtime.interpreter import GridExecutor

    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    _register_gpu_with_torch()
    gpu = SimulatedGpu(order, capability, memory, seed, computes)
    main = _StreamHandle(gpu, gpu._main)
    plain = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, torch.Tensor) and not isinstance(x, SimulatedTensor):
                raise ValueError(
                    f"Pointer argument cannot be accessed from Triton (cpu tensor?), in {self.fn.__name__}"
                )
        a, k = inside_of(args), inside_of(kwargs)
        gpu.launches.append(self.fn.__name__)
        gpu.give(lambda: plain(self, *a, **k))

    def event_of(_: Any = None) -> Any:
        handle = _StreamHandle(gpu, gpu.current)
        return main if handle.inner is gpu._main else handle

    with pytest.MonkeyPatch.context() as patch, SimulatedMode(gpu):
        patch.setattr(GridExecutor, "__call__", launch)
        patch.setattr(torch, "tensor", _tensor(torch.tensor))
        patch.setattr(torch, "Generator", functools.partial(_generator, torch.Generator))
        patch.setattr(torch.version, "cuda", "12.8")
        patch.setattr(torch.nn.attention.bias, "causal_lower_right", LowerRight)
        flash = attention == "flash" and capability >= (8, 0)
        patch.setattr(torch.backends.cuda, "can_use_flash_attention", lambda _: flash)
        patch.setattr(torch.backends.cuda, "can_use_efficient_attention", lambda _: attention != "none")
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "device": lambda device: contextlib.nullcontext(),
            "get_device_capability": lambda device=None: capability,
            "get_device_name": lambda device=None: "Simulated",
            "mem_get_info": lambda device=None: (memory - gpu.used, memory),
            "max_memory_allocated": lambda device=None: gpu.peak,
            "reset_peak_memory_stats": lambda device=None: setattr(gpu, "peak", gpu.used),
            "set_per_process_memory_fraction": lambda part, device=None: setattr(gpu, "limit", int(part * memory)),
            "get_device_properties": lambda device=None: SimpleNamespace(
                name="Simulated",
                major=capability[0],
                minor=capability[1],
                total_memory=memory,
                multi_processor_count=84,
            ),
            "empty_cache": lambda: None,
            "synchronize": gpu.wait_for_all,
            "Stream": lambda device=None: _StreamHandle(gpu, gpu.stream()),
            "Event": lambda **_: Event(gpu),
            "CUDAGraph": lambda: Graph(gpu),
            "current_stream": event_of,
            "stream": lambda handle: on_stream(gpu, handle),
            "graph": lambda graph: _recording(gpu, graph),
            "_lazy_init": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, value)
        yield gpu
        gpu.wait_for_all()
