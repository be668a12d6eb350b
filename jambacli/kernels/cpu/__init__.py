"""The C++ kernels for CPUs, through ctypes, over the addresses of torch tensors.

``available()`` says whether the library was built; without it every caller uses ``kernels.reference``. Kernels run on
torch's own OpenMP pool, so there is one pool in the process. ``JAMBA_CPU_ISA`` lowers the instruction set.

Few tokens (``decode``, 1 to ``decode.MOST_TOKENS``): a model is a list of steps, made once,

    program = Program([MambaStep(attn_norm, eps, in_proj=..., ...), MlpStep(ffn_norm, eps, gate=..., up=..., down=...),
                       ..., AttentionStep(...), ExpertsStep(...), ..., LogitsStep(output_norm, eps, output)])

a sequence's tensors are bound to it (again after a KV cache is reallocated), and one call decodes:

    binding = program.bind([(conv, ssm), None, ..., (k, v), None, ..., None])    # one entry per step
    x = embed(ids, token_embd)                                                   # float32 [m, hidden]
    program.run(x, n_past, binding, logits)                                      # logits float32 [n, vocab], last n tokens

Results are bit-identical for any number of threads, and for tokens one or several at a time. ``linear`` and
``run_single`` do one product or one step. Many tokens at once: ``prefill``.
"""

from __future__ import annotations

from jambacli.kernels.cpu.library import available, cpu_features, default_threads, library, runnable_isas, set_isa

__all__ = ["available", "cpu_features", "default_threads", "library", "runnable_isas", "set_isa"]
