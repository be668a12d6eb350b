"""Train the demo model from scratch: corpus, tokenizer, model, HF checkpoint, GGUF and held-out text.

    python examples/train_tiny.py --out tiny            # everything; interrupt it and run it again to resume
    python examples/train_tiny.py --out tiny --export   # only export the last saved state

The defaults are those of the shipped model; docs/demo_model.md has its training log.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import jambacli  # noqa: F401  (before torch: it sets how torch's threads wait)

import torch  # isort: skip

from jambacli.convert.to_gguf import convert
from jambacli.training.batches import Batches
from jambacli.training.demo_model import NAME, demo_config, export, make_held_out, make_tokenizer
from jambacli.training.model import TrainableJamba
from jambacli.training.tokenizer import Encoder
from jambacli.training.train import Run, TrainingPlan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tiny-jamba"), help="the directory for all output")
    parser.add_argument(
        "--steps", type=int, default=TrainingPlan.steps, help=f"training steps (default {TrainingPlan.steps})"
    )
    parser.add_argument("--seed", type=int, default=TrainingPlan.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (in plain torch, without the C++ kernels)")
    parser.add_argument("--export", action="store_true", help="do not train; export the last saved state")
    args = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = args.out / "tokenizer.json"
    if not tokenizer.exists():
        make_tokenizer(tokenizer, args.seed)
    model = TrainableJamba(demo_config(), torch.bfloat16)
    run = Run(
        model,
        Batches(Encoder(tokenizer), args.seed),
        TrainingPlan(steps=args.steps, seed=args.seed),
        args.out,
        args.device,
    )
    if not args.export:
        run.train()
    export(model.cpu(), args.out / "checkpoint", tokenizer)
    (args.out / "heldout.txt").write_text(make_held_out(tokenizer), encoding="utf-8")
    done = convert(args.out / "checkpoint", args.out / "tiny-jamba-bf16.gguf", type="bf16", name=NAME, force=True)
    print(f"{done.paths[0]}: {done.nbytes:,} bytes after {run.step} steps, {run.tokens:,} tokens")


if __name__ == "__main__":
    main()
