"""Train the embedded tiny Jamba from nothing: corpus, tokenizer, model, Hugging Face checkpoint, GGUF.

    python examples/train_tiny.py --out tiny            # everything; interrupt it and run it again to go on
    python examples/train_tiny.py --out tiny --export   # only write the checkpoint and the GGUF of what there is

The defaults are those the shipped model was trained with (docs/demo_model.md has the log). Knows nothing of what the
pieces do: they are in jambacli/training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jambacli  # noqa: F401  (before torch: it sets how torch's threads wait)

import torch  # isort: skip

from jambacli.convert.to_gguf import convert
from jambacli.training.batches import Batches
from jambacli.training.demo_model import NAME, demo_config, export, make_tokenizer
from jambacli.training.model import TrainableJamba
from jambacli.training.tokenizer import Encoder
from jambacli.training.train import Plan, Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tiny-jamba"), help="where everything is written")
    parser.add_argument("--steps", type=int, default=Plan.steps, help=f"training steps (default {Plan.steps})")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: then plain torch, without the C++ kernels")
    parser.add_argument("--export", action="store_true", help="do not train, only export the last checkpoint")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = args.out / "tokenizer.json"
    if not tokenizer.exists():
        make_tokenizer(tokenizer, args.seed)
    model = TrainableJamba(demo_config(), torch.bfloat16)
    run = Run(
        model, Batches(Encoder(tokenizer), args.seed), Plan(steps=args.steps, seed=args.seed), args.out, args.device
    )
    if not args.export:
        run.train()
    export(model.cpu(), args.out / "checkpoint", tokenizer)
    done = convert(args.out / "checkpoint", args.out / "tiny-jamba-bf16.gguf", type="bf16", name=NAME, force=True)
    print(f"{done.paths[0]}: {done.nbytes:,} bytes after {run.step} steps, {run.tokens:,} tokens")


if __name__ == "__main__":
    main()
