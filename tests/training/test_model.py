"""The trainable model is a Jamba: its exported checkpoint has the same logits in transformers and in the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jambacli.api import Jamba
from jambacli.convert.to_gguf import convert
from jambacli.training.batches import Batches
from jambacli.training.demo_model import demo_config, export, make_tokenizer
from jambacli.training.model import TrainableJamba
from jambacli.training.tokenizer import Encoder
from jambacli.training.train import Run, Stage, TrainingPlan

IDS = torch.randint(0, 1536, (1, 70), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(path, samples=200)
    return path


@pytest.fixture(scope="module")
def model() -> TrainableJamba:
    """A random model whose norms, biases and decays differ from their initial values."""
    torch.manual_seed(0)
    made = TrainableJamba(demo_config())
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
    return made


@pytest.fixture(scope="module")
def checkpoint(model: TrainableJamba, tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    export(model, folder, tokenizer_json, torch.float32)
    return folder


def _logits(model: TrainableJamba) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(IDS))[0]


def test_transformers_computes_the_same_from_the_export(model: TrainableJamba, checkpoint: Path) -> None:
    import transformers

    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, use_mamba_kernels=False, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        expected = theirs(IDS).logits[0]
    torch.testing.assert_close(_logits(model), expected, atol=1e-4, rtol=1e-4)


def test_the_runtime_computes_the_same_from_the_converted_export(
    model: TrainableJamba, checkpoint: Path, tmp_path: Path
) -> None:
    made = convert(checkpoint, tmp_path / "f32.gguf", type="f32")
    loaded = Jamba.load(made.paths[0])
    torch.testing.assert_close(loaded.logits(IDS[0].tolist()), _logits(model), atol=1e-4, rtol=1e-4)
    assert loaded.template is not None and loaded.tokenizer.stop_ids == {2, 5}


def _run(tokenizer_json: Path, folder: Path, steps: int) -> Run:
    torch.manual_seed(1)
    folder.mkdir(exist_ok=True)
    stage = Stage(1 << 30, 128, {64: 1.0}, 0.5, {"told": 1.0, "plain": 1.0})
    plan = TrainingPlan(steps=steps, cool_down=1, stages=(stage,))
    return Run(TrainableJamba(demo_config()), Batches(Encoder(tokenizer_json), 1), plan, folder)


def test_an_interrupted_run_reaches_the_same_weights(tokenizer_json: Path, tmp_path: Path) -> None:
    whole = _run(tokenizer_json, tmp_path / "whole", 4)
    whole.train(report_every=2)
    first = _run(tokenizer_json, tmp_path / "parts", 4)
    first.train(until=2, report_every=2)
    second = _run(tokenizer_json, tmp_path / "parts", 4)
    assert second.step == 2 and second.tokens == 2 * 128
    second.train(report_every=2)
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 2


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    plan = TrainingPlan(steps=1000, decay=(600, 1400), cool_down=100, warmup=10, learning_rate=1.0, last_rate=0.0)
    assert plan.rate(0) == pytest.approx(0.1)
    assert plan.rate(10) == plan.rate(600) == 1.0
    assert plan.rate(800) == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert plan.rate(950) == pytest.approx(plan.rate(900) / 2, rel=0.2)
    assert plan.rate(1000) == 0.0
    longer = TrainingPlan(steps=2000, decay=(600, 1400), cool_down=100, warmup=10, learning_rate=1.0, last_rate=0.0)
    assert [plan.rate(s) for s in range(900)] == [longer.rate(s) for s in range(900)]
    assert longer.rate(1500) == 0.0


def test_the_second_part_starts_after_the_first_has_cooled_down() -> None:
    plan = TrainingPlan(steps=500, second=400, cool_down=50, warmup=10, second_rate=0.5)
    assert plan.rate(399) < plan.rate(350) / 20
    assert [plan.rate(s) for s in (400, 450, 500)] == [0.5, 0.25, 0.0]
    first = TrainingPlan(steps=400, second=400, cool_down=50, warmup=10, second_rate=0.5)
    assert [plan.rate(s) for s in range(400)] == [first.rate(s) for s in range(400)]
    assert max(TrainingPlan().stage(TrainingPlan.second).tokens) > max(
        TrainingPlan().stage(TrainingPlan.second - 1).tokens
    )


def test_every_token_is_routed_to_top_k_experts(model: TrainableJamba) -> None:
    with torch.no_grad():
        model(IDS)
        layer = next(m.ffn for m in model.layers if m.ffn.router is not None)  # type: ignore[union-attr]
        route = layer._route(torch.randn(50, 256))
    assert (route > 0).sum(-1).eq(2).all()
    assert (route.sum(-1) < 1).all()  # softmax over all experts, not over the chosen
    loss, loads = model.balance()
    assert len(loads) == 2 and all(float(load.sum()) == pytest.approx(1.0) for load in loads)
    assert float(loss) >= 0.9
