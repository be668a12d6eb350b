"""The answers so far survive whatever ends the process, and only whole ones count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jambacli.batch.part_file import PartFile
from jambacli.errors import JambaError


def filled(output: Path) -> bytes:
    part = PartFile(output)
    for i in range(4):
        part.add(f"k{i}", {"answer": "é\n" * i})
    part.close()
    return part.path.read_bytes()


def test_records_are_found_again(tmp_path: Path) -> None:
    filled(tmp_path / "out.jsonl")
    part = PartFile(tmp_path / "out.jsonl")
    assert len(part) == 4 and "k2" in part and "k4" not in part
    assert part.get("k3") == {"answer": "é\n" * 3}
    part.clear()
    assert len(part) == 0
    part.remove()
    assert not part.path.exists()


def test_a_record_cut_at_any_byte_is_dropped_and_replaced(tmp_path: Path) -> None:
    data = filled(tmp_path / "out.jsonl")
    third, end = data.index(b"\n", data.index(b"k2")) + 1, len(data)
    for cut in range(third, end):
        (tmp_path / "out.jsonl.part").write_bytes(data[:cut])
        part = PartFile(tmp_path / "out.jsonl")
        assert len(part) == 3 and part.get("k2") == {"answer": "é\n" * 2}
        part.add("k3", {"answer": "again"})
        part.close()
        assert (tmp_path / "out.jsonl.part").read_bytes().startswith(data[:third])
        again = PartFile(tmp_path / "out.jsonl")
        assert again.get("k3") == {"answer": "again"} and len(again) == 4
        again.close()


def test_nothing_after_a_damaged_line_is_trusted(tmp_path: Path) -> None:
    data = filled(tmp_path / "out.jsonl")
    for wrong in (b"garbage\n", b'{"key": 1, "record": {}}\n', b'{"key": "k"}\n', b"[]\n", b"\xff\n"):
        lines = data.splitlines(keepends=True)
        (tmp_path / "out.jsonl.part").write_bytes(lines[0] + wrong + b"".join(lines[1:]))
        part = PartFile(tmp_path / "out.jsonl")
        assert len(part) == 1 and "k0" in part
        part.close()


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "out.jsonl")
    with pytest.raises(JambaError, match="another process"):
        PartFile(tmp_path / "out.jsonl")
    part.close()
    PartFile(tmp_path / "out.jsonl").close()


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of sizes stands for a full disk")
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    import resource

    from tests.support.limits import limited

    part = PartFile(tmp_path / "out.jsonl")
    part.add("a", {"x": 1})
    with limited(resource.RLIMIT_FSIZE, 1000):
        with pytest.raises(JambaError, match=r"cannot write .*out\.jsonl\.part: .*the answers so far are kept"):
            part.add("b", {"x": "y" * 2000})
        part.close()
    again = PartFile(tmp_path / "out.jsonl")
    assert "a" in again and "b" not in again and again.get("a") == {"x": 1}
    again.close()
