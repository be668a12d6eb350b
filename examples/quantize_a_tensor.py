"""Quantize a random matrix to every format; print the bits per weight and the error. Needs the `quant` package alone."""

import torch

from quant import FORMATS, dequantize, quantize


def main() -> None:
    weights = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    print(f"{'format':<8} {'bits':>6} {'rms error':>10}")
    for name, form in FORMATS.items():
        if not form.writable or name in ("f32", "i8"):
            continue
        blocks = quantize(weights, name)
        error = (dequantize(blocks, name) - weights).square().mean().sqrt() / weights.square().mean().sqrt()
        print(f"{name:<8} {form.bits_per_weight:>6.2f} {error.item():>10.2%}")


if __name__ == "__main__":
    main()
