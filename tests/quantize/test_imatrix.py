"""Importance matrices: both of llama.cpp's formats give the same, and damaged or foreign files are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jambacli.errors import JambaError
from jambacli.quantize.imatrix import read_imatrix, read_legacy
from tests.support.imatrix_files import write_imatrix

ENTRIES = {
    "blk.0.ssm_in.weight": (np.array([[1.0, 4.0, 9.0, 0.0]], np.float32), [7]),
    "blk.1.ffn_up_exps.weight": (np.array([[2.0, 4.0], [3.0, 9.0], [0.0, 0.0]], np.float32), [2, 3, 0]),
}
MEANS = {
    "blk.0.ssm_in.weight": np.array([1, 4, 9, 0], np.float32) / np.float32(7),
    # The third expert saw no token: its columns count alike.
    "blk.1.ffn_up_exps.weight": np.array([1, 2, 1, 3, 1, 1], np.float32),
}
SHAPES = {"blk.0.ssm_in.weight": (8, 4), "blk.1.ffn_up_exps.weight": (3, 5, 2), "blk.0.attn_norm.weight": (4,)}


def legacy_bytes(*, calls: int = 12, tail: bool = True) -> bytes:
    """As the tool wrote ".dat": the means times the calls, an entry's experts one after another."""
    out = struct.pack("<i", len(MEANS))
    for name, means in MEANS.items():
        values = means * np.float32(max(calls, 1))
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(means)) + values.tobytes()
    return out + (struct.pack("<ii", 12, 10) + b"wiki.train" if tail else b"")


def test_gguf_sums_are_divided_by_their_own_counts(tmp_path: Path) -> None:
    imatrix = read_imatrix(write_imatrix(tmp_path / "i.gguf", ENTRIES))
    assert imatrix.entries.keys() == MEANS.keys()
    for name, means in MEANS.items():
        np.testing.assert_array_equal(imatrix.entries[name], means)
    assert (imatrix.datasets, imatrix.chunks) == (("wiki.train", "code"), 12)


@pytest.mark.parametrize("calls", [12, 0])
def test_legacy_sums_are_divided_by_the_calls_if_there_were_any(tmp_path: Path, calls: int) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(legacy_bytes(calls=calls))
    imatrix = read_imatrix(path)
    for name, means in MEANS.items():
        np.testing.assert_allclose(imatrix.entries[name], means, rtol=1e-6)
    assert (imatrix.datasets, imatrix.chunks) == (("wiki.train",), 12)


def test_the_legacy_tail_is_optional(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(legacy_bytes(tail=False))
    imatrix = read_imatrix(path)
    assert (imatrix.datasets, imatrix.chunks) == ((), 0)


def test_weights_come_in_the_shape_that_the_tensor_needs(tmp_path: Path) -> None:
    imatrix = read_imatrix(write_imatrix(tmp_path / "i.gguf", ENTRIES))
    imatrix.check(SHAPES)
    matrix = imatrix.weights_for("blk.0.ssm_in.weight", (8, 4))
    experts = imatrix.weights_for("blk.1.ffn_up_exps.weight", (3, 5, 2))
    assert matrix is not None
    assert matrix.shape == (4,)
    assert experts is not None
    np.testing.assert_array_equal(experts, [[1, 2], [1, 3], [1, 1]])
    assert imatrix.weights_for("blk.0.ssm_out.weight", (4, 8)) is None


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (
            SHAPES | {"blk.0.ssm_in.weight": (8, 6)},
            "4 column weights for blk.0.ssm_in.weight, which has 6 in this model",
        ),
        (
            SHAPES | {"blk.1.ffn_up_exps.weight": (4, 5, 2)},
            "6 column weights for blk.1.ffn_up_exps.weight, which has 4 experts",
        ),
        ({"blk.0.ssm_in.weight": (8, 4)}, "has an entry for blk.1.ffn_up_exps.weight, which this model does not have"),
    ],
)
def test_an_imatrix_of_another_model_is_named(tmp_path: Path, shapes: dict[str, tuple[int, ...]], named: str) -> None:
    path = write_imatrix(tmp_path / "i.gguf", ENTRIES)
    with pytest.raises(JambaError, match="made for another model") as error:
        read_imatrix(path).check(shapes)
    assert named in str(error.value)
    assert str(path) in str(error.value)


