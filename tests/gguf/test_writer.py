"""The GGUF writer: its files are read by the gguf package and llama.cpp, split or not; a failure leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jambacli.errors import JambaError
from jambacli.gguf.reader import GGUFFile
from jambacli.gguf.writer import GGUFWriter
from tests.support import jamba_gguf

TENSORS = {"one": (4, 8), "two": (3, 2, 32), "three": (5,), "four": (64, 32), "five": (7, 1)}


def values(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).standard_normal(TENSORS[name]).astype("<f4")


def fill(writer: GGUFWriter) -> None:
    writer.add("general.architecture", "jamba")
    writer.add("general.name", "written here")
    for name, shape in TENSORS.items():
        writer.plan_tensor(name, shape, "f32")
    writer.begin()
    for name in reversed(TENSORS):
        writer.write_tensor(name, values(name))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_the_gguf_package_reads_it_back(tmp_path: Path, alignment: int) -> None:
    import gguf

    path = tmp_path / "m.gguf"
    with GGUFWriter(path, alignment=alignment) as writer:
        fill(writer)
    assert writer.paths == [path]
    theirs = gguf.GGUFReader(path)
    assert theirs.fields["general.name"].contents() == "written here"
    assert [tensor.name for tensor in theirs.tensors] == list(TENSORS)
    for tensor in theirs.tensors:
        assert tensor.data_offset % alignment == 0
        assert tuple(int(n) for n in reversed(tensor.shape)) == TENSORS[tensor.name]
        np.testing.assert_array_equal(np.asarray(tensor.data).reshape(TENSORS[tensor.name]), values(tensor.name))


def test_the_file_is_the_gguf_package_s_byte_for_byte(tmp_path: Path) -> None:
    import gguf

    theirs = gguf.GGUFWriter(tmp_path / "theirs.gguf", "jamba")
    theirs.add_name("written here")
    theirs.add_uint32("jamba.block_count", 3)
    theirs.add_head_count_kv([0, 2, 0])
    theirs.add_layer_norm_rms_eps(1e-6)
    theirs.add_add_bos_token(True)
    theirs.add_token_list(["<unk>", "▁a", "b"])
    theirs.add_token_scores([0.0, -1.5, -2.0])
    theirs.add_token_types([2, 1, 1])
    for name in TENSORS:
        theirs.add_tensor(name, values(name))
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_tensors_to_file()
    theirs.close()

    with GGUFWriter(tmp_path / "ours.gguf") as ours:
        ours.add("general.architecture", "jamba")
        ours.add("general.name", "written here")
        ours.add("jamba.block_count", 3)
        ours.add("jamba.attention.head_count_kv", [0, 2, 0])
        ours.add("jamba.attention.layer_norm_rms_epsilon", 1e-6)
        ours.add("tokenizer.ggml.add_bos_token", True)
        ours.add("tokenizer.ggml.tokens", ["<unk>", "▁a", "b"])
        ours.add("tokenizer.ggml.scores", np.array([0, -1.5, -2], np.float32))
        ours.add("tokenizer.ggml.token_type", np.array([2, 1, 1], np.int32))
        for name, shape in TENSORS.items():
            ours.plan_tensor(name, shape, "f32")
        ours.begin()
        for name in TENSORS:
            ours.write_tensor(name, values(name))
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("u8", 255), ("i8", -128), ("u16", 65535), ("i16", -1), ("u32", 2**32 - 1), ("i32", -(2**31)), ("u64", 2**64 - 1),
        ("i64", -(2**63)), ("f32", 0.25), ("f64", 1e-300), ("bool", True), ("str", "naïve ▁ \udcff"),
    ],
)  # fmt: skip
def test_every_type_comes_back_with_its_type(tmp_path: Path, type_name: str, value: object) -> None:
    with GGUFWriter(tmp_path / "m.gguf") as writer:
        writer.add("one", value, type_name)
        writer.add("many", [value, value], f"arr[{type_name}]")
        writer.add("none", [], f"arr[{type_name}]")
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        assert file.metadata["one"] == value
        assert list(file.metadata["many"]) == [value, value]
        assert list(file.metadata["none"]) == []
        assert [file.metadata.type_name(key) for key in ("one", "many")] == [type_name, f"arr[{type_name}]"]


def test_metadata_copies_byte_for_byte(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "a.gguf", alignment=64) as writer:
        writer.add("odd", "caf\udce9")
        writer.add("list", ["x", "\udcff"])
        writer.add("drop", 1)
        writer.add("numbers", [1.5, 2.5], "arr[f64]")
    with GGUFFile.open(tmp_path / "a.gguf") as source, GGUFWriter(tmp_path / "b.gguf") as copy:
        copy.copy_metadata(source.metadata, skip={"drop"})
        expected = {key: source.metadata.raw(key) for key in ("odd", "list", "numbers")}
    with GGUFFile.open(tmp_path / "b.gguf") as copied:
        assert {key: copied.metadata.raw(key) for key in copied.metadata} == expected


@pytest.mark.parametrize(
    ("key", "value", "type_name"),
    [("k", -1, "u32"), ("k", 2**32, "u32"), ("k", "x", "u32"), ("k", 1, "u33"), ("k", [], None), ("k", None, None),
     ("k", [1, 300], "arr[u8]"), ("k", np.array([-1]), "arr[u32]"), ("", 1, "u32"), ("split.no", 1, "u16")],
)  # fmt: skip
def test_values_that_do_not_fit_are_the_caller_s_mistake(
    tmp_path: Path, key: str, value: object, type_name: str | None
) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf")
    with pytest.raises(ValueError):
        writer.add(key, value, type_name)


def test_pieces_may_come_in_any_order_but_must_all_come(tmp_path: Path) -> None:
    content = np.arange(64, dtype="<f4").tobytes()
    with GGUFWriter(tmp_path / "m.gguf") as writer:
        writer.plan_tensor("t", (2, 32), "f32")
        writer.begin()
        writer.write_at("t", 128, content[128:])
        writer.write_at("t", 0, content[:128])
        with pytest.raises(ValueError, match="outside tensor"):
            writer.write_at("t", 0, content[:4])
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        assert file.data("t").tobytes() == content

    with pytest.raises(ValueError, match="128 of 256 bytes"), GGUFWriter(tmp_path / "n.gguf") as writer:
        writer.plan_tensor("t", (2, 32), "f32")
        writer.begin()
        writer.write_at("t", 0, content[:128])
    assert left(tmp_path) == ["m.gguf"]


def test_tensors_that_cannot_be_are_the_caller_s_mistake(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf")
    writer.plan_tensor("t", (4, 32), "q8_0")
    for name, shape, fmt in [
        ("t", (4,), "f32"), ("u", (0, 4), "f32"), ("u", (1, 1, 1, 1, 1), "f32"), ("u", (), "f32"), ("", (4,), "f32"),
        ("n" * 64, (4,), "f32"), ("u", (33,), "q8_0"), ("u", (4,), "q9_9"),
    ]:  # fmt: skip
        with pytest.raises(ValueError):
            writer.plan_tensor(name, shape, fmt)
    with pytest.raises(ValueError, match="planning"):
        writer.write_tensor("t", b"\0" * 136)
    writer.begin()
    with pytest.raises(ValueError, match="136 bytes, not 137"):
        writer.write_tensor("t", b"\0" * 137)
    with pytest.raises(ValueError, match="writing"):
        writer.plan_tensor("late", (4,), "f32")
    writer.abort()
    assert left(tmp_path) == []


def test_a_split_set_has_gguf_split_s_layout(tmp_path: Path) -> None:
    import gguf

    # 128, 768, 32 (20 padded), 8192 and 32 (28 padded) bytes: the limit counts tensors only, as gguf-split does.
    with GGUFWriter(tmp_path / "m.gguf", split_max_size=900) as writer:
        fill(writer)
    names = [f"m-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    assert left(tmp_path) == names
    assert [path.name for path in writer.paths] == names
    held = []
    for i, name in enumerate(names):
        reader = gguf.GGUFReader(tmp_path / name)
        fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert fields["split.no"].contents() == i
        assert fields["split.count"].contents() == 4
        assert fields["split.tensors.count"].contents() == len(TENSORS)
        assert [fields[key].types[0].name for key in ("split.no", "split.count", "split.tensors.count")] == [
            "UINT16", "UINT16", "INT32",
        ]  # fmt: skip
        assert ("general.name" in fields) == (i == 0)
        held.append([tensor.name for tensor in reader.tensors])
    assert held == [["one", "two"], ["three"], ["four"], ["five"]]
    with GGUFFile.open(tmp_path / names[2]) as file:
        for name in TENSORS:
            assert file.data(name).tobytes() == values(name).tobytes()


def test_what_fits_in_one_part_is_not_split(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "m.gguf", split_max_size=1 << 20) as writer:
        fill(writer)
    assert left(tmp_path) == ["m.gguf"]
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        assert "split.count" not in file.metadata


def test_a_split_set_keeps_its_own_alignment(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "m.gguf", split_max_size=900, alignment=256) as writer:
        fill(writer)
    with GGUFFile.open(writer.paths[0]) as file:
        assert all(info.offset % 256 == 0 for info in file.tensors.values())
        assert file.data("five").tobytes() == values("five").tobytes()


def test_an_existing_output_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(JambaError, match="use force to replace it"):
        GGUFWriter(path)
    assert path.read_text() == "mine"
    with GGUFWriter(path, force=True) as writer:
        fill(writer)
    with GGUFFile.open(path) as file:
        assert len(file.tensors) == len(TENSORS)

    part = tmp_path / "s-00002-of-00004.gguf"
    part.write_text("mine")
    with (
        pytest.raises(JambaError, match=r"s-00002-of-00004\.gguf already exists"),
        GGUFWriter(tmp_path / "s.gguf", split_max_size=900) as writer,
    ):
        fill(writer)
    assert left(tmp_path) == ["m.gguf", part.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, JambaError])
@pytest.mark.parametrize("split", [None, 900])
def test_an_interrupted_run_leaves_nothing_but_the_old_file(
    tmp_path: Path, error: type[BaseException], split: int | None
) -> None:
    old = tmp_path / "m.gguf"
    old.write_text("old")
    with pytest.raises(error), GGUFWriter(old, force=True, split_max_size=split) as writer:
        fill(writer)
        assert len(left(tmp_path)) > 1
        raise error
    assert left(tmp_path) == ["m.gguf"]
    assert old.read_text() == "old"


FULL_DISK = """
import resource, signal, sys
from jambacli.gguf.writer import GGUFWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    with GGUFWriter(sys.argv[1], split_max_size=int(sys.argv[3])) as writer:
        for i in range(4):
            writer.plan_tensor(f"t{i}", (1 << 18,), "f32")
        writer.begin()
        print("began")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("split", [1 << 40, 2 << 20])
