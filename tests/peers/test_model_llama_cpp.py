"""Quantized models against llama.cpp on the same file: how far each is from the dequantized weights run in float32.

Random weights amplify rounding, and a router's near-tie now and then falls the other way, so no absolute bound holds;
what a user may ask is to be as close to the true model as the best peer, at every position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jambacli.gguf.jamba_metadata import jamba_config
from jambacli.gguf.reader import GGUFFile
from jambacli.kernels import reference, reference_ops
from jambacli.model.config import JambaConfig
from jambacli.model.jamba import JambaModel
from jambacli.runtime.loader import build, load_gguf
from quant.formats import QTensor
from tests.support.checkpoints import random_model
from tests.support.model_files import write
from tests.support.rotated import rotated
from tests.support.small_models import small_file
from tests.support.transformers_model import f32_qtensor, position_errors

pytestmark = [pytest.mark.peer, pytest.mark.slow]

TOKENS = 512
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "experts": ("quantizable", {"num_experts": 16, "num_hidden_layers": 8, "attn_layer_period": 8, "attn_layer_offset": 4}),
    "dense": ("quantizable", {"num_experts": 1, "num_hidden_layers": 8, "num_key_value_heads": 1, "tie_word_embeddings": True}),
}  # fmt: skip
QUANTS = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k",
          "iq4_nl", "iq4_xs"]  # fmt: skip


def exact_model(path: Path) -> JambaModel:
    """The file's weights, dequantized, on the float32 reference operations."""
    file = GGUFFile.open(path)

    def values(name: str) -> QTensor:
        return f32_qtensor(reference.dequantize(file.qtensor(name)))

    config: JambaConfig = jamba_config(file.metadata, file.tensors)
    return build(config, values, ops=reference_ops(), source=file)


def run(model: JambaModel, ids: torch.Tensor, piece: int, *, precise: bool = False) -> torch.Tensor:
    state, out = model.new_state(len(ids), "f32", precise=precise), []
    for part in ids.split(piece):
        logits = model.forward(part, state, logits="all")
        assert logits is not None
        out.append(logits)
    return torch.cat(out)


def run_peer(path: Path, ids: torch.Tensor, piece: int) -> torch.Tensor:
    """llama.cpp's logits of every position, keys and values in float32."""
    lib: Any = pytest.importorskip("llama_cpp")
    silent = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(silent, None)
    params = lib.llama_model_default_params()
    params.use_extra_bufts = False  # its AMX kernels crash on small matrices
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = options.n_outputs_max = len(ids)
    options.n_threads = options.n_threads_batch = torch.get_num_threads()
    options.type_k = options.type_v = 0
    options.flash_attn_type = 0
    context = lib.llama_init_from_model(model, options)
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch, rows = lib.llama_batch_init(piece, 0, 1), []
    for start in range(0, len(ids), piece):
        part = ids[start : start + piece].tolist()
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, True
            batch.seq_id[i][0] = 0
        assert lib.llama_decode(context, batch) == 0
        rows += [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (vocab,)).copy() for i in range(len(part))]
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_further_from_the_true_model_than_llama_cpp(shape: str, quant: str, tmp_path: Path) -> None:
    name, changes = SHAPES[shape]
    path = write(tmp_path / "m.gguf", random_model(name, seed=0, **changes), quant)
    ids = torch.randint(0, 512, (TOKENS,), generator=torch.Generator().manual_seed(1))
    expected = run(exact_model(path), ids, TOKENS)
    model = load_gguf(path)
    for piece in (TOKENS, 1):
        theirs, _ = position_errors(run_peer(path, ids, piece), expected)
        for precise in (False, True):
            ours, _ = position_errors(run(model, ids, piece, precise=precise), expected)
            figures = {q: (ours.quantile(q).item(), theirs.quantile(q).item()) for q in (0.5, 0.99)}
            mode = ", precise" if precise else ""
            print(f"{shape} {quant}{mode} in pieces of {piece}, ours and theirs, median and 99th percentile:", figures)
            for q, (mine, peer) in figures.items():
                # In decode both round activations to int8 by 32 values for some types: the same error, but for the five
                # positions beyond the 99th percentile. Below 1e-5 (float32's own noise over eight layers) nothing is compared.
                most = 1.3 if q == 0.99 and piece == 1 and not precise else 1.1
                assert mine <= max(most * peer, 1e-5), (piece, precise, q)


@pytest.mark.parametrize("experts", [1, 4])
def test_llama_cpp_computes_the_same_with_rotated_heads(tmp_path: Path, experts: int) -> None:
    source = small_file(tmp_path, "f32", experts)
    target = rotated(source, tmp_path / "rotated.gguf")
    ids = torch.randint(0, 300, (24,), generator=torch.Generator().manual_seed(1))
    first, second = (run_peer(path, ids, len(ids)) for path in (source, target))
    assert (first - second).norm() < 1e-4 * first.norm()
