"""llama.cpp as a Runner, in a separate process, through llama-cpp-python.

The process keeps its memory and threads apart. The parent writes one JSON command per line and reads one JSON answer per
line: ``python -m jambacli.evaluation.llama_cpp FILE THREADS KV_TYPE BUFFERS``.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jambacli.errors import JambaError, UsageError
from jambacli.kernels.kv_blocks import BLOCK_BYTES

_KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q5_1": 7, "q8_0": 8, "bf16": 30}
_UBATCH = 512


class LlamaCppRunner:
    """llama.cpp on one GGUF file. Raises JambaError if llama-cpp-python is missing or cannot load the file."""

    def __init__(self, path: Path, threads: int, kv_type: str = "f16") -> None:
        self.name = "llama.cpp"
        #: Why it does not run at full speed on this machine; None if it does.
        self.handicap: str | None = None
        try:
            self._launch(path, threads, kv_type, "repack")
        except _PeerDiedError:
            # Build 11434 crashes in its AMX kernels on some machines; without repacked buffers it runs.
            self._launch(path, threads, kv_type, "plain")
            self.handicap = "it crashes on this machine with repacked weights; measured without them"

    def _launch(self, path: Path, threads: int, kv_type: str, buffers: str) -> None:
        module = "jambacli.evaluation.llama_cpp"
        command = [sys.executable, "-m", module, str(path), str(threads), kv_type, buffers]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()
        self.start(0, 80)
        self.prefill(64)
        self.decode(2)

    def start(self, depth: int, room: int, sequences: int = 1) -> None:
        """See Runner. Raises JambaError for more than one sequence."""
        if sequences > 1:
            raise JambaError("llama.cpp is measured with one sequence; llama-batched-bench takes several")
        self._ask(op="start", depth=depth, room=room)

    def prefill(self, tokens: int) -> float:
        """See Runner."""
        return float(self._ask(op="prefill", tokens=tokens)["seconds"])

    def decode(self, tokens: int, at_once: int = 1) -> float:
        """See Runner."""
        return float(self._ask(op="decode", tokens=tokens, at_once=at_once)["seconds"])

    def peak_memory(self) -> int:
        """See Runner."""
        return int(self._ask(op="memory")["bytes"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip():
            raise _PeerDiedError(f"llama.cpp: its process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise JambaError(f"llama.cpp: {answer['error']}")
        return answer


class _PeerDiedError(JambaError):
    """The peer's process has ended."""


class _Peer:
    """llama.cpp itself, in the child process."""

    def __init__(self, path: str, threads: int, kv_type: str, buffers: str) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise JambaError("llama-cpp-python is not installed; pip install 'jambacli[peers]'") from error
        if kv_type not in _KV_TYPES:
            raise UsageError(f"is not one of {', '.join(_KV_TYPES)}", field="kv_type", value=kv_type)
        self._lib = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = buffers == "repack"
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise JambaError(f"cannot load {path}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._threads, self._kv = threads, _KV_TYPES[kv_type]
        self._context: Any = None

    def start(self, depth: int, room: int) -> None:
        lib = self._lib
        if self._context is not None:
            lib.llama_free(self._context)
        params = lib.llama_context_default_params()
        params.n_ctx = depth + room + 8
        params.n_batch = 2048
        params.n_ubatch = _UBATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = self._kv
        if self._kv in (_KV_TYPES[name] for name in BLOCK_BYTES):
            params.flash_attn_type = 1
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise JambaError("cannot make a context for this model")
        if depth:
            self.run(depth)

    def run(self, tokens: int, at_once: int = 0) -> float:
        """Seconds of a prompt, or of decode in steps of ``at_once`` tokens with the logits of all."""
        import numpy as np

        lib = self._lib
        ids = np.random.default_rng(1).integers(0, max(self._vocab, 1), tokens)
        size = at_once or 2048
        began = time.perf_counter()
        for at in range(0, tokens, size):
            part = ids[at : at + size].tolist()
            tokens_array = (lib.llama_token * len(part))(*part)  # the batch holds only a pointer to it
            # Positions continue automatically; logits are computed for the last token only, if nothing else is asked.
            batch = lib.llama_batch_get_one(tokens_array, len(part))
            if at_once > 1:
                wanted = (ctypes.c_int8 * len(part))(*[1] * len(part))
                batch.logits = ctypes.cast(wanted, ctypes.POINTER(ctypes.c_int8))
            if lib.llama_decode(self._context, batch):
                raise JambaError("llama_decode failed")
        lib.llama_synchronize(self._context)
        return time.perf_counter() - began


def _serve(path: str, threads: str, kv_type: str, buffers: str) -> None:
    from jambacli.hardware.peaks import peak_memory

    # llama.cpp sometimes prints to stdout; answers go to a private copy of it.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        peer = _Peer(path, int(threads), kv_type, buffers)
        answer(ok=True)
        for line in sys.stdin:
            command = json.loads(line)
            if command["op"] == "start":
                peer.start(command["depth"], command["room"])
                answer(ok=True)
            elif command["op"] == "memory":
                answer(bytes=peak_memory())
            else:
                answer(seconds=peer.run(command["tokens"], command.get("at_once", 0)))
    except JambaError as error:
        answer(error=str(error))


if __name__ == "__main__":
    _serve(*sys.argv[1:5])