def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(tmp_path: Path, split: int) -> None:
    # A limit on the size of files stands in for the full disk: the kernel refuses in the same calls.
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "m.gguf"), str(1 << 20), str(split)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith(f"JambaError cannot write {tmp_path / 'm'}")
    assert out.endswith("nothing was left behind\n") and out.count("\n") == 1
    assert left(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(JambaError, match=r"cannot write .*No such file"),
        GGUFWriter(tmp_path / "no" / "m.gguf") as writer,
    ):
        fill(writer)
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(JambaError, match="is a directory"), GGUFWriter(tmp_path / "folder.gguf", force=True) as writer:
        fill(writer)


@pytest.mark.peer
def test_llama_cpp_loads_a_split_set_like_the_single_file(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    # llama.cpp does not load a vocabulary that lacks the byte pieces.
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a"]
    shape = jamba_gguf.Shape(layers=4, hidden=64, ffn=96, experts=4, attention=(1,), dt_rank=4, vocab=len(tokens))
    jamba_gguf.write(tmp_path / "source.gguf", shape, kind="f32")
    with GGUFFile.open(tmp_path / "source.gguf") as source:
        for split in (None, 200_000):
            with GGUFWriter(tmp_path / "m.gguf", split_max_size=split) as writer:
                writer.copy_metadata(source.metadata, skip={"tokenizer.ggml.tokens"})
                writer.add("tokenizer.ggml.model", "llama")
                writer.add("tokenizer.ggml.tokens", tokens)
                writer.add("tokenizer.ggml.scores", [0.0] * len(tokens), "arr[f32]")
                writer.add("tokenizer.ggml.token_type", [2, 3, 3, *[6] * 256, 1], "arr[i32]")
                for name, info in source.tensors.items():
                    writer.plan_tensor(name, info.shape, info.format)
                writer.begin()
                for name in source.tensors:
                    writer.write_tensor(name, source.data(name))
    assert len(writer.paths) > 3

    def logits(path: Path) -> np.ndarray:
        model = llama_cpp.Llama(str(path), n_ctx=32, n_threads=2, logits_all=True, verbose=False)
        model.eval([1, 70, 80, 90])
        return np.array(model.scores[:4])

    np.testing.assert_array_equal(logits(writer.paths[0]), logits(tmp_path / "m.gguf"))
