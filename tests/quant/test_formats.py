"""The table of formats says what is implemented: in torch, in C++, and in ggml's own sizes."""

from __future__ import annotations

import ctypes
import re
import warnings

import gguf
import pytest
import torch

from quant import native
from quant.dequantize_blocks import torch_dequantizer
from quant.formats import BY_GGML_TYPE, FLOATS, FORMATS, Format
from quant.quantize_blocks import quantize, torch_quantizer
from tests.support.ggml_reference import library
from tests.support.repository import REPO

BLOCKS = [f for f in FORMATS.values() if f.block > 1]
NOT_BLOCKS = [f for f in FORMATS.values() if f.block == 1 and f.name not in FLOATS]


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_sizes_are_those_of_the_gguf_package(fmt: Format) -> None:
    assert BY_GGML_TYPE[fmt.ggml_type] is fmt
    if fmt.ggml_type not in list(gguf.GGMLQuantizationType):  # newer than this version of the package
        ggml = library()
        ggml.ggml_type_size.restype = ctypes.c_size_t
        ggml.ggml_blck_size.restype = ctypes.c_int64
        assert (fmt.block, fmt.block_bytes) == (ggml.ggml_blck_size(fmt.ggml_type), ggml.ggml_type_size(fmt.ggml_type))
        return
    kind = gguf.GGMLQuantizationType(fmt.ggml_type)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if fmt.name == "q8_1":  # ggml made its two factors halves; the package still has them as float32
        block_bytes -= 4
    assert (fmt.name.upper(), fmt.block, fmt.block_bytes) == (kind.name, block, block_bytes)


def test_native_formats_are_those_of_the_cpp_table() -> None:
    text = (REPO / "quant/native/block_formats.h").read_text(encoding="utf-8")
    found = {name.lower(): int(number) for name, number in re.findall(r"FORMAT\((\w+), block_\w+, (\d+)\)", text)}
    assert found == {f.name: f.ggml_type for f in BLOCKS if f.native}


@pytest.mark.parametrize("fmt", [f for f in BLOCKS if f.native], ids=lambda f: f.name)
def test_the_library_has_code_for_what_is_native(fmt: Format) -> None:
    if native.library() is None:
        pytest.skip("the C++ library is not built")
    assert native.can_dequantize(fmt.ggml_type)
    assert native.can_quantize(fmt.ggml_type) == fmt.writable


@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if f.writable and f.name != "i8"], ids=lambda f: f.name)
def test_what_is_writable_has_code_in_torch(fmt: Format) -> None:
    blocks = torch_quantizer(fmt)(torch.ones(2, 256), None)
    assert blocks.shape == (2, fmt.row_bytes(256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch_dequantizer(fmt)(blocks).shape == (2, 256)


@pytest.mark.parametrize("fmt", [f for f in BLOCKS if not f.writable], ids=lambda f: f.name)
def test_what_is_not_writable_is_refused(fmt: Format) -> None:
    with pytest.raises(ValueError, match=f"^{fmt.name} is not a format this package quantizes to$"):
        quantize(torch.zeros(1, 256), fmt.name)
    with pytest.raises(ValueError, match=f"^{fmt.name} has no quantizer in torch$"):
        torch_quantizer(fmt)


@pytest.mark.parametrize("fmt", NOT_BLOCKS, ids=lambda f: f.name)
def test_plain_numbers_are_not_dequantized(fmt: Format) -> None:
    with pytest.raises(ValueError, match=f"^{fmt.name} holds plain numbers, not blocks"):
        torch_dequantizer(fmt)
