"""Formats by divergence: the least sum at a size, never more bytes, and the same choice as patterns for llama-quantize."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from jambacli.errors import BadFileError, JambaError, UsageError
from jambacli.gguf.reader import GGUFFile
from jambacli.quantize import allocate as a
from jambacli.quantize.quantize_file import Request, plan, quantize
from jambacli.quantize.recipes import Choice, RecipeOptions, Tensor, get_recipe, parse_tensor_type
from jambacli.quantize.sensitivity import Sensitivity, read_sensitivity, weights_id, write_sensitivity
from tests.support import jamba_gguf
from tests.support.jamba_gguf import Shape

SMALL = Shape(layers=4, hidden=256, ffn=256, experts=4, attention=(2,), vocab=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jamba_gguf.write(tmp_path_factory.mktemp("source") / "small-bf16.gguf", SMALL)


def random_options(seed: int, tensors: int) -> dict[str, list[a.Option]]:
    generator = random.Random(seed)
    return {
        f"t{t}": [a.Option(f"f{i}", generator.randrange(1, 60), generator.random() / (1 + i)) for i in range(4)]
        for t in range(tensors)
    }


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    options = random_options(seed, 5)
    for budget in (40, 90, 140, 400):
        best = min(
            (
                sum(o.cost for o in some)
                for some in itertools.product(*options.values())
                if sum(o.nbytes for o in some) <= budget
            ),
            default=None,
        )
        found = a.allocate(options, budget)
        if best is None:
            assert found is None
            continue
        assert found is not None
        chosen = [next(o for o in options[name] if o.format == fmt) for name, fmt in found.items()]
        assert sum(o.nbytes for o in chosen) <= budget
        assert sum(o.cost for o in chosen) == pytest.approx(best)


def test_large_sizes_are_filled_though_they_are_counted_in_units() -> None:
    generator = random.Random(3)
    options = {
        f"t{t}": [a.Option(f, int(b * s), s * e) for f, b, e in (("q", 2.6, 9.0), ("r", 4.5, 1.0), ("s", 8.5, 0.1))]
        for t, s in enumerate(generator.uniform(1e6, 9e7) for _ in range(60))
    }
    low, high = (sum(pick(o.nbytes for o in some) for some in options.values()) for pick in (min, max))
    budget = (low + high) // 2
    found = a.allocate(options, budget)
    assert found is not None
    total = sum(next(o.nbytes for o in options[name] if o.format == fmt) for name, fmt in found.items())
    assert 0.995 * budget < total <= budget


def test_what_was_not_measured_is_estimated_from_the_nearest() -> None:
    tensor = Tensor("blk.0.ssm_out.weight", (256, 512), "bf16")
    figures = Sensitivity("w", "t", 1, "", "plain", kl={tensor.name: {"q3_k": 2.3, "q6_k": 0.05}})
    costs = {o.format: o.cost for o in a.options_of(Choice(tensor, "q4_k"), figures)}
    assert costs["q3_k"] == 2.3 and costs["q6_k"] == 0.05
    assert costs["q4_k"] == pytest.approx(2.3 * a.RELATIVE_ERROR["q4_k"] / a.RELATIVE_ERROR["q3_k"])
    assert costs["q8_0"] == pytest.approx(0.05 * a.RELATIVE_ERROR["q8_0"] / a.RELATIVE_ERROR["q6_k"])
    assert list(costs.values()) == sorted(costs.values(), reverse=True) or costs["iq4_xs"] >= costs["q4_k"]


def test_a_row_that_fits_no_super_block_takes_stand_ins() -> None:
    assert a.candidates(Tensor("blk.0.ssm_dt.weight", (512, 160), "bf16")) == [
        "q4_0",
        "iq4_nl",
        "q5_0",
        "q5_1",
        "q8_0",
        "f16",
    ]
    assert a.candidates(Tensor("blk.0.ssm_dt.weight", (512, 16), "bf16")) == ["f16"]


@pytest.mark.parametrize("target", [3.5, 4.85, 6.0])
def test_a_target_is_reached_and_never_passed(source: Path, tmp_path: Path, target: float) -> None:
    with GGUFFile.open(source) as file:
        chosen = plan(file, Request(get_recipe("q4_k_m"), target=target))
        assert 0.98 * target < chosen.bits_per_weight <= target
        assert chosen.request.recipe.label == f"{target:.2f}bpw"
        quantize(chosen, tmp_path / "out.gguf")
        assert (tmp_path / "out.gguf").stat().st_size == chosen.size
        same = plan(file, Request(get_recipe("q4_k_m"), size=chosen.size))
        assert 0.98 * chosen.size < same.size <= chosen.size


@pytest.mark.parametrize("kind", ["q3_k", "q4_k", "q5_k"])
def test_named_recipes_take_the_size_of_the_mixture(source: Path, kind: str) -> None:
    with GGUFFile.open(source) as file:
        mixture, chosen = plan(file, Request(get_recipe(f"{kind}_m"))), plan(file, Request(get_recipe(f"{kind}_x")))
    assert 0.98 * mixture.size < chosen.size <= mixture.size
    assert chosen.request.recipe.file_type == mixture.request.recipe.file_type
    assert chosen.allocation is not None and not chosen.allocation.measured
    assert {c.format for c in chosen.choices} != {c.format for c in mixture.choices}


def test_what_the_user_chose_stays(source: Path) -> None:
    options = RecipeOptions([parse_tensor_type("ssm_out=q2_k")], embedding="q8_0")
    with GGUFFile.open(source) as file:
        chosen = plan(file, Request(get_recipe("q4_k_x"), options))
    formats = {c.name: c.format for c in chosen.choices}
    assert formats["token_embd.weight"] == "q8_0" and formats["blk.1.ssm_out.weight"] == "q2_k"


def test_figures_decide(source: Path) -> None:
    with GGUFFile.open(source) as file:
        names = [c.name for c in plan(file, Request(get_recipe("q4_k_m"))).choices if a.may_choose(c)]
        flat = {fmt: error for fmt, error in a.RELATIVE_ERROR.items() if fmt in a.CANDIDATES}
        kl = {name: {fmt: error * (1000 if "attn_v" in name else 1) for fmt, error in flat.items()} for name in names}
        figures = Sensitivity(weights_id(file), "t", 1, "", "plain", kl=kl)
        chosen = plan(file, Request(get_recipe("q4_k_x"), sensitivity=figures))
        formats = {c.name: c.format for c in chosen.choices}
        assert formats["blk.2.attn_v.weight"] == "f16"
        assert chosen.allocation is not None and chosen.allocation.measured
        assert chosen.allocation.predicted == pytest.approx(
            sum(kl[n].get(f, 0.0) for n, f in formats.items() if n in kl), rel=0.2
        )
        other = Sensitivity("others", "t", 1, "", "plain", kl=kl)
        with pytest.raises(JambaError, match="other weights"):
            plan(file, Request(get_recipe("q4_k_x"), sensitivity=other))


def test_patterns_give_every_tensor_its_format_in_any_order(source: Path) -> None:
    with GGUFFile.open(source) as file:
        chosen = plan(file, Request(get_recipe("q4_k_x")))
        patterns = a.tensor_type_patterns(chosen.choices)
        parsed = [parse_tensor_type(text) for text in patterns]
        for choice in chosen.choices:
            found = [fmt for pattern, fmt in parsed if pattern.search(choice.name)]
            assert found == ([] if choice.kept else [choice.format])
        again = plan(file, Request(get_recipe("q4_k_m"), RecipeOptions(parsed[::-1])))
        assert [c.format for c in again.choices] == [c.format for c in chosen.choices]


@pytest.mark.parametrize(
    ("recipe", "options", "more", "said"),
    [
        ("q4_k_m", {}, {"target": 4.5, "size": 10**6}, "contradict"),
        ("q4_k_x", {}, {"target": 4.5}, "size of its own"),
        ("q4_k_m", {"pure": True}, {"target": 4.5}, "pure"),
        ("q4_k_m", {}, {"target": 0.1}, "outside 1 to 16"),
        ("q4_k_m", {}, {"target": float("nan")}, "outside 1 to 16"),
        ("q4_k_m", {}, {"size": 1000}, "smallest formats take"),
        ("experts_q8_0", {}, {"target": 4.5}, "no types to choose"),
    ],
)
def test_what_cannot_be_is_refused(
    source: Path, recipe: str, options: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    with GGUFFile.open(source) as file, pytest.raises((JambaError, UsageError), match=said):
        plan(file, Request(get_recipe(recipe), RecipeOptions(**options), **more))


GOOD: dict[str, Any] = {
    "jamba_sensitivity": 1, "weights": "w", "text": "t", "tokens": 5, "imatrix": "", "quantizer": "plain",
    "formats": ["q3_k"], "kl": {"blk.0.ssm_in.weight": {"q3_k": 0.5}},
}  # fmt: skip


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(GOOD))
    found = read_sensitivity(path)
    write_sensitivity(path, found)
    assert read_sensitivity(path) == found and found.kl["blk.0.ssm_in.weight"] == {"q3_k": 0.5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"jamba_sensitivity": 2}, "not a file of sensitivities"),
        ({"weights": 5}, "weights is not a text"),
        ({"tokens": -1}, "tokens is not"),
        ({"tokens": True}, "tokens is not"),
        ({"formats": ["q9"]}, "formats is not"),
        ({"formats": [["q4_k"]]}, "formats is not"),
        ({"kl": []}, "kl is not an object"),
        ({"kl": {"x": 5}}, "'x' is not an object"),
        ({"kl": {"x": {"q9": 1}}}, "which is no format"),
        ({"kl": {"x": {"q3_k": -1}}}, "not a number of nats"),
        ({"kl": {"x": {"q3_k": float("nan")}}}, "not a number of nats"),
        ({"kl": {"x": {"q3_k": 10**400}}}, "not a number of nats"),
        ({"kl": {"x": {"q3_k": "1"}}}, "not a number of nats"),
    ],
)
def test_damaged_figures_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(BadFileError, match=said):
        read_sensitivity(path)


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"[1]", b"GGUF"])
def test_what_is_no_figures_is_said(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(raw)
    with pytest.raises(BadFileError, match="not a file of sensitivities"):
        read_sensitivity(path)
    with pytest.raises(JambaError, match="cannot read"):
        read_sensitivity(tmp_path)
