"""What a tensor's rounding costs is the divergence of the model with it rounded; a measurement goes on where it ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jambacli.api import Jamba
from jambacli.errors import JambaError
from jambacli.evaluation import sensitivity as s
from jambacli.evaluation.kl import divergence
from jambacli.gguf.reader import GGUFFile
from jambacli.kernels import reference_ops
from jambacli.quantize.sensitivity import Sensitivity
from jambacli.runtime.loader import from_gguf
from quant import QTensor, dequantize, get_format, quantize
from tests.support.small_models import small_file

FORMATS = ("q3_k", "q6_k")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Jamba:
    file = GGUFFile.open(small_file(tmp_path_factory.mktemp("sensitivity"), "f16"))
    return Jamba(from_gguf(file, ops=reference_ops()), file.metadata, "small")


@pytest.fixture(scope="module")
def windows() -> list[s.Window]:
    return s.scored_windows([(7 * i * i + 3) % 300 for i in range(40)], None, 24)


def start(model: Jamba, windows: list[s.Window]) -> Sensitivity:
    return s.new_sensitivity(model.model.source, windows, FORMATS, None)


def rounded(weight: QTensor, fmt: str) -> QTensor:
    values = dequantize(weight.data, "f16").reshape(weight.shape).float()
    found = dequantize(quantize(values, fmt), fmt).reshape(weight.shape).contiguous()
    return QTensor(found.view(torch.uint8).reshape(-1), get_format("f32"), weight.shape)


def test_windows_are_scored_but_for_their_first_eighth() -> None:
    windows = s.scored_windows(list(range(100)), 99, 32)
    assert [w.ids[0] for w in windows] == [99] * 3 and windows[0].ids[1:] == list(range(31))
    assert {w.first for w in windows} == {4}
    assert len(s.scored_windows(list(range(40)), None, 32)) == 1  # the rest is too short to say much
    with pytest.raises(JambaError, match="too few"):
        s.scored_windows([1, 2, 3], None, 32)


def test_the_cost_is_the_divergence_of_the_model_with_that_tensor_rounded(
    model: Jamba, windows: list[s.Window]
) -> None:
    wanted = {"blk.0.ssm_out.weight": ["q3_k"], "blk.1.attn_v.weight": ["q3_k"], "token_embd.weight": ["q3_k"]}
    found = s.measure(model, windows, wanted, start(model, windows))
    first, second, *rest = model.model.layers
    mamba = replace(first, mixer=replace(first.mixer, out_proj=rounded(first.mixer.out_proj, "q3_k")))
    attention = replace(second, mixer=replace(second.mixer, v_proj=rounded(second.mixer.v_proj, "q3_k")))
    embedding = rounded(model.model.embedding, "q3_k")
    tied = {"output": embedding} if model.model.output is model.model.embedding else {}
    changed = {
        "blk.0.ssm_out.weight": replace(model.model, layers=(mamba, second, *rest)),
        "blk.1.attn_v.weight": replace(model.model, layers=(first, attention, *rest)),
        "token_embd.weight": replace(model.model, embedding=embedding, **tied),
    }
    for name, other in changed.items():
        expected = divergence(Jamba(other, model.metadata, name), model, windows, "f32").mean
        assert found.kl[name]["q3_k"] == pytest.approx(expected, rel=1e-3), name


def test_every_chosen_tensor_is_measured_and_finer_formats_cost_less(model: Jamba, windows: list[s.Window]) -> None:
    wanted = s.wanted_formats(model.model.source, FORMATS)
    some = {name: wanted[name] for name in ("blk.1.ffn_down_exps.weight", "blk.3.ssm_in.weight")}
    assert len(wanted) == 4 * 3 + 3 * 4 + 4 + 1 + ("output.weight" in wanted)
    found = s.measure(model, windows, some, start(model, windows))
    for name in some:
        assert 0 < found.kl[name]["q6_k"] < found.kl[name]["q3_k"]
    assert "blk.1.ffn_down_exps.weight" not in s.wanted_formats(model.model.source, FORMATS, found)


def test_an_interrupted_measurement_goes_on(model: Jamba, windows: list[s.Window]) -> None:
    wanted = {name: ["q3_k"] for name in ("blk.2.ssm_x.weight", "blk.3.ssm_out.weight", "blk.3.ssm_in.weight")}
    whole = s.measure(model, windows, wanted, start(model, windows))
    saved: list[Sensitivity] = []

    def save(part: Sensitivity) -> None:
        saved.append(part)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        s.measure(model, windows, wanted, start(model, windows), save=save)
    assert len(saved[-1].kl) == 2
    assert s.measure(model, windows, wanted, saved[-1]) == whole
    assert s.measure(model, windows, wanted, whole) is whole


def test_importance_and_the_way_of_rounding_are_passed_on(
    model: Jamba, windows: list[s.Window], tmp_path: Path
) -> None:
    from jambacli.quantize.imatrix import Imatrix

    name, seen = "blk.1.ffn_up_exps.weight", []
    weights = np.linspace(1, 9, 4 * 256, dtype=np.float32)

    def exact(name: str, values: torch.Tensor, fmt: str, importance: np.ndarray | None) -> torch.Tensor:
        assert importance is not None
        seen.append((name, tuple(values.shape), fmt, importance.shape))
        return values

    imatrix = Imatrix("made up", {name: weights})
    found = s.measure(model, windows, {name: ["q3_k"]}, start(model, windows), imatrix, exact)
    assert seen == [(name, (4, 256, 256), "q3_k", (4, 256))]
    assert found.kl[name]["q3_k"] < 1e-9


def test_the_announced_work_is_the_work_done(model: Jamba, windows: list[s.Window]) -> None:
    wanted = {"blk.3.ssm_in.weight": ["q3_k", "q6_k"], "blk.0.ssm_in.weight": ["q3_k"]}
    done: list[int] = []

    class Shown:
        def __init__(self, title: str, total: int | None, unit: str = "bytes") -> None:
            self.total = total

        def __enter__(self):  # type: ignore[no-untyped-def]
            return done.append

        def __exit__(self, *error: object) -> None:
            assert sum(done) == self.total

    s.measure(model, windows, wanted, start(model, windows), progress=Shown)
    cost = s.cost(model.model, windows, wanted)
    assert cost.layer_tokens == sum(done) == sum(len(w.ids) - 1 for w in windows) * (4 + 2 + 4)
