"""Models whose weights are in a format that is read and not written: logits as with the dequantized weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.evaluation.synthetic import random_weight
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.summary import summarize
from jambacli.kernels import reference, reference_ops
from jambacli.quantize.quantize_file import Request, plan, quantize
from jambacli.quantize.recipes import get_recipe
from jambacli.runtime.loader import load_gguf
from quant import FORMATS
from tests.support.cli_runner import jamba
from tests.support.rewritten import Stored, fused_qkv, rewritten
from tests.support.small_models import small_file

FORMATS_READ = ("mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0")
TOKENS = [5, 17, 33, 2, 9, 101, 64]
MATRICES = ("attn_", "ssm_in", "ssm_out", "ffn_gate.", "ffn_up.", "ffn_down.", "_exps", "token_embd")


def is_matrix(tensor: Stored) -> bool:
    name = tensor[0]
    return name.endswith(".weight") and "norm" not in name and any(part in name for part in MATRICES)


def in_format(fmt: str, factors: bool = False) -> Callable[[list[Stored]], Iterable[Stored]]:
    """Puts random weights of a format in the place of the matrices; ``factors``: with one for each matrix."""

    def change(tensors: list[Stored]) -> Iterable[Stored]:
        for i, tensor in enumerate(tensors):
            if not is_matrix(tensor):
                yield tensor
                continue
            name, _, shape, _ = tensor
            yield name, fmt, shape, random_weight(fmt, shape, seed=i, size=0.2).data.numpy()
            if factors:
                count = shape[0] if len(shape) == 3 else 1
                values = np.linspace(0.25, 1.5, count, dtype="<f4") if count > 1 else np.array([0.7], "<f4")
                yield name.replace("weight", "scale"), "f32", (count,), values.view(np.uint8)
                yield name.replace("weight", "input_scale"), "f32", (count,), values.view(np.uint8)

    return change


def dequantized(source: Path, target: Path) -> Path:
    """The same weights as float32, without factors."""
    with GGUFFile.open(source) as file:
        values = {name: reference.dequantize(file.qtensor(name)) for name in file.tensors}
    scales = (".scale", ".input_scale")

    def change(tensors: list[Stored]) -> Iterable[Stored]:
        for name, fmt, shape, data in tensors:
            if not name.endswith(scales):
                same = fmt == "f32"
                yield name, "f32", shape, data if same else values[name].contiguous().numpy().reshape(-1).view(np.uint8)

    return rewritten(source, target, change)


@pytest.mark.filterwarnings("ignore:.* is dequantized by the gguf package")
@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize(("fmt", "factors"), [*((fmt, False) for fmt in FORMATS_READ), ("nvfp4", True)])
def test_logits_are_those_of_the_dequantized_weights(tmp_path: Path, fmt: str, factors: bool, experts: int) -> None:
    path = rewritten(small_file(tmp_path, "f32", experts), tmp_path / f"{fmt}.gguf", in_format(fmt, factors))
    plain = dequantized(path, tmp_path / "plain.gguf")
    by_reference = [load_gguf(p, ops=reference_ops()) for p in (path, plain)]
    ids = torch.tensor(TOKENS)
    a, b = (m.forward(ids, m.new_state(16), logits="all") for m in by_reference)
    assert a is not None
    assert b is not None
    assert torch.equal(a, b)
    models = [Jamba.load(p) for p in (path, plain)]
    for chunk in (512, 1):
        a, b = (m.logits(TOKENS, chunk=chunk) for m in models)
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)
    assert float(b.std()) > 0.01


def test_factors_of_a_fused_tensor_are_those_of_its_parts(tmp_path: Path) -> None:
    separate = rewritten(small_file(tmp_path, "f32"), tmp_path / "separate.gguf", in_format("nvfp4", True))

    def fuse(tensors: list[Stored]) -> Iterable[Stored]:
        for tensor in fused_qkv([t for t in tensors if not ("attn_k.s" in t[0] or "attn_v.s" in t[0])]):
            if "attn_k.i" not in tensor[0] and "attn_v.i" not in tensor[0]:
                yield tensor[0].replace("attn_q.", "attn_qkv."), *tensor[1:]

    together = rewritten(separate, tmp_path / "together.gguf", fuse)
    assert torch.equal(*(Jamba.load(path).logits(TOKENS) for path in (separate, together)))


def with_factor(values: np.ndarray, shape: tuple[int, ...], fmt: str = "f32") -> Callable[[Stored], Stored]:
    return lambda t: (t[0], fmt, shape, values.view(np.uint8))


@pytest.mark.parametrize(
    ("values", "shape", "fmt", "says"),
    [
        (np.ones(2, "<f4"), (2,), "f32", r"blk.1.attn_q.scale' is not F32 \[1\]"),
        (np.ones(2, "<f2"), (1, 2), "f16", r"blk.1.attn_q.scale' is not F32 \[1\]"),
        (np.array([np.nan], "<f4"), (1,), "f32", "blk.1.attn_q.scale' holds a NaN or an infinity"),
    ],
)
def test_factors_that_do_not_fit_are_refused(
    tmp_path: Path, values: np.ndarray, shape: tuple[int, ...], fmt: str, says: str
) -> None:
    good = rewritten(small_file(tmp_path, "f32"), tmp_path / "good.gguf", in_format("nvfp4", True))
    change = with_factor(values, shape, fmt)
    bad = rewritten(
        good, tmp_path / "bad.gguf", lambda ts: [change(t) if t[0] == "blk.1.attn_q.scale" else t for t in ts]
    )
    with pytest.raises(BadFileError, match=says):
        load_gguf(bad)


def with_one_more(tensor: Stored, tensors: list[Stored]) -> list[Stored]:
    return [*tensors, tensor]


def test_factors_of_other_formats_are_refused_unless_they_are_one(tmp_path: Path) -> None:
    source = small_file(tmp_path, "q8_0")
    expected = Jamba.load(source).logits(TOKENS)
    for value, refused in ((1.0, False), (0.5, True)):
        factor = ("blk.1.attn_q.scale", "f32", (1,), np.array([value], "<f4").view(np.uint8))
        path = rewritten(source, tmp_path / "factor.gguf", functools.partial(with_one_more, factor))
        if not refused:
            assert torch.equal(Jamba.load(path).logits(TOKENS), expected)
            continue
        with pytest.raises(UnsupportedError, match="factors of q8_0 weights are not supported"):
            load_gguf(path)
        with GGUFFile.open(path) as file, pytest.raises(UnsupportedError, match="factors of q8_0"):
            plan(file, Request(get_recipe("q4_0"), allow_requantize=True))


@pytest.mark.parametrize("factors", [False, True])
def test_quantizing_multiplies_by_the_factors_and_leaves_them_out(tmp_path: Path, factors: bool) -> None:
    path = rewritten(small_file(tmp_path, "f32"), tmp_path / "nvfp4.gguf", in_format("nvfp4", factors))
    plain, outs = dequantized(path, tmp_path / "plain.gguf"), []
    with GGUFFile.open(path) as file, pytest.raises(JambaError, match="is nvfp4 already"):
        plan(file, Request(get_recipe("q8_0")))
    for source in (path, plain):
        out = tmp_path / f"{source.stem}-q8_0.gguf"
        with GGUFFile.open(source) as file:
            quantize(plan(file, Request(get_recipe("q8_0"), allow_requantize=True)), out)
        with GGUFFile.open(out) as file:
            outs.append({name: file.data(name).tobytes() for name in file.tensors})
    assert outs[0] == outs[1]


@pytest.mark.parametrize("fmt", FORMATS_READ)
def test_show_counts_the_bytes_of_the_file(tmp_path: Path, fmt: str) -> None:
    factors = fmt == "nvfp4"
    path = rewritten(small_file(tmp_path, "f32"), tmp_path / f"{fmt}.gguf", in_format(fmt, factors))
    summary = summarize(path)
    experts = next(group for group in summary.groups if group.name == "experts")
    assert experts.formats[fmt] == 6
    expected = 6 * 4 * 256 * 256 // FORMATS[fmt].block * FORMATS[fmt].block_bytes + 2 * 4 * 256 * 4
    assert experts.nbytes - (2 * 6 * 16 if factors else 0) == expected
    assert not summary.notes


def test_a_row_that_is_no_whole_number_of_blocks_is_refused(tmp_path: Path) -> None:
    path = rewritten(small_file(tmp_path, "f32"), tmp_path / "q1.gguf", in_format("q1_0"))
    raw = bytearray(path.read_bytes())
    at = raw.find(b"blk.1.attn_q.weight") + len("blk.1.attn_q.weight") + 4
    raw[at : at + 8] = (192).to_bytes(8, "little")
    path.write_bytes(raw)
    with pytest.raises(BadFileError, match="rows of 192 values, not a multiple of q1_0's block of 128"):
        GGUFFile.open(path)


@pytest.mark.parametrize("fmt", ["nvfp4", "q2_0"])
def test_run_and_eval_say_in_a_line_that_the_format_is_slow(tmp_path: Path, fmt: str) -> None:
    path = rewritten(small_file(tmp_path, "f32"), tmp_path / f"{fmt}.gguf", in_format(fmt, fmt == "nvfp4"))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    for command in (
        ("eval", "perplexity", str(path), "--text", str(text), "--ctx", "64"),
        ("run", str(path), "--raw", "-n", "2", "--temp", "0", "the quick brown"),
    ):
        done = jamba(*command)
        assert done.returncode == 0, done.stderr
        assert done.stderr.decode().count(f"{fmt} has no CPU kernel") == 1


@pytest.mark.parametrize(("fmt", "factors"), [("mxfp4", False), ("nvfp4", True)])
def test_an_expert_in_host_memory_is_sent_to_the_gpu_as_its_values(fmt: str, factors: bool) -> None:
    pytest.importorskip("triton")
    from jambacli.runtime.cuda import offload
    from jambacli.runtime.cuda.memory import matrix_slot_bytes

    stack = random_weight(fmt, (3, 64, 256), size=0.2)
    if factors:
        stack = dataclasses.replace(stack, scale=torch.linspace(0.5, 2, 3).view(3, 1).expand(3, 64).contiguous())
    host = offload.HostExperts(torch.device("cpu"), reference_ops(), reference.mlp)
    sizes = offload._aligned_sizes(stack)
    assert sum(sizes) == matrix_slot_bytes(fmt, 64, 256) if factors else sizes == [matrix_slot_bytes(fmt, 64, 256)]
    host._reserve(3 * sum(sizes))
    slot = host._send(host._slots[0], (stack, stack, stack), 2)
    for packed in offload._repack(slot.device, (stack, stack, stack)):
        assert packed.q is not None
        expected = reference.dequantize(reference.expert(stack, 2))
        assert torch.equal(packed.q.view(64, 256), expected.half())