def test_an_imatrix_with_nothing_of_the_model_is_refused(tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "i.gguf", {"output.weight": (np.ones((1, 4), np.float32), [1])})
    with pytest.raises(JambaError, match=r"it has an entry for output\.weight, but for no tensor of this model"):
        read_imatrix(path).check(SHAPES)


def test_only_the_embedding_may_differ_in_size(tmp_path: Path) -> None:
    entries = ENTRIES | {"token_embd.weight": (np.ones((1, 9), np.float32), [1])}
    imatrix = read_imatrix(write_imatrix(tmp_path / "i.gguf", entries))
    imatrix.check(SHAPES | {"token_embd.weight": (16, 4)})
    assert imatrix.weights_for("token_embd.weight", (16, 4)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_impossible_weights_are_named(tmp_path: Path, bad: float, kind: str) -> None:
    path = tmp_path / f"i.{kind}"
    if kind == "gguf":
        sums = np.ones((1, 8), np.float32)
        sums[0, 5] = bad
        write_imatrix(path, {"blk.0.ssm_in.weight": (sums, [1])})
    else:
        values = np.ones(8, "<f4")
        values[5] = bad
        path.write_bytes(struct.pack("<ii1sii", 1, 1, b"x", 1, 8) + values.tobytes())
    with pytest.raises(JambaError, match="column 5 of") as error:
        read_imatrix(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("no counts", {"drop": ".counts"}, r"counts' is missing"),
        ("no sums", {"drop": ".in_sum2"}, "not an imatrix"),
        ("counts that do not divide", {"counts": 3}, "4 sums and 3 counts"),
        ("halves", {"dtype": np.float16}, "is f16, it must be f32"),
    ],
)
def test_a_damaged_gguf_imatrix_is_named(tmp_path: Path, name: str, change: dict[str, object], told: str) -> None:
    import gguf

    path = tmp_path / "i.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if change.get("drop") != ".in_sum2":
        writer.add_tensor("blk.0.ssm_in.weight.in_sum2", np.ones((1, 4), change.get("dtype", np.float32)))
    if change.get("drop") != ".counts":
        writer.add_tensor("blk.0.ssm_in.weight.counts", np.ones((change.get("counts", 1), 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(JambaError, match=told):
        read_imatrix(path)


def test_every_truncation_of_a_legacy_file_is_refused(tmp_path: Path) -> None:
    whole = legacy_bytes(tail=False)
    path = tmp_path / "i.dat"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(JambaError, match=str(path)):
            read_legacy(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, len(legacy_bytes()) - 1), value=st.binary(min_size=1, max_size=8))
def test_a_changed_legacy_file_is_an_error_or_valid(tmp_path: Path, where: int, value: bytes) -> None:
    raw = bytearray(legacy_bytes())
    raw[where : where + len(value)] = value
    path = tmp_path / "i.dat"
    path.write_bytes(raw)
    try:
        imatrix = read_legacy(path)
    except JambaError:
        return
    for values in imatrix.entries.values():
        assert np.isfinite(values).all()
        assert (values >= 0).all()


def test_a_count_of_billions_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    for header in (
        struct.pack("<i", 2**31 - 1),
        struct.pack("<ii1sii", 1, 1, b"x", 1, 2**31 - 1),
        struct.pack("<ii", 1, 2**30),
    ):
        path.write_bytes(header + bytes(64))
        with pytest.raises(JambaError, match=r"not an imatrix|past the end"):
            read_legacy(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JambaError, match=r"cannot read .*absent\.dat"):
        read_imatrix(tmp_path / "absent.dat")
