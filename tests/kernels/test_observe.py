"""Observed operations: what they report is what transformers' modules are given, and what they compute is unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jambacli import Jamba
from jambacli.convert.tensor_names import hub_names
from jambacli.convert.to_gguf import convert
from jambacli.kernels import choose_ops, reference_ops
from jambacli.kernels.observe import observe
from jambacli.quantize.imatrix_collect import weight_names
from jambacli.runtime.loader import load_gguf
from tests.support.checkpoints import load_f32, make_checkpoint

IDS = [1, 9, 17, 300, 4, 4, 250, 33, 78, 12, 5, 6, 90, 41, 400, 8, 66, 21, 19, 2]
KINDS = ("in_proj", "x_proj", "dt_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "router", "up_proj")


@pytest.fixture(scope="module", params=["dense", "moe4", "tied"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("observe")
    checkpoint = make_checkpoint(folder / "a", request.param)
    return checkpoint, convert(checkpoint, folder / "a.gguf", type="f32").paths[0]


def inputs_in_transformers(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The inputs of each linear module (not of experts, which are no modules), [T, n]."""
    model = load_f32(checkpoint)
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def keep(_: Any, given: tuple[torch.Tensor, ...], name: str = name) -> None:
                found[f"{name}.weight"] = given[0].detach().reshape(-1, given[0].shape[-1])

            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(torch.tensor([IDS]))
    return found


@pytest.mark.parametrize("backend", [reference_ops, choose_ops])
def test_the_inputs_are_those_of_transformers(made: tuple[Path, Path], backend: Any) -> None:
    checkpoint, path = made
    model = load_gguf(path, ops=backend())
    seen: dict[str, list[torch.Tensor]] = {}

    def observer(name: str, x: torch.Tensor, expert: int | None, shares: torch.Tensor | None) -> None:
        assert shares is None
        if expert is None:
            seen.setdefault(name, []).append(x.clone())

    watched = replace(model, ops=observe(model.ops, weight_names(model), observer), decoder=None)
    found = watched.forward(torch.tensor(IDS), watched.new_state(64, "f32"), logits="all")
    plain = replace(model, decoder=None).forward(torch.tensor(IDS), model.new_state(64, "f32"), logits="all")
    assert found is not None
    assert plain is not None
    assert torch.allclose(found, plain, atol=2e-4)
    theirs = inputs_in_transformers(checkpoint)
    compared = 0
    for name, rows in seen.items():
        key = hub_names(name, (1,))[0]
        if key in theirs:
            assert torch.allclose(torch.cat(rows), theirs[key], atol=1e-4, rtol=1e-4), name
            compared += 1
    # Every plain product is seen; in the checkpoint of a mixture the experts are no modules.
    assert compared >= len([key for key in theirs if any(kind in key for kind in KINDS)])


def test_experts_are_seen_with_the_tokens_that_are_routed_to_them(tmp_path: Path) -> None:
    path = convert(make_checkpoint(tmp_path / "a", "moe4"), tmp_path / "a.gguf", type="f32").paths[0]
    model = load_gguf(path, ops=reference_ops())
    counts: dict[str, dict[int, float]] = {}
    layers = {f"blk.{i}.ffn_gate_exps.weight": layer.ffn for i, layer in enumerate(model.layers)}
    routed: dict[str, torch.Tensor] = {}

    def observer(name: str, x: torch.Tensor, expert: int | None, shares: torch.Tensor | None) -> None:
        if name.endswith("ffn_gate_inp.weight"):
            ffn: Any = layers[name.replace("gate_inp", "gate_exps")]
            chosen = torch.softmax(x @ ffn.router.T, -1).topk(ffn.top_k, -1).indices
            routed[name] = torch.bincount(chosen.flatten(), minlength=4)
        elif expert is not None:
            by_expert = counts.setdefault(name, {})
            by_expert[expert] = by_expert.get(expert, 0.0) + (len(x) if shares is None else float(shares.sum()))

    names = weight_names(model)
    watched = replace(model, ops=observe(model.ops, names, observer), decoder=None)
    first = watched.forward(torch.tensor(IDS), watched.new_state(64), logits="all")
    for name, expected in routed.items():
        for kind in ("gate", "up", "down"):
            got = counts[name.replace("gate_inp", f"{kind}_exps")]
            assert [got.get(e, 0) for e in range(4)] == expected.tolist()
    counts.clear()
    everyone = replace(model, ops=observe(model.ops, names, observer, all_experts=True), decoder=None)
    second = everyone.forward(torch.tensor(IDS), everyone.new_state(64), logits="all")
    assert first is not None
    assert second is not None
    assert torch.allclose(first, second, atol=1e-5)  # the results stay those of the chosen experts
    for by_expert in counts.values():
        assert set(by_expert) == {0, 1, 2, 3}
        assert sum(by_expert.values()) == pytest.approx(4 * len(IDS), rel=1e-5)


def test_every_product_of_the_demo_model_has_a_name() -> None:
    model = Jamba.load("jamba:tiny").model
    names = weight_names(model)
    assert len(names) == len(set(names.values())) == 38  # the tied output matrix included
