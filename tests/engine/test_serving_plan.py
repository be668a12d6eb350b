"""Plans for several users: what fits, what waits, and the command for an engine on several GPUs."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from jambacli.cli import main
from jambacli.engine.parallel import sequence_bytes
from jambacli.engine.serving_plan import ServingPlan, serving_plan, tensor_parallel_sizes
from jambacli.evaluation.synthetic import shape_config
from jambacli.hardware.devices import Device
from jambacli.model.config import CHECKPOINT_BYTES, JambaConfig
from jambacli.runtime.memory_plan import scratch_bytes

MINI, LARGE, SMALL = shape_config("jamba-mini"), shape_config("jamba-large"), shape_config("jamba-3b")


def machine(available: int, flops: float = 1e12) -> Device:
    return Device("cpu", "cpu:x", "x", 2 * available, available, flops, True, "")


def plan(config: JambaConfig, users: int, ctx: int, available: int = 20 << 30, **more: object) -> ServingPlan:
    options: dict[str, object] = {"repository": "owner/name", "name": "m", **more}
    return serving_plan(config, 2 << 30, users, ctx, "f16", [machine(available)], **options)  # type: ignore[arg-type]


def words(found: ServingPlan) -> list[str]:
    assert found.handover is not None
    return shlex.split(found.handover.command)


def value(found: ServingPlan, option: str) -> str:
    said = words(found)
    return said[said.index(option) + 1]


def test_as_many_as_fit_work_at_once() -> None:
    each = sequence_bytes(SMALL, 65536, "f16", drafts=True)
    fixed = (2 << 30) + scratch_bytes(SMALL) + CHECKPOINT_BYTES
    for fit in (0, 1, 3):
        found = plan(SMALL, 3, 65536, fixed + fit * each + each // 2)
        assert found.devices[0].at_once == fit
        assert found.served is (fit == 3)
    assert plan(SMALL, 100, 1024, 200 << 30).devices[0].at_once == 8


def test_vllm_can_split_the_heads_as_it_does() -> None:
    # vLLM needs heads % n == 0, and key-value heads that n divides or that divide n.
    assert tensor_parallel_sizes(MINI) == [1, 2, 4, 8]
    assert tensor_parallel_sizes(LARGE) == [1, 2, 4, 8]
    assert tensor_parallel_sizes(SMALL) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("config", "users", "gpus", "quantized"),
    [(SMALL, 10, 1, False), (MINI, 4, 2, False), (LARGE, 4, 8, True), (LARGE, 1, 8, True)],
)
def test_the_fewest_gpus_that_hold_it(config: JambaConfig, users: int, gpus: int, quantized: bool) -> None:
    found = plan(config, users, 65536)
    assert found.handover is not None
    assert found.handover.gpus == gpus
    assert found.handover.quantized is quantized
    assert ("--quantization" in words(found)) is quantized
    assert value(found, "--mamba-ssm-cache-dtype") == "float32"
    assert value(found, "--tensor-parallel-size") == str(min(gpus, 8))
    assert words(found)[:3] == ["vllm", "serve", "owner/name"]


def test_more_than_a_machine_is_joined_with_ray_and_too_much_is_said() -> None:
    found = plan(LARGE, 64, 262144)
    assert found.handover is not None
    assert found.handover.nodes > 1
    assert value(found, "--distributed-executor-backend") == "ray"
    assert plan(LARGE, 100_000, 262144).handover is None


def test_the_parsers_follow_the_template() -> None:
    mini = plan(MINI, 1, 4096, family="Jamba 1.5 to 1.7", handles=["tools", "documents"])
    assert value(mini, "--tool-call-parser") == "jamba"
    assert "--reasoning-parser" not in words(mini)
    small = plan(SMALL, 1, 4096, family="ChatML", handles=["tools", "thinking"])
    assert value(small, "--tool-call-parser") == "hermes"
    assert value(small, "--reasoning-parser") == "deepseek_r1"
    assert "--tool-call-parser" not in words(plan(SMALL, 1, 4096))


def test_names_are_quoted_for_the_shell() -> None:
    assert words(plan(SMALL, 1, 4096, name="my model; rm x"))[4] == "my model; rm x"


def test_a_model_without_attention_needs_one_gpu() -> None:
    config = replace(SMALL, layer_is_attention=(False,) * SMALL.n_layers, n_heads=0, n_kv_heads=0)
    assert tensor_parallel_sizes(config) == [1]


def test_show_prints_it(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["jamba", "show", "jamba:tiny", "--serve", "3", *more])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        out = capfd.readouterr().out
        if more:
            assert json.loads(out)["serving"]["users"] == 3
        else:
            assert "3 users" in out
            assert "vllm serve ./tiny-jamba-bf16-hf" in out
