"""Recipes give every tensor the type that llama.cpp's quantizer gave it, as recorded by tests/peers/record_types.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jambacli.quantize.recipes import (
    RECIPES,
    Facts,
    RecipeOptions,
    Tensor,
    get_recipe,
    may_quantize,
    parse_format,
    parse_tensor_type,
    plan,
    visiting_order,
)
from quant.formats import FORMATS
from tests.peers.record_types import SHAPES, expand
from tests.support.jamba_gguf import Shape, stays_f32, tensors

RECORDED = json.loads((Path(__file__).parent / "llama_cpp_types.json").read_text())
OPTIONS = {
    "": RecipeOptions(),
    "pure": RecipeOptions(pure=True),
    "imatrix": RecipeOptions(has_imatrix=True),
    "output q4_k": RecipeOptions(output="q4_k"),
    "embedding q8_0": RecipeOptions(embedding="q8_0"),
    "patterns": RecipeOptions(
        tensor_types=[parse_tensor_type("ffn_down=Q6_K"), parse_tensor_type("attn_v|ssm_in=q4_k")],
    ),
}


def tensors_of(shape: Shape, fmt: str = "bf16") -> list[Tensor]:
    by_name = {name: Tensor(name, dims, "f32" if stays_f32(name, dims) else fmt) for name, dims in tensors(shape)}
    return [by_name[name] for name in visiting_order(by_name)]


def facts_of(shape: Shape) -> Facts:
    return Facts(shape.layers, shape.experts, shape.heads // shape.kv_heads if 0 in shape.attention else 0)


@pytest.mark.parametrize(("shape", "option"), [(s, o) for s in RECORDED for o in RECORDED[s]])
def test_types_are_those_llama_cpp_gave(shape: str, option: str) -> None:
    listed = tensors_of(SHAPES[shape])
    names = [t.name for t in listed if may_quantize(t)]
    for kind, recorded in RECORDED[shape][option].items():
        if kind in ("f16", "bf16") and option in ("patterns", "output q4_k"):
            continue  # llama.cpp ignores the option in this case; see the next test
        choices = plan(listed, facts_of(SHAPES[shape]), get_recipe(kind), OPTIONS[option])
        assert {c.name: c.format for c in choices if not c.kept} == expand(recorded, names), kind
        assert all(c.format == c.tensor.format for c in choices if c.kept)


def test_wishes_hold_under_a_float_type_too() -> None:
    listed = tensors_of(SHAPES["small_3b"])
    options = RecipeOptions(tensor_types=[parse_tensor_type(r"blk\.[0-3]\.ffn_down=q6_k")], output="q8_0")
    formats = {c.name: c.format for c in plan(listed, facts_of(SHAPES["small_3b"]), get_recipe("bf16"), options)}
    assert [n for n, f in formats.items() if f == "q6_k"] == [f"blk.{i}.ffn_down.weight" for i in range(4)]
    assert formats["token_embd.weight"] == "q8_0"  # the output: it is tied
    assert formats["blk.9.ffn_down.weight"] == "bf16"


def test_the_first_pattern_wins_and_a_type_of_its_own_before_any() -> None:
    options = RecipeOptions(
        tensor_types=[parse_tensor_type("ATTN_K=q8_0"), parse_tensor_type("attn_=q5_k"), parse_tensor_type(".*=q4_0")],
        output="f16",
        embedding="q4_1",
    )
    formats = {c.name: c.format for c in plan(tensors_of(Shape()), facts_of(Shape()), get_recipe("q4_k_m"), options)}
    assert formats["blk.4.attn_k.weight"] == "q8_0"
    assert formats["blk.4.attn_v.weight"] == "q5_k"
    assert formats["blk.0.ssm_in.weight"] == "q4_0"
    assert formats["output.weight"] == "f16"
    assert formats["token_embd.weight"] == "q4_1"


@pytest.mark.parametrize(("name", "expert_format"), [("experts_q8_0", "q8_0"), ("experts_int8", "i8")])
def test_the_experts_types_leave_the_rest_in_bf16(name: str, expert_format: str) -> None:
    choices = plan(tensors_of(Shape(), "f32"), facts_of(Shape()), get_recipe(name))
    for choice in choices:
        if re.search(r"ffn_(gate|up|down)_exps", choice.name):
            assert choice.format == expert_format
        else:
            assert choice.format == ("f32" if choice.kept else "bf16")
    assert sum(c.format == expert_format for c in choices) == 12


def test_the_experts_types_refuse_a_model_without_experts() -> None:
    shape = SHAPES["small_3b"]
    with pytest.raises(ValueError, match="experts_int8 is for models with experts"):
        plan(tensors_of(shape), facts_of(shape), get_recipe("EXPERTS_INT8"))


def test_a_row_that_fits_no_block_becomes_f16_but_not_where_a_type_was_demanded() -> None:
    shape = SHAPES["rows_of_80"]
    choices = plan(tensors_of(shape), facts_of(shape), get_recipe("q4_0"))
    odd = [c for c in choices if c.fallback_from]
    assert {(c.fallback_from, c.format) for c in odd} == {("q4_0", "f16"), ("q8_0", "f16")}
    with pytest.raises(
        ValueError, match=r"token_embd\.weight: a row of 80 values is not a multiple of q4_k's block of 256"
    ):
        plan(tensors_of(shape), facts_of(shape), get_recipe("q4_0"), RecipeOptions(embedding="q4_k"))


def test_order_is_by_layer_then_name() -> None:
    shuffled = ["blk.10.ssm_a", "token_embd.weight", "blk.2.ffn_up.weight", "output.weight", "blk.2.attn_norm.weight"]
    assert visiting_order(shuffled) == [
        "output.weight",
        "token_embd.weight",
        "blk.2.attn_norm.weight",
        "blk.2.ffn_up.weight",
        "blk.10.ssm_a",
    ]


def test_a_tensor_of_a_layer_that_is_not_there_is_named() -> None:
    stray = Tensor("blk.99.ffn_down_exps.weight", (4, 256, 256), "bf16")
    with pytest.raises(ValueError, match=r"blk\.99\.ffn_down_exps\.weight: layer 99 is not one of the model's 8"):
        plan([stray], Facts(8, 4, 0), get_recipe("q4_k_m"))


def test_sizes_are_those_of_whole_blocks() -> None:
    choice = plan([Tensor("blk.0.ffn_up_exps.weight", (16, 512, 256), "bf16")], Facts(8, 16, 0), get_recipe("q4_k_s"))
    assert choice[0].nbytes == 16 * 512 * 144


@pytest.mark.parametrize("spelling", ["Q4_K_M", "q4_k_m", "q4-k-m", " q4_K_m ", "Q4_K"])
def test_types_are_found_however_they_are_spelt(spelling: str) -> None:
    assert get_recipe(spelling) is RECIPES["q4_k_m"]


def test_unknown_types_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown type 'q4_k_xl'; known: .*experts_int8"):
        get_recipe("q4_k_xl")
    with pytest.raises(ValueError, match="cannot write iq2_xs; known: f32, f16"):
        parse_format("IQ2_XS")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("attn_v", "is not PATTERN=TYPE"),
        ("=q8_0", "is not PATTERN=TYPE"),
        ("attn_v=", "is not PATTERN=TYPE"),
        ("attn_v=q9", "unknown format 'q9'"),
        ("attn_v=i8", "cannot write i8"),
        ("attn_(v=q8_0", "is not a regular expression"),
    ],
)
def test_malformed_patterns_are_explained(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_tensor_type(text)


def test_every_recipe_names_formats_that_exist() -> None:
    shape = SHAPES["mini_thin"]
    for recipe in RECIPES.values():
        for choice in plan(tensors_of(shape), facts_of(shape), recipe):
            assert FORMATS[choice.format].writable
