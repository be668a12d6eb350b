"""Whole files equal those of llama.cpp's own quantizer, metadata and order included, whatever the type and options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jambacli.gguf.reader import GGUFFile
from jambacli.quantize.imatrix import read_imatrix
from jambacli.quantize.quantize_file import Request, Result, plan, quantize
from jambacli.quantize.recipes import RecipeOptions, get_recipe, parse_tensor_type
from quant.formats import FORMATS
from tests.peers.record_types import SHAPES as RECORDED_SHAPES
from tests.peers.record_types import TARGET, compact, read_types
from tests.support import jamba_gguf, llama_quantize
from tests.support.imatrix_files import write_imatrix
from tests.support.jamba_gguf import Shape

pytestmark = pytest.mark.peer
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

SHAPES = {
    "sixteen experts": Shape(ffn=256, layers=8),
    "3B-shaped": Shape(
        layers=28,
        hidden=256,
        ffn=512,
        experts=1,
        attention=(7, 21),
        heads=2,
        kv_heads=1,
        dt_rank=160,
        vocab=256,
        tied=True,
    ),
}
TYPES = ("q2_k", "q3_k_m", "q4_0", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "iq4_xs")
OTHER_TYPES = ("f16", "bf16", "q3_k_s", "q3_k_l", "q4_1", "q5_0", "q5_1", "q5_k_s", "iq4_nl")


@pytest.fixture(scope="module", params=SHAPES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return jamba_gguf.write(folder / "in.gguf", SHAPES[request.param], shuffled=True)


def ours(source: Path, target: Path, kind: str, **options: Any) -> Result:
    with GGUFFile.open(source) as file:
        return quantize(plan(file, Request(get_recipe(kind), **options)), target)


@pytest.mark.parametrize("kind", TYPES)
def test_files_are_equal(source: Path, tmp_path: Path, kind: str) -> None:
    assert llama_quantize.quantize(source, tmp_path / "theirs.gguf", kind)
    ours(source, tmp_path / "ours.gguf", kind)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_files_of_the_other_types_are_equal(source: Path, tmp_path: Path, kind: str) -> None:
    test_files_are_equal(source, tmp_path, kind)


def importance(source: Path, path: Path) -> dict[str, np.ndarray]:
    """Write an imatrix of the model as llama-imatrix would (one expert unseen); its means by name."""
    rng = np.random.default_rng(3)
    sums: dict[str, tuple[np.ndarray, list[int]]] = {}
    with GGUFFile.open(source) as file:
        for name, info in file.tensors.items():
            if len(info.shape) > 1 and info.format.name == "bf16" and name != "token_embd.weight":
                experts = info.shape[0] if len(info.shape) == 3 else 1
                counts = [int(c) for c in rng.integers(50, 900, experts)]
                counts[-1] = 0 if experts > 1 else counts[-1]
                squares = rng.standard_normal((experts, info.shape[-1])).astype(np.float32) ** 2
                sums[name] = squares * np.array(counts, np.float32)[:, None], counts
    write_imatrix(path, sums)
    means = {}
    for name, (squares, counts) in sums.items():
        divided = [row / np.float32(c) if c else np.ones_like(row) for row, c in zip(squares, counts, strict=True)]
        means[name] = np.stack(divided)
    return means


@pytest.mark.parametrize(
    "kind",
    ["q4_k_m", *(pytest.param(k, marks=pytest.mark.slow) for k in ("q2_k", "q3_k_m", "q4_0", "q5_k_m", "iq4_xs"))],
)
def test_files_with_an_imatrix_are_equal(source: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "imatrix.gguf"
    means = importance(source, path)
    told = [
        ("quantize.imatrix.file", str(path)[:127]),
        ("quantize.imatrix.dataset", "wiki.train"),
        ("quantize.imatrix.entries_count", len(means)),
        ("quantize.imatrix.chunks_count", 12),
    ]
    assert llama_quantize.quantize(source, tmp_path / "theirs.gguf", kind, imatrix=means, metadata=told)
    ours(source, tmp_path / "ours.gguf", kind, imatrix=read_imatrix(path), options=RecipeOptions(has_imatrix=True))
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize(
    ("kind", "mine", "theirs"),
    [
        ("q4_0", RecipeOptions(pure=True), {"pure": True}),
        ("q8_0", RecipeOptions(output="f16"), {"output_tensor_type": FORMATS["f16"].ggml_type}),
        ("q4_0", RecipeOptions(embedding="q8_0"), {"token_embedding_type": FORMATS["q8_0"].ggml_type}),
        (
            "q8_0",
            RecipeOptions(tensor_types=[parse_tensor_type(r"blk\.[02]\.ffn_=q4_1"), parse_tensor_type("attn=q6_k")]),
            {"tensor_types": [(r"blk\.[02]\.ffn_", FORMATS["q4_1"].ggml_type), ("attn", FORMATS["q6_k"].ggml_type)]},
        ),
    ],
)
def test_files_made_with_options_are_equal(
    source: Path, tmp_path: Path, kind: str, mine: RecipeOptions, theirs: dict[str, Any]
) -> None:
    assert llama_quantize.quantize(source, tmp_path / "theirs.gguf", kind, **theirs)
    ours(source, tmp_path / "ours.gguf", kind, options=mine)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("source_kind", ["f32", "f16"])
def test_files_from_other_floats_and_from_quantized_ones_are_equal(tmp_path: Path, source_kind: str) -> None:
    source = jamba_gguf.write(
        tmp_path / "in.gguf", Shape(layers=4, ffn=256, experts=4, attention=(2,)), kind=source_kind
    )
    first, second = tmp_path / "q8_0.gguf", tmp_path / "q4_0.gguf"
    assert llama_quantize.quantize(source, first, "q8_0")
    ours(source, tmp_path / "ours-q8_0.gguf", "q8_0")
    assert (tmp_path / "ours-q8_0.gguf").read_bytes() == first.read_bytes()
    assert not llama_quantize.quantize(first, second, "q4_0")
    assert llama_quantize.quantize(first, second, "q4_0", allow_requantize=True)
    ours(first, tmp_path / "ours-q4_0.gguf", "q4_0", allow_requantize=True)
    assert (tmp_path / "ours-q4_0.gguf").read_bytes() == second.read_bytes()


def test_kept_parts_are_equal(source: Path, tmp_path: Path) -> None:
    with GGUFFile.open(source) as file:
        made = quantize(plan(file, Request(get_recipe("bf16"), split_max_size=9_000_000)), tmp_path / "in.gguf")
    assert len(made.paths) > 1
    assert llama_quantize.quantize(made.paths[0], tmp_path / "theirs", "q3_k_m", keep_split=True)
    parts = ours(made.paths[0], tmp_path / "ours.gguf", "q3_k_m", keep_split=True).paths
    theirs = sorted(tmp_path.glob("theirs-*"))
    assert [p.name.replace("ours", "theirs") for p in parts] == [p.name for p in theirs]
    for mine, other in zip(parts, theirs, strict=True):
        assert mine.read_bytes() == other.read_bytes()


def loads(path: Path, lines: list[str]) -> bool:
    """Whether llama.cpp loads a model; its log goes to ``lines``."""
    callback = llama_cpp.llama_log_callback(lambda level, text, data: lines.append(text.decode()))
    llama_cpp.llama_log_set(callback, None)
    try:
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if model:
            llama_cpp.llama_model_free(model)
        return bool(model)
    finally:
        llama_quantize.silence()


@pytest.fixture(scope="module")
def loadable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    shape = Shape(
        layers=4, ffn=256, experts=4, attention=(2,), vocab=64, extra_metadata={"tokenizer.ggml.model": "none"}
    )
    yield jamba_gguf.write(tmp_path_factory.mktemp("loadable") / "in.gguf", shape)


@pytest.mark.parametrize("kind", ["experts_q8_0", "q4_k_m", "q2_k", "iq4_nl", "bf16"])
def test_llama_cpp_loads_our_files(loadable: Path, tmp_path: Path, kind: str) -> None:
    ours(loadable, tmp_path / "out.gguf", kind)
    lines: list[str] = []
    assert loads(tmp_path / "out.gguf", lines), "".join(lines[-5:])


def test_llama_cpp_refuses_experts_int8_instead_of_misreading_it(loadable: Path, tmp_path: Path) -> None:
    ours(loadable, tmp_path / "out.gguf", "experts_int8")
    lines: list[str] = []
    assert not loads(tmp_path / "out.gguf", lines)
    assert any("wrong number of tensors" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["eight_experts", "attention_first_grouped", "rows_of_80"])
def test_recorded_types_are_what_this_llama_cpp_gives(tmp_path: Path, shape: str) -> None:
    recorded = json.loads(TARGET.read_text())[shape][""]
    source = jamba_gguf.write(tmp_path / "in.gguf", RECORDED_SHAPES[shape], seed=None, shuffled=True)
    for kind, types in recorded.items():
        assert llama_quantize.quantize(source, tmp_path / "out.gguf", kind)
        assert compact(read_types(tmp_path / "out.gguf")) == types, kind
