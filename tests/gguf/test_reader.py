"""The GGUF reader against the gguf package: values, shapes, bytes, split sets; one-line errors for damaged files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from jambacli.errors import BadFileError, JambaError, UnsupportedError
from jambacli.gguf.reader import GGUFFile
from tests.support import gguf_bytes as raw
from tests.support import jamba_gguf
from tests.support.gguf_bytes import Raw

TINY = jamba_gguf.Shape(
    layers=3, hidden=32, ffn=64, experts=4, attention=(1,), heads=2, kv_heads=1, dt_rank=2, vocab=16
)


def opened(tmp_path: Path, content: bytes) -> GGUFFile:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    return GGUFFile.open(path)


def f32(name: str, n: int = 8, offset: int = 0) -> bytes:
    return raw.tensor(name, (n,), 0, offset)


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_reads_what_the_gguf_package_wrote(tmp_path: Path, kind: str) -> None:
    import gguf

    path = jamba_gguf.write(tmp_path / "m.gguf", TINY, kind=kind)
    theirs = gguf.GGUFReader(path)
    with GGUFFile.open(path) as ours:
        assert [t.name for t in theirs.tensors] == list(ours.tensors)
        for tensor in theirs.tensors:
            info = ours.tensors[tensor.name]
            assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert info.format.ggml_type == tensor.tensor_type
            assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
            assert ours.data(tensor.name).tobytes() == np.ascontiguousarray(tensor.data).tobytes()
        keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
        assert keys == list(ours.metadata)
        for key in keys:
            expected = theirs.fields[key].contents()
            value = ours.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected


def test_version_2_reads_like_version_3(tmp_path: Path) -> None:
    content = Raw([raw.u32("a", 7)], [f32("t")], np.arange(8, dtype="<f4").tobytes(), version=2)
    with opened(tmp_path, content.build()) as file:
        assert (file.version, file.metadata["a"]) == (2, 7)
        assert file.data("t").view("<f4").tolist() == list(range(8))


@pytest.mark.parametrize(
    ("type_id", "code", "value"),
    [
        (raw.U8, "B", 200), (raw.I8, "b", -7), (raw.U16, "H", 60000), (raw.I16, "h", -30000), (raw.U32, "I", 4_000_000_000),
        (raw.I32, "i", -2_000_000_000), (raw.F32, "f", 0.5), (raw.BOOL, "B", 1), (raw.U64, "Q", 2**63 + 1),
        (raw.I64, "q", -(2**62)), (raw.F64, "d", 1e300),
    ],
)  # fmt: skip
def test_every_scalar_type_alone_and_in_arrays(tmp_path: Path, type_id: int, code: str, value: float) -> None:
    one = raw.pair("one", type_id, struct.pack(f"<{code}", value))
    many = raw.array("many", type_id, 3, struct.pack(f"<3{code}", value, 0, value))
    with opened(tmp_path, Raw([one, many, raw.array("none", type_id, 0, b"")]).build()) as file:
        assert file.metadata["one"] == value
        assert file.metadata["many"].tolist() == [value, 0, value]
        assert file.metadata.listed("many") == [value, 0, value]
        assert file.metadata.count("many") == 3
        assert len(file.metadata["none"]) == 0
        assert isinstance(file.metadata["one"], bool) == (type_id == raw.BOOL)


def test_strings_keep_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    pieces = ["▁Ünïcode", b"\xff\xfe", "", "x" * 300, "a\0b"]
    pairs = [
        raw.text("s", b"caf\xe9"),
        raw.array("good", raw.STR, 2, raw.string("a") + raw.string("")),
        raw.array("odd", raw.STR, 5, b"".join(raw.string(piece) for piece in pieces)),
    ]
    with opened(tmp_path, Raw(pairs).build()) as file:
        assert file.metadata["s"].encode("utf-8", "surrogateescape") == b"caf\xe9"
        assert file.metadata["good"] == ["a", ""]
        assert file.metadata["odd"] == ["▁Ünïcode", "\udcff\udcfe", "", "x" * 300, "a\0b"]


def test_views_outlive_the_file_and_are_read_only(tmp_path: Path) -> None:
    file = opened(tmp_path, Raw([], [f32("t")], np.ones(8, "<f4").tobytes()).build())
    view = file.data("t")
    file.close()
    assert view.view("<f4").sum() == 8
    assert not view.flags.writeable


def test_alignment_of_the_file_is_followed(tmp_path: Path) -> None:
    content = Raw([raw.u32("general.alignment", 256)], [f32("t")], np.full(8, 3, "<f4").tobytes(), alignment=256)
    with opened(tmp_path, content.build()) as file:
        assert file.tensors["t"].offset % 256 == 0
        assert file.data("t").view("<f4").tolist() == [3] * 8


HUGE = 1 << 60
BAD: dict[str, tuple[Raw, str]] = {
    "magic": (Raw(magic=b"GGML"), "not a GGUF file"),
    "zip": (Raw(magic=b"PK\3\4"), "not a GGUF file"),
    "version 1": (Raw(version=1), "GGUF version 1"),
    "version 4": (Raw(version=4), "GGUF version 4"),
    "version 0": (Raw(version=0), "GGUF version 0"),
    "big-endian": (Raw(version=0x03000000), "big-endian"),
    "tensor count": (Raw(n_tensors=HUGE), f"claims {HUGE} tensors"),
    "metadata count": (Raw(n_pairs=HUGE), f"claims {HUGE} metadata keys"),
    "key length": (Raw([struct.pack("<Q", HUGE)], data=bytes(64)), "metadata key number 0 claims"),
    "key utf-8": (Raw([raw.u32("ok", 1), raw.pair(b"\xff\xfe", raw.U32, bytes(4))]), "key number 1 is not valid UTF-8"),
    "empty key": (Raw([raw.u32("", 1)]), "metadata key number 0 is empty"),
    "duplicate key": (Raw([raw.u32("a.b", 1), raw.u32("a.b", 2)]), "'a.b' appears twice"),
    "value type": (Raw([raw.pair("k", 77, bytes(8))]), "'k' has the unknown type 77"),
    "element type": (Raw([raw.array("k", 99, 1, bytes(8))]), "'k' has the unknown element type 99"),
    "nested": (Raw([raw.array("k", raw.ARR, 1, bytes(64))]), "'k' is an array of arrays"),
    "array length": (Raw([raw.array("k", raw.F32, HUGE, bytes(64))]), "'k' runs past the end"),
    "array overflow": (Raw([raw.array("k", raw.U64, (1 << 61) + 1, bytes(64))]), "'k' runs past the end"),
    "string length": (Raw([raw.pair("k", raw.STR, struct.pack("<Q", HUGE))]), "'k' runs past the end"),
    "string list": (Raw([raw.array("k", raw.STR, 1 << 40, bytes(64))]), "over the limit"),
    "string list cut": (Raw([raw.array("k", raw.STR, 8, bytes(16))]), "'k' runs past the end"),
    "string in list": (
        Raw([raw.array("k", raw.STR, 2, raw.string("a") + struct.pack("<Q", 2**64 - 1))], data=bytes(64)),
        "string of metadata key 'k' runs past",
    ),
    "last string": (Raw([raw.array("k", raw.STR, 1, struct.pack("<Q", 500))]), "string of metadata key 'k' runs past"),
    "bool": (Raw([raw.pair("k", raw.BOOL, b"\2")]), "neither 0 nor 1"),
    "bool list": (Raw([raw.array("k", raw.BOOL, 3, b"\0\1\7")]), "neither 0 nor 1"),
    "alignment 0": (Raw([raw.u32("general.alignment", 0)]), "general.alignment is 0"),
    "alignment 48": (Raw([raw.u32("general.alignment", 48)]), "general.alignment is 48"),
    "alignment huge": (Raw([raw.u32("general.alignment", 1 << 31)]), "general.alignment is 2147483648"),
    "alignment type": (Raw([raw.text("general.alignment", "32")]), "general.alignment is str"),
    "tensor utf-8": (Raw([], [raw.tensor(b"\xc3", (8,))], bytes(32)), "tensor number 0 is not valid UTF-8"),
    "tensor type": (Raw([], [raw.tensor("t", (8,), 250)], bytes(32)), "tensor 't' has the unknown type 250"),
    "removed type": (Raw([], [raw.tensor("t", (32,), 4)], bytes(64)), "tensor 't' has the unknown type 4"),
    "dims 5": (Raw([], [raw.tensor("t", (1, 1, 1, 1, 8))], bytes(32)), "tensor 't' has 5 dimensions"),
    "dims 0": (Raw([], [raw.tensor("t", ())], bytes(64)), "tensor 't' has 0 dimensions"),
    "dims wild": (Raw([], [raw.tensor("t", (8,), n_dims=2**32 - 1)], bytes(32)), "tensor 't' has 4294967295 dimensions"),
    "zero dim": (Raw([], [raw.tensor("t", (8, 0))], bytes(32)), "tensor 't' has a dimension of 0"),
    "overflow": (Raw([], [raw.tensor("t", (1 << 32, 1 << 32))], bytes(32)), "invalid dimensions"),
    "wrap to small": (Raw([], [raw.tensor("t", (1 << 40, 1 << 24, 8))], bytes(64)), "invalid dimensions"),
    "block": (Raw([], [raw.tensor("t", (48,), 8)], bytes(64)), "rows of 48 values, not a multiple of q8_0's block of 32"),
    "k-block": (Raw([], [raw.tensor("t", (160,), 12)], bytes(96)), "not a multiple of q4_k's block of 256"),
    "offset": (Raw([], [f32("t", offset=8)], bytes(64)), "not a multiple of the alignment"),
    "offset far": (Raw([], [f32("t", offset=1 << 40)], bytes(64)), "tensor 't' needs bytes"),
    "offset wraps": (Raw([], [f32("t", offset=2**64 - 32)], bytes(64)), "tensor 't' needs bytes"),
    "data cut": (Raw([], [f32("a"), f32("t", 16, 32)], bytes(64)), "tensor 't' needs bytes"),
    "overlap": (Raw([], [f32("a", 16), f32("b", 8, 32)], bytes(64)), "tensors 'a' and 'b' overlap"),
    "same place": (Raw([], [f32("a"), f32("b")], bytes(32)), "tensors 'a' and 'b' overlap"),
    "duplicate tensor": (Raw([], [f32("a"), f32("a", offset=32)], bytes(64)), "tensor 'a' appears twice"),
    "control characters": (Raw([], [raw.tensor("\x1b[31m\n", (8,), 250)], bytes(32)), r"'\x1b[31m\n'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_with_file_and_field(tmp_path: Path, case: str) -> None:
    content, problem = BAD[case]
    with pytest.raises((BadFileError, UnsupportedError)) as caught:
        opened(tmp_path, content.build())
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'file.gguf'}: ")
    assert problem in line
    assert "\n" not in line and "\x1b" not in line


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    pairs = [raw.u32("a", 1), raw.text("b", "words"), raw.array("c", raw.STR, 2, raw.string("x") + raw.string("yz"))]
    whole = Raw(pairs, [f32("t"), f32("u", offset=32)], bytes(64)).build()
    opened(tmp_path, whole).close()
    for size in range(len(whole)):
        with pytest.raises(BadFileError):
            opened(tmp_path, whole[:size])


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "empty.gguf").touch()
    for name, problem in [
        ("none.gguf", "No such file"),
        ("pipe.gguf", "not a regular file"),
        ("", "a directory"),
        ("empty.gguf", "empty"),
        ("nul\0.gguf", "null"),
    ]:
        with pytest.raises(JambaError, match=problem):
            GGUFFile.open(tmp_path / name)


def part(no: int, count: int, tensors: dict[str, float], total: int, pairs: tuple[bytes, ...] = ()) -> bytes:
    split = [
        raw.pair("split.no", raw.U16, struct.pack("<H", no)),
        raw.pair("split.count", raw.U16, struct.pack("<H", count)),
        raw.pair("split.tensors.count", raw.I32, struct.pack("<i", total)),
    ]
    table = [f32(name, offset=32 * i) for i, name in enumerate(tensors)]
    data = b"".join(np.full(8, value, "<f4").tobytes() for value in tensors.values())
    return Raw([*pairs, *split], table, data).build()


def split_set(folder: Path, total: int = 4) -> list[Path]:
    contents = [
        part(0, 3, {"a": 1}, total, (raw.text("general.name", "three parts"),)),
        part(1, 3, {"b": 2, "c": 3}, total),
        part(2, 3, {"d": 4}, total),
    ]
    paths = [folder / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("index", [0, 1, 2])
def test_any_part_opens_the_whole_split_set(tmp_path: Path, index: int) -> None:
    paths = split_set(tmp_path)
    with GGUFFile.open(paths[index]) as file:
        assert file.paths == paths
        assert file.path == paths[0]
        assert file.size == sum(path.stat().st_size for path in paths)
        assert file.metadata["general.name"] == "three parts"
        assert {name: (info.part, file.data(name).view("<f4")[0]) for name, info in file.tensors.items()} == {
            "a": (0, 1), "b": (1, 2), "c": (1, 3), "d": (2, 4),
        }  # fmt: skip


def test_parts_behind_links_are_found_by_their_own_names(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for i, path in enumerate(split_set(tmp_path)):
        path.rename(tmp_path / "blobs" / str(i))
        (tmp_path / "snapshot" / path.name).symlink_to(tmp_path / "blobs" / str(i))
    with GGUFFile.open(tmp_path / "snapshot" / "m-00002-of-00003.gguf") as file:
        assert list(file.tensors) == ["a", "b", "c", "d"]


def test_a_bad_split_set_names_the_part(tmp_path: Path) -> None:
    def refused(problem: str, index: int = 0) -> None:
        with pytest.raises(JambaError) as caught:
            GGUFFile.open(paths[index])
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)

    paths = split_set(tmp_path)
    paths[1].unlink()
    refused("m-00002-of-00003.gguf are missing")
    refused("m-00002-of-00003.gguf are missing", 2)

    paths = split_set(tmp_path, total=5)
    refused("split.tensors.count is 5, but the parts hold 4")

    paths = split_set(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    refused("m-00002-of-00003.gguf: its split.no or split.count does not say part 2 of 3")

    paths = split_set(tmp_path)
    paths[2].write_bytes(part(2, 3, {"a": 9}, 4))
    refused("tensor 'a' is also in")

    paths = split_set(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    refused("m-00003-of-00003.gguf: truncated")

    renamed = tmp_path / "renamed.gguf"
    split_set(tmp_path)[0].rename(renamed)
    paths = [renamed]
    refused("it is part 1 of 3; name it NAME-00001-of-00003.gguf")


def test_split_counts_that_make_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    for no, count, problem in [(7, 2, "split.no is 7"), (0, 65535, "it is part 1 of 65535")]:
        path.write_bytes(part(no, count, {"a": 1}, 1))
        with pytest.raises(BadFileError, match=problem):
            GGUFFile.open(path)
    path.write_bytes(Raw([raw.text("split.count", "two")]).build())
    with pytest.raises(BadFileError, match=r"split\.count is not a count"):
        GGUFFile.open(path)
    path.write_bytes(part(0, 1, {"a": 1}, 1))
    with GGUFFile.open(path) as file:
        assert list(file.tensors) == ["a"]
