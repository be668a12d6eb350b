"""The training loop: schedule, optimizer, checkpoints and log.

Copying is learnt first: key-value recall over short sequences of random tokens, until the attention layers do lookups. Text
follows, with the loss on answers, at growing length and with some key-value steps in between.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jambacli.files import atomic_write
from jambacli.training.batches import Batch, Batches
from jambacli.training.model import TrainableJamba
from jambacli.training.probe import Probe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """The steps up to ``until``.

    ``tokens``: sequence lengths and their shares. ``key_value``: the share of key-value steps. ``text``: the kinds of text
    and their shares. ``pool``: how many different tokens key-value samples use, None for the whole vocabulary.
    """

    until: int
    tokens_per_step: int
    tokens: dict[int, float]
    key_value: float
    text: dict[str, float] = field(default_factory=dict)
    pool: int | None = None


_TEXT = {"chat": 0.42, "cite": 0.2, "summary": 0.15, "told": 0.08, "plain": 0.15}
# The second part of a run: a third of the samples are long documents.
_LONG = {"chat": 0.2, "cite": 0.15, "pages": 0.35, "summary": 0.1, "told": 0.05, "plain": 0.15}


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that determines a run. A step's tokens are split into sequences of its length.

    The second part begins at step ``second``: texts up to eight times as long, and a learning rate that falls linearly from
    ``second_rate``. ``decay``: the steps between which the first part's rate follows a half cosine. ``cool_down``: steps at
    the end of the first part in which it falls to zero. ``last_rate``: the cosine's end, as a share of ``learning_rate``.
    ``balance``, ``probe_weight``: the weights of the load-balancing loss and of the probes' loss.
    """

    steps: int = 5200
    second: int = 4000
    second_rate: float = 1e-3
    decay: tuple[int, int] = (1800, 4600)
    cool_down: int = 300
    learning_rate: float = 2e-3
    last_rate: float = 0.02
    warmup: int = 60
    weight_decay: float = 0.05
    balance: float = 0.01
    probe_weight: float = 0.5
    seed: int = 1
    stages: tuple[Stage, ...] = (
        Stage(300, 1024, {64: 1.0}, 1.0, pool=48),
        Stage(500, 1024, {64: 1.0}, 0.5, {"told": 1.0}, pool=300),
        Stage(1000, 1024, {64: 0.1, 128: 0.9}, 0.3, _TEXT),
        Stage(1600, 2048, {128: 0.5, 256: 0.5}, 0.2, _TEXT),
        Stage(2400, 2048, {128: 0.2, 256: 0.4, 512: 0.4}, 0.12, _TEXT),
        Stage(4000, 2048, {128: 0.1, 256: 0.3, 512: 0.6}, 0.08, _TEXT),
        Stage(1 << 30, 4096, {512: 0.2, 1024: 0.25, 2048: 0.3, 4096: 0.25}, 0.05, _LONG),
    )

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        return next(s for s in self.stages if step < s.until)

    def rate(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, a plateau, then a half cosine between the steps of ``decay``.

        Over the last ``cool_down`` steps of the first part it falls linearly to zero from wherever the cosine is. Before
        that the rate does not depend on the number of steps, so a run can be resumed with another one. In the second part
        the rate falls linearly to zero.
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if step >= self.second:
            return self.second_rate * (self.steps - step) / max(1, self.steps - self.second)
        first, last = self.decay
        done = min(1.0, max(0.0, (step - first) / (last - first)))
        cosine = self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * cosine * min(1.0, (min(self.steps, self.second) - step) / self.cool_down)


class Run:
    """One training run in a folder: ``checkpoint.pt`` to resume from, ``log.jsonl`` with a line per report."""

    def __init__(
        self, model: TrainableJamba, batches: Batches, plan: TrainingPlan, folder: Path, device: str = "cpu"
    ) -> None:
        self.model, self.batches, self.plan, self.folder, self.device = model.to(device), batches, plan, folder, device
        self.probe = Probe(model.config.hidden).to(device)
        matrices = [p for p in model.parameters() if p.dim() >= 2 and p is not model.embed and p.shape[-1] > 16]
        decayed = {id(p) for p in matrices}
        others = [p for p in (*model.parameters(), *self.probe.parameters()) if id(p) not in decayed]
        groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=True)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self._probe_shares: list[list[float]] = []
        self._resume()

    def train(self, until: int | None = None, report_every: int = 50, save_every: int = 200) -> None:
        """Train to the plan's end (or step ``until``), with a report and a checkpoint at regular intervals."""
        last = self.plan.steps if until is None else min(until, self.plan.steps)
        losses: dict[str, list[float]] = {}
        while self.step < last:
            began = time.process_time()
            kind, tokens, rows, loss = self._one_step()
            losses.setdefault(f"{kind} {tokens}", []).append(loss)
            self.step += 1
            self.tokens += tokens * rows
            self.seconds += time.process_time() - began
            if self.step % report_every == 0 or self.step == last:
                self._report({k: sum(v) / len(v) for k, v in losses.items()})
                losses.clear()
            if self.step % save_every == 0 or self.step == last:
                self.save()

    def _one_step(self) -> tuple[str, int, int, float]:
        plan, stage = self.plan, self.plan.stage(self.step)
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + self.step)
        draw = torch.rand(2, generator=generator).tolist()
        tokens = _pick(stage.tokens, draw[0])
        kind = "key-value" if draw[1] < stage.key_value else "text"
        batch = self.batches.training(self.step, kind, stage.text, stage.tokens_per_step // tokens, tokens, stage.pool)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        hidden = self.model(batch.ids.to(self.device))
        loss, probe_loss = self.loss(batch, hidden), self._probe_loss(batch, hidden)
        (loss + plan.probe_weight * probe_loss + plan.balance * self.model.balance()[0]).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return kind, tokens, len(batch.ids), float(loss.detach())

    def _probe_loss(self, batch: Batch, hidden: Tensor) -> Tensor:
        """The probes' loss after a forward pass that returned ``hidden``; their accuracies are kept for the log."""
        assert self.model.before_attention is not None
        loss, shares = self.probe(
            self.model.before_attention, hidden, batch.document_digits.to(self.device), batch.answers.to(self.device)
        )
        self._probe_shares.append(shares)
        return loss

    def loss(self, batch: Batch, hidden: Tensor) -> Tensor:
        """The weighted mean cross entropy from the final states; logits are computed only for tokens with a weight."""
        weights = batch.weights.flatten().to(self.device)
        rows = weights.nonzero()[:, 0]
        row_weights = weights[rows]
        # Every new matrix size costs a new kernel, so sizes are rounded up with rows of weight 0.
        padding = -len(rows) % 256
        rows, row_weights = F.pad(rows, (0, padding)), F.pad(row_weights, (0, padding))
        logits = self.model.logits(hidden.flatten(0, 1)[rows])
        each = F.cross_entropy(logits, batch.targets.flatten().to(self.device)[rows], reduction="none")
        return (each * row_weights).sum() / row_weights.sum()

    @torch.no_grad()
    def accuracy(self, kind: str, batch: int, tokens: int) -> float:
        """The share of held-out answers in which every token is the most likely one, given the correct ones before it."""
        pool = self.plan.stage(max(0, self.step - 1)).pool
        data = self.batches.held_out(kind, batch, tokens, pool)
        hidden = self.model(data.ids.to(self.device))
        correct = self.model.logits(hidden).argmax(-1).cpu() == data.targets
        exact = total = 0
        for row, is_answer in zip(correct, data.weights == 1, strict=True):
            for start, stop in _runs(is_answer.tolist()):
                exact += bool(row[start:stop].all())
                total += 1
        return exact / max(1, total)

    def _report(self, losses: dict[str, float]) -> None:
        longest = max(self.plan.stage(self.step).tokens)
        checks = {"key-value": self.accuracy("key-value", 512 // longest + 4, longest)}
        for kind in self.plan.stage(self.step).text:
            checks[kind] = self.accuracy(kind, max(2, 2048 // longest), longest)
        shares = torch.tensor(self._probe_shares or [[math.nan] * 2]).nanmean(0).tolist()
        line = {
            "step": self.step,
            "tokens": self.tokens,
            "cpu_seconds": round(self.seconds, 1),
            "rate": round(self.plan.rate(self.step), 6),
            "loss": {k: round(v, 4) for k, v in sorted(losses.items())},
            "exact": {k: round(v, 4) for k, v in checks.items()},
            "where": [None if math.isnan(x) else round(x, 4) for x in shares],
            "loads": [[round(x, 3) for x in load.tolist()] for load in self.model.balance()[1]],
        }
        self._probe_shares.clear()
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        logger.info("%s", json.dumps({k: v for k, v in line.items() if k != "loads"}))

    def save(self) -> None:
        """Write ``checkpoint.pt`` atomically."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        with atomic_write(self.folder / "checkpoint.pt") as file:
            torch.save(state, file)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            self._write("log.jsonl", "")
            self._write("plan.json", json.dumps(asdict(self.plan), indent=1))
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.probe.load_state_dict(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        # Steps after the checkpoint will be run and reported again.
        log = self.folder / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        self._write("log.jsonl", "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= self.step))
        logger.info("resuming at step %d", self.step)

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.folder / name) as file:
            file.write(text.encode())


def _pick(shares: dict[int, float], at: float) -> int:
    """The key whose interval contains ``at`` when the shares divide [0, 1) in order."""
    for key, share in shares.items():
        at -= share
        if at < 0:
            return key
    return next(reversed(shares))


def _runs(flags: list[bool]) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of True, except one that reaches the end, which may have been cut."""
    start: int | None = None
    for i, flag in enumerate(flags):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            yield start, i
            start = None
