"""Checkpoints quantized in each published format become the values that they stand for, and their logits."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jambacli.api import Jamba
from jambacli.convert.summary import summarize_checkpoint
from jambacli.convert.to_gguf import convert
from jambacli.errors import JambaError
from jambacli.gguf.reader import GGUFFile
from tests.support import quantized_checkpoints as q
from tests.support.checkpoints import load_f32, make_checkpoint
from tests.support.quantized_formats import FORMATS, Format

STACKED = [name for name, form in FORMATS.items() if form.stacks]


def make(folder: Path, form: Format, shape: str, stacked: bool = False) -> q.Tensors:
    """A checkpoint quantized in ``form``, and the tensors that it stands for."""
    if form.config["quant_method"] == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
    make_checkpoint(folder, shape, dtype="bfloat16", **q.CONFIG)
    return q.quantize(folder, form.quantizer(), form.config, stacked=stacked)


def plain(folder: Path, truth: q.Tensors) -> Path:
    """The same checkpoint with the values instead, for transformers."""
    out = folder.with_name("plain")
    shutil.copytree(folder, out)
    save_file({k: v.float().contiguous() for k, v in truth.items()}, out / "model.safetensors", {"format": "pt"})
    q.edit_config(out, quantization_config=None, dtype="float32")
    return out


def require_equal(got: Path, expected: Path) -> None:
    """Two GGUF files hold the same bytes in every tensor."""
    with GGUFFile.open(got) as a, GGUFFile.open(expected) as b:
        assert a.tensors.keys() == b.tensors.keys()
        for name, tensor in b.tensors.items():
            assert a.data(name).tobytes() == b.data(name).tobytes(), (name, tensor)


@pytest.mark.parametrize("name", FORMATS)
def test_dense_values_are_exact(tmp_path: Path, name: str) -> None:
    form = FORMATS[name]
    truth = make(tmp_path / "model", form, "dense")
    convert(tmp_path / "model", tmp_path / "got.gguf", type="f32")
    convert(plain(tmp_path / "model", truth), tmp_path / "expected.gguf", type="f32")
    require_equal(tmp_path / "got.gguf", tmp_path / "expected.gguf")


@pytest.mark.parametrize(("name", "stacked"), [(n, False) for n in FORMATS] + [(n, True) for n in STACKED])
def test_logits_are_those_of_the_values(tmp_path: Path, name: str, stacked: bool) -> None:
    form = FORMATS[name]
    truth = make(tmp_path / "model", form, "moe4", stacked)
    convert(tmp_path / "model", tmp_path / "m.gguf", type="f32")
    ids = torch.randint(0, 512, (24,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = load_f32(plain(tmp_path / "model", truth))(ids[None]).logits[0]
    got = Jamba.load(tmp_path / "m.gguf").logits(ids.tolist())
    assert expected.std() > 0.3
    assert (got - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
    assert any(
        form.said in note and form.config["quant_method"] in note
        for note in summarize_checkpoint(tmp_path / "model").notes
    )


Q_PROJ = "model.layers.2.self_attn.q_proj"
DOWN = "model.layers.0.feed_forward.down_proj"
NORM = "model.final_layernorm.weight"
Edit = Callable[[q.Tensors], object]


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def filled(name: str, value: float, at: tuple[int, ...] = (0, 0)) -> Edit:
    def edit(tensors: q.Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][at] = value

    return edit


def state(**values: Any) -> Edit:
    """Change the JSON text of a 4-bit weight."""
    name = f"{Q_PROJ}.weight.quant_state.bitsandbytes__nf4"

    def edit(tensors: q.Tensors) -> None:
        text = json.loads(bytes(tensors[name].tolist())) | values
        tensors[name] = torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)

    return edit


DAMAGED: dict[str, tuple[str, Edit, str]] = {
    "no scale": ("fp8 per channel", lambda t: t.pop(f"{Q_PROJ}.weight_scale"), f"{Q_PROJ}.weight_scale is missing"),
    "no block scale": ("deepseek blocks", lambda t: t.pop(f"{Q_PROJ}.weight_scale_inv"), "weight_scale_inv is missing"),
    "a scale of another shape": (
        "deepseek blocks", replaced(f"{Q_PROJ}.weight_scale_inv", lambda x: x[:, :1]),
        rf"{Q_PROJ}.weight_scale_inv is \[3, 1\], which does not divide a weight of \[128, 128\]",
    ),
    "too many scales": (
        "fp8 per channel", replaced(f"{Q_PROJ}.weight_scale", lambda x: torch.cat([x, x])), "weight_scale is .256, 1."
    ),
    "a scale that is no number": (
        "fp8 per channel", filled(f"{Q_PROJ}.weight_scale", float("nan")), f"{Q_PROJ}.weight_scale has a scale that is not"
    ),
    "scales of integers": (
        "fp8 per channel", replaced(f"{Q_PROJ}.weight_scale", lambda x: x.int()), "weight_scale is stored as I32, not as"
    ),
    "a weight that is not compressed": (
        "fp8 per channel", replaced(f"{Q_PROJ}.weight", lambda x: x.bfloat16()), f"{Q_PROJ}.weight has a scale but is stored"
    ),
    "another group size": (
        "packed int4", replaced(f"{Q_PROJ}.weight_scale", lambda x: x[:, :2]), "has groups of 64, but .* group_size is 32"
    ),
    "a narrower weight": (
        "packed int4", replaced(f"{Q_PROJ}.weight_packed", lambda x: x[:, :15]), "no number of bits .* packs 128 values"
    ),
    "another shape": (
        "packed int4", replaced(f"{Q_PROJ}.weight_shape", lambda x: x - 8), r"weight_shape says \[120, 120\]"
    ),
    "no shape": ("packed int4", lambda t: t.pop(f"{Q_PROJ}.weight_shape"), "weight_shape is missing"),
    "zero points of another shape": (
        "packed int4 asymmetric", replaced(f"{Q_PROJ}.weight_zero_point", lambda x: x[:8]), r"zero_point is \[8, 4\]"
    ),
    "a group that is none": ("packed int4 reordered", filled(f"{Q_PROJ}.weight_g_idx", 7, (0,)), "group outside 0 to 3"),
    "uneven groups": (
        "packed int4 reordered", replaced(f"{Q_PROJ}.weight_g_idx", torch.zeros_like), "groups that are not of 32 columns"
    ),
    "a nibble float": (
        "packed int4", lambda t: t.update({f"{Q_PROJ}.weight_global_scale": torch.ones(1)}), "a 4-bit float type"
    ),
    "scales of a norm": (
        "fp8 per channel",
        lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn), f"{NORM}_scale": torch.ones(2)}),
        rf"{NORM}_scale belongs to a weight of \[128\], which is no matrix",
    ),
    "no zeros": ("gptq int4", lambda t: t.pop(f"{Q_PROJ}.qzeros"), f"{Q_PROJ}.qzeros is missing"),
    "no qweight": ("awq", lambda t: t.pop(f"{Q_PROJ}.qweight"), f"{Q_PROJ}.qweight is missing"),
    "qweight of another height": (
        "gptq int4", replaced(f"{Q_PROJ}.qweight", lambda x: x[:8]), f"{Q_PROJ}.scales has 4 groups over 64 features"
    ),
    "qzeros of another width": ("gptq int4", replaced(f"{Q_PROJ}.qzeros", lambda x: x[:, :8]), r"qzeros is \[4, 8\]"),
    "a g_idx that is none": ("gptq int4 reordered", filled(f"{Q_PROJ}.g_idx", -2, (5,)), "g_idx names a group outside 0"),
    "packed bytes": ("gptq int4", replaced(f"{Q_PROJ}.qweight", lambda x: x.long()), "qweight is stored as I64, not as I32"),
    "a bias that is not zero": (
        "gptq int4 with zero biases", filled(f"{DOWN}.bias", 1.0, (3,)), f"{DOWN}.bias is not part of a Jamba"
    ),
    "no SCB": ("bnb int8", lambda t: t.pop(f"{Q_PROJ}.SCB"), f"{Q_PROJ}.weight is stored as I8, but its SCB"),
    "an old order": ("bnb int8", filled(f"{Q_PROJ}.weight_format", 2, ()), "order of an old GPU"),
    "no statistics": ("bnb nf4", lambda t: t.pop(f"{Q_PROJ}.weight.absmax"), "absmax is missing"),
    "no nested statistics": (
        "bnb nf4 nested", lambda t: t.pop(f"{Q_PROJ}.weight.nested_absmax"), "its nested_absmax or nested_quant_map"
    ),
    "too few statistics": (
        "bnb nf4", replaced(f"{Q_PROJ}.weight.absmax", lambda x: x[:-1]), r"absmax is F32 \[255\], but 256 of"
    ),
    "another blocksize": ("bnb nf4", state(blocksize=100), "names the blocksize 100"),
    "a blocksize that does not fit": ("bnb nf4", state(blocksize=128), "but 128 of"),
    "another type": ("bnb nf4", state(quant_type="fp4"), "names the type 'fp4'"),
    "a dtype that is none": ("bnb nf4", state(dtype="load"), "names the dtype 'load'"),
    "a shape that does not fit": ("bnb nf4", state(shape=[64, 128]), r"has 8192 bytes, but \[64, 128\] in nf4 takes 4096"),
    "no JSON": (
        "bnb nf4", replaced(f"{Q_PROJ}.weight.quant_state.bitsandbytes__nf4", lambda x: x[:9]), "is not valid JSON"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    form, edit, message = DAMAGED[name]
    folder, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    make(folder, FORMATS[form], "dense")
    tensors = q.read(folder)
    edit(tensors)
    q.write(folder, tensors)
    with pytest.raises(JambaError, match=message) as caught:
        convert(folder, out / "m.gguf")
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500 and str(folder) in text
    assert list(out.iterdir()) == []


def method(name: str, **values: Any) -> dict[str, Any]:
    return {"quant_method": name} | values


INT4 = FORMATS["packed int4"].config
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        name: (method(name), f"quantized by '{name}', which cannot be read")
        for name in ("hqq", "aqlm", "quanto", "mxfp4")
    },
    "nvfp4 of modelopt": (method("modelopt", quant_algo="NVFP4"), "by 'modelopt as NVFP4'"),
    "nvfp4": (INT4 | {"format": "nvfp4-pack-quantized"}, "by 'compressed-tensors as nvfp4-pack-quantized'"),
    "marlin-24": (INT4 | {"format": "marlin-24"}, "as marlin-24"),
    "sparse": (INT4 | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "as sparse-24-bitmask"),
    "transforms": (INT4 | {"transform_config": {"config_groups": {"u": {}}}}, "with a transform_config"),
    "marlin": (method("gptq", bits=4, group_size=32, checkpoint_format="marlin"), "by 'gptq as marlin'"),
    "5 bits": (method("gptq", bits=5, group_size=32), "by 'gptq with 5 bits'"),
    "gemv": (method("awq", bits=4, group_size=32, version="gemv"), "by 'awq as gemv'"),
    "no bits": (method("gptq", group_size=32), "bits of the quantization is 'None'"),
    "bits in words": (method("gptq", bits="four", group_size=32), "bits of the quantization is"),
    "no group": (method("awq", bits=4, group_size=0), "group_size of the quantization is '0'"),
    "odd blocks": (method("fp8", weight_block_size=[128]), "weight_block_size of the quantization is"),
    "no name": ({"colour": 3}, "by 'a quantizer that it does not name'"),
}


@pytest.fixture(scope="module")
def unquantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plain"), "dense", dtype="bfloat16", **q.CONFIG)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, unquantized: Path, name: str) -> None:
    config, message = REFUSED[name]
    shutil.copytree(unquantized, tmp_path / "model")
    q.edit_config(tmp_path / "model", quantization_config=config)
    for use in (lambda folder: convert(folder, tmp_path / "m.gguf"), summarize_checkpoint):
        with pytest.raises(JambaError, match=message) as caught:
            use(tmp_path / "model")
        assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


def test_a_quantization_of_nothing_is_said(tmp_path: Path, unquantized: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint that was dequantized, and kept its quantization_config."""
    shutil.copytree(unquantized, tmp_path / "model")
    q.edit_config(tmp_path / "model", quantization_config=INT4)
    convert(tmp_path / "model", tmp_path / "m.gguf", name="m")
    assert "describes a quantization by compressed-tensors, but no weight is quantized" in caplog.text
    convert(unquantized, tmp_path / "n.gguf", name="m")
    require_equal(tmp_path / "m.gguf", tmp_path / "n.gguf")


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("gptq int4", "quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}),
        ("awq", "quant_config.json", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
        (
            "modelopt fp8",
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
        ),
    ],
)
def test_the_configuration_may_be_in_a_file_of_its_own(
    tmp_path: Path, name: str, file: str, content: dict[str, Any]
) -> None:
    truth = make(tmp_path / "model", FORMATS[name], "dense")
    q.edit_config(tmp_path / "model", quantization_config=None)
    (tmp_path / "model" / file).write_text(json.dumps(content))
    convert(tmp_path / "model", tmp_path / "got.gguf", type="f32")
    (tmp_path / "model" / file).unlink()
    with pytest.raises(JambaError, match=r"belongs to quantized weights, but config\.json has no"):
        convert(tmp_path / "model", tmp_path / "m.gguf")
    convert(plain(tmp_path / "model", truth), tmp_path / "expected.gguf", type="f32")
    require_equal(tmp_path / "got.gguf", tmp_path / "expected.gguf")


