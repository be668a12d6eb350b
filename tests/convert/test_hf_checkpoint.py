"""Checkpoint directories that are damaged, hostile or foreign: one clear error naming the file or tensor, nothing written."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jambacli.convert.hf_checkpoint import MAX_JSON_BYTES, Checkpoint, read_header
from jambacli.convert.to_gguf import convert
from jambacli.errors import JambaError
from tests.support.checkpoints import make_checkpoint

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 0}
Change = Callable[[Path], object]


def edit_config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def edit_header(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Change the JSON header of model.safetensors and leave its data alone."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        edit(header)
        new = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return change


def write(name: str, data: bytes | str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def truncate(share: float) -> Change:
    def change(folder: Path) -> None:
        raw = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(raw[: int(len(raw) * share)])

    return change


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00002.bin")


def write_index(places: Any) -> Change:
    """An index instead of the one file, which would be used without it."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        write("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": places}))(folder)

    return change


def index_missing_file(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    write_index(dict.fromkeys(names, "model-00001-of-00002.safetensors"))(folder)


def lone_part(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors")


def second_copy(folder: Path) -> None:
    (folder / "model-b.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").rename(folder / "model-a.safetensors")


def a_billion_experts(folder: Path) -> None:
    edit_config(num_experts=1 << 30)(folder)
    edit_tensors(lambda t: t.pop(ROUTER))(folder)


def prefixed(prefix: str) -> Change:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return edit_tensors(edit)


ROUTER = "model.layers.1.feed_forward.router.weight"
EXPERT = "model.layers.1.feed_forward.experts.3.up_proj.weight"
A_LOG = "model.layers.1.mamba.A_log"

BAD: dict[str, tuple[Change, str]] = {
    "missing tensor": (edit_tensors(lambda t: t.pop(EXPERT)), rf"{EXPERT} is missing"),
    "missing norm": (
        edit_tensors(lambda t: t.pop("model.final_layernorm.weight")),
        "final_layernorm.weight is missing",
    ),
    "missing output of an untied model": (edit_tensors(lambda t: t.pop("lm_head.weight")), "lm_head.weight is missing"),
    "misshapen matrix": (edit_tensors(lambda t: t.update({ROUTER: torch.ones(3, 64)})), rf"{ROUTER} is \[3, 64\].*\[4"),
    "transposed state": (edit_tensors(lambda t: t.update({A_LOG: torch.ones(16, 128)})), rf"{A_LOG} is \[16, 128\]"),
    "vocabulary of another size": (edit_config(vocab_size=500), r"embed_tokens.weight is \[512, 64\]"),
    "unknown tensor": (edit_tensors(lambda t: t.update(foo=torch.ones(3))), "tensor foo is not part"),
    "one layer too many": (edit_config(num_hidden_layers=1), r"model\.layers\.1\..* is not part"),
    "one layer too few": (edit_config(num_hidden_layers=3), r"model\.layers\.2\..* and \d+ more are missing"),
    "other experts": (edit_config(num_experts=8), rf"{ROUTER} is \[4, 64\], but config.json requires \[8, 64\]"),
    "a billion experts": (a_billion_experts, "and many more are missing"),
    "attention elsewhere": (edit_config(attn_layer_offset=1), r"layers\.0\.mamba\.in_proj.weight and"),
    "both of one name": (
        edit_tensors(lambda t: t.update({ROUTER.replace("feed_forward", "moe"): t[ROUTER].clone()})),
        "are the same tensor",
    ),
    "integer weights": (
        edit_tensors(lambda t: t.update({ROUTER: torch.ones(4, 64, dtype=torch.int8)})),
        "stored as I8",
    ),
    "8-bit floats": (
        edit_tensors(lambda t: t.update({EXPERT: t[EXPERT].to(torch.float8_e4m3fn)})),
        f"{EXPERT} is stored as F8_E4M3",
    ),
    "mamba_proj_bias": (edit_config(mamba_proj_bias=True), "mamba_proj_bias is true"),
    "another architecture": (
        edit_config(model_type="mamba2", architectures=["Mamba2ForCausalLM"]),
        "architecture is Mamba2ForCausalLM; only JambaForCausalLM",
    ),
    "another head": (edit_config(architectures=["JambaForSequenceClassification"]), "JambaForSequenceClassification"),
    "another model type": (edit_config(model_type="llama"), "'llama'; only jamba"),
    "quantized by another method": (edit_config(quantization_config={"quant_method": "hqq"}), "by 'hqq', which cannot"),
    "names of DataParallel": (prefixed("module."), r"contain 'module\.', which DataParallel or"),
    "names of torch.compile": (prefixed("_orig_mod."), "contain '_orig_mod.', which torch.compile adds"),
    "names of PEFT": (prefixed("base_model.model."), "contain 'base_model.model.', which PEFT adds; merge"),
    "names of FSDP": (
        edit_tensors(lambda t: t.update({A_LOG.replace("layers.1", "layers.1._fsdp_wrapped_module"): t.pop(A_LOG)})),
        "contain '_fsdp_wrapped_module.', which FSDP adds",
    ),
    "impossible size": (edit_config(hidden_size="big"), "hidden_size is 'big'"),
    "negative layers": (edit_config(num_hidden_layers=-1), "num_hidden_layers is -1"),
    "absurd layers": (edit_config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "zero period": (edit_config(attn_layer_period=0), "attn_layer_period is 0"),
    "no JSON": (write("config.json", "{oops"), "config.json: the file is not valid JSON"),
    "JSON of another kind": (write("config.json", "[1]"), "config.json: the file is not a JSON object"),
    "deep JSON": (write("config.json", "[" * 100_000), "config.json: the file is not valid JSON"),
    "binary config": (write("config.json", b"\xff\xfe\x00"), "config.json: not UTF-8"),
    "huge number": (
        write("config.json", '{"hidden_size": ' + "9" * 5000 + "}"),
        "config.json: the file is not valid JSON",
    ),
    "pickles only": (only_pickles, r"pickled \(pytorch_model-00001-of-00002.bin\).*any code.*save_pretrained"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors weights"),
    "a pickle in disguise": (write("model.safetensors", b"PK\x03\x04" + b"0" * 100), "model.safetensors: .*a pickle"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors: .*truncated"),
    "cut in the header": (truncate(0.001), "model.safetensors: .*truncated"),
    "cut in the data": (truncate(0.7), "the file is truncated or damaged"),
    "a header of gigabytes": (
        write("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}"),
        "1099511627776 bytes of a 10 byte file",
    ),
    "a header too large": (
        write("model.safetensors", struct.pack("<Q", MAX_JSON_BYTES + 1) + b" " * (MAX_JSON_BYTES + 1)),
        "claims 16777217 bytes",
    ),
    "a header that is no JSON": (
        write("model.safetensors", struct.pack("<Q", 4) + b"nope"),
        "header is not valid JSON",
    ),
    "a header that is a list": (
        write("model.safetensors", struct.pack("<Q", 2) + b"[]"),
        "header is not a JSON object",
    ),
    "a tensor that is no object": (edit_header(lambda h: h.update({A_LOG: 3})), f"{A_LOG}' has no description"),
    "an unknown dtype": (edit_header(lambda h: h[A_LOG].update(dtype="Q9")), "unknown dtype 'Q9'"),
    "a negative shape": (edit_header(lambda h: h[A_LOG].update(shape=[-128, -16])), "invalid shape"),
    "a shape of true": (edit_header(lambda h: h[A_LOG].update(shape=[True, 16])), "invalid shape"),
    "a shape that overflows": (edit_header(lambda h: h[A_LOG].update(shape=[1 << 40, 1 << 40])), "takes"),
    "offsets past the end": (edit_header(lambda h: h[A_LOG].update(data_offsets=[0, 1 << 50])), "truncated or damaged"),
    "offsets backwards": (edit_header(lambda h: h[A_LOG].update(data_offsets=[8, 0])), "truncated or damaged"),
    "offsets of text": (edit_header(lambda h: h[A_LOG].update(data_offsets="ab")), "truncated or damaged"),
    "overlapping tensors": (
        edit_header(lambda h: h[A_LOG].update(data_offsets=h["lm_head.weight"]["data_offsets"], shape=[512, 64])),
        "overlap",
    ),
    "a tensor twice": (
        write("model.safetensors", struct.pack("<Q", 16) + b'{"a":{}, "a":{}}'),
        "header has the key 'a' twice",
    ),
    "a tensor in two files": (second_copy, "model-b.safetensors: tensor .* is also in model-a.safetensors"),
    "an index to elsewhere": (write_index({"a": "../other/model.safetensors"}), "not inside the directory"),
    "an index to the root": (write_index({"a": "/etc/passwd"}), "not inside the directory"),
    "an index to a drive": (write_index({"a": "C:\\x.safetensors"}), "not inside the directory"),
    "an index to a number": (write_index({"a": 5}), "not inside the directory"),
    "an index to a pickle": (write_index({"a": "pytorch_model.bin"}), "not a safetensors file"),
    "an empty index": (write_index({}), "weight_map is missing or empty"),
    "an index to a missing file": (index_missing_file, "'model-00001-of-00002.safetensors' is missing"),
    "a part alone": (lone_part, "part model-00001-of-00003.safetensors is missing"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.model").unlink(), "there is no tokenizer"),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("valid"), **SMALL)


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints_name_what_is_wrong_and_leave_nothing(tmp_path: Path, valid: Path, name: str) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    for path in valid.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change, message = BAD[name]
    change(folder)
    with pytest.raises(JambaError, match=message) as caught:
        convert(folder, out / "m.gguf")
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    assert str(folder) in text
    assert list(out.iterdir()) == []


def test_a_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(JambaError, match="no such checkpoint directory"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(JambaError, match="there is no config"):
        Checkpoint.open(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(JambaError, match="LoRA adapter: merge it first"):
        Checkpoint.open(tmp_path)


def test_a_file_cut_while_it_is_read_is_noticed(tmp_path: Path, valid: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((valid / path.name).read_bytes())
    (tmp_path / "config.json").write_bytes((valid / "config.json").read_bytes())
    with Checkpoint.open(tmp_path) as checkpoint:
        tensor = max(checkpoint.tensors.values(), key=lambda t: t.offset)
        with path.open("r+b") as file:
            file.truncate(tensor.offset + 5)
        with pytest.raises(JambaError, match=f"ends inside tensor {tensor.name}"):
            checkpoint.read_into(tensor, 0, bytearray(tensor.nbytes))


def test_more_shards_than_files_held_open(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "quantizable", max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 20
    with Checkpoint.open(folder) as checkpoint:
        for tensor in [*checkpoint.tensors.values()] * 2:
            data = bytearray(tensor.nbytes)
            checkpoint.read_into(tensor, 0, data)
            assert bytes(data) == tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]


def test_every_prefix_of_a_header_is_refused_cleanly(tmp_path: Path, valid: Path) -> None:
    raw = (valid / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    path = tmp_path / "model.safetensors"
    for size in [*range(0, 40), *range(40, 8 + length, 97)]:
        path.write_bytes(raw[:size])
        with pytest.raises(JambaError, match="truncated"):
            read_header(path)
    path.write_bytes(raw)
    assert set(read_header(path)) == set(load_file(path))