def test_layers_of_several_kinds(tmp_path: Path) -> None:
    """Two groups of a configuration: attention in int8, the rest in int4; scales of activations and keys are left out."""
    make_checkpoint(tmp_path / "model", "dense", dtype="bfloat16", **q.CONFIG)
    kinds = {True: q.compressed_packed(8, 0, True), False: q.compressed_packed(4, 32, False)}

    def quantizer(name: str, matrix: torch.Tensor) -> tuple[q.Tensors, torch.Tensor]:
        parts, values = kinds["self_attn" in name](name, matrix)
        return parts | {name.removesuffix("weight") + "input_scale": torch.ones(1)}, values

    config = q.compressed_config("int", 4, "pack-quantized", "group", group_size=32, symmetric=False)
    other = q.compressed_config("int", 8, "pack-quantized", "channel")["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = other | {"targets": ["re:.*self_attn.*"]}
    truth = q.quantize(tmp_path / "model", quantizer, config)
    tensors = q.read(tmp_path / "model")
    q.write(tmp_path / "model", tensors | {"model.layers.2.self_attn.k_scale": torch.ones(1)})
    convert(tmp_path / "model", tmp_path / "got.gguf", type="f32")
    convert(plain(tmp_path / "model", truth), tmp_path / "expected.gguf", type="f32")
    require_equal(tmp_path / "got.gguf", tmp_path / "expected.gguf")
    notes = " ".join(summarize_checkpoint(tmp_path / "model").notes)
    assert "int4, groups of 32 (21 weights); int8, a scale per channel (4 weights)" in notes


@pytest.mark.parametrize(
    "name", ["fp8 in ragged blocks", "packed int4 asymmetric", "gptq int3 reordered v2", "bnb nf4 nested"]
)
def test_panels_far_smaller_than_a_matrix_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make(tmp_path / "model", FORMATS[name], "moe4", FORMATS[name].stacks)
    convert(tmp_path / "model", tmp_path / "whole.gguf", type="q8_0")
    monkeypatch.setattr("jambacli.convert.to_gguf.CONVERT_PANEL_BYTES", 4096)
    monkeypatch.setattr("jambacli.convert.quantized.matrices.VALUES_AT_ONCE", 300)
    convert(tmp_path / "model", tmp_path / "panels.gguf", type="q8_0")
    require_equal(tmp_path / "panels.gguf", tmp_path / "whole.gguf")


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "bf16"), ("float16", "f16"), (None, "bf16")])
def test_auto_is_the_type_in_the_configuration(tmp_path: Path, dtype: str | None, kind: str) -> None:
    make(tmp_path / "model", FORMATS["deepseek per tensor"], "dense")
    q.edit_config(tmp_path / "model", dtype=dtype, torch_dtype=None)
    assert convert(tmp_path / "model", tmp_path / "m.gguf").type == kind
    summary = summarize_checkpoint(tmp_path / "model")
    assert summary.file_type == f"{kind.upper()} from FP8"
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        matrices = [name for name in file.tensors if file.tensors[name].format.name == kind]
        assert all(name in matrices for name in ("blk.0.ffn_up.weight", "blk.2.attn_q.weight", "blk.0.ssm_in.weight"))


def test_bitsandbytes_missing_is_one_line(tmp_path: Path, unquantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(unquantized, tmp_path / "model")
    q.edit_config(tmp_path / "model", quantization_config=FORMATS["bnb int8"].config)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(JambaError, match=r"config.json: .* bitsandbytes, which needs: pip install 'jambacli\[bnb\]'"):
        convert(tmp_path / "model", tmp_path / "m.gguf")
    assert summarize_checkpoint(tmp_path / "model").params > 0
