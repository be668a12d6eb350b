"""Renders the results of the GPU check as Markdown."""

from __future__ import annotations

from typing import Any

from jambacli.units import format_bytes


def markdown(results: dict[str, Any]) -> str:
    """The page: machine, comparisons, speeds, failed and skipped steps."""
    machine = results.get("machine", {})
    lines = [f"# {machine.get('name', 'unknown GPU')}, {results.get('date', '')}", ""]
    lines.append(", ".join(f"{key} {value}" for key, value in machine.items() if key != "name"))
    if rates := results.get("rates"):
        lines += ["", f"Copies {rates['copy_bytes_per_second'] / 1e9:,.0f} GB/s (read and written), multiplies "
                  f"{rates['matrix_flops'] / 1e12:,.1f} TFLOP/s."]  # fmt: skip
    lines += _kernels(results) + _products(results) + _models(results) + _growth(results) + _gemv(results)
    for part, title in (("bench", "Speeds"), ("limits", "With less memory")):
        lines += _speeds(results.get(part, []), title)
    for item in results["failed"]:
        lines.append(f"- FAILED {item['step']}: {item['error']}")
    lines += [f"- skipped for lack of time: {name}" for name in results["skipped"]]
    lines += [f"- skipped {item['step']}: {item['reason']}" for item in results.get("no_room", [])]
    if also := results.get("also"):
        lines += ["", "The same with another Python:", "", *markdown(also).splitlines()]
    if "seconds" in results:
        lines.append(f"\n{results['seconds']} s in total.")
    return "\n".join(lines) + "\n"


def _products(results: dict[str, Any]) -> list[str]:
    rows = results.get("products", [])
    if not rows:
        return []
    lines = ["", "| product, GB/s | 1 row a thread | 2 | 4 |", "| --- | ---: | ---: | ---: |"]
    for name in dict.fromkeys(f"{r['format']}, {r['kind']}, {r['way']}" for r in rows):
        found = {r["rows"]: r["rate"] for r in rows if name == f"{r['format']}, {r['kind']}, {r['way']}"}
        cells = [f"{found[n] / 1e9:,.1f}" if n in found else "" for n in (1, 2, 4)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _growth(results: dict[str, Any]) -> list[str]:
    lines = []
    for r in results.get("growth", []):
        found = f"error {r['error']:.1e}, {r['old_caches_held']} old caches held" if "error" in r else (
            f"peak {format_bytes(r['peak_memory'] or 0)} of {format_bytes(r['planned'])} planned"
        )  # fmt: skip
        lines.append(f"- {r['test']}: {'holds' if r['ok'] else 'FAILED'} ({found})")
    for r in results.get("modes", []):
        lines.append(
            f"- a step of {r['model']}: {r['float32_ms']:.3f} ms with float32 activations, {r['int8_ms']:.3f} with int8"
        )
    for r in results.get("steps", []):
        count = sum(n for n, _ in r["kernels"].values())
        lines.append(
            f"- one step of {r['model']}: {count} kernels, {r['span']:,.0f} us, {r['gaps']:,.0f} of them in gaps"
        )
    return ["", *lines] if lines else []


def _kernels(results: dict[str, Any]) -> list[str]:
    rows = results.get("kernels", [])
    if not rows:
        return []
    bad = [r for r in rows if not r["ok"]]
    worst = max((r["error"] for r in rows if r["ok"]), default=0.0)
    lines = [
        "",
        f"Kernels: {len(rows) - len(bad)} of {len(rows)} cases agree with the reference (largest error {worst:.1e}).",
    ]
    for r in bad:
        found = f"error {r['error']:.2e} over {r['tolerance']:.0e}" if r["error"] is not None else r.get("problem", "")
        lines.append(f"- FAILED {r['case']}: {found}")
    return lines


def _models(results: dict[str, Any]) -> list[str]:
    rows = results.get("models", [])
    if not rows:
        return []
    lines = ["", "| model, GPU against CPU | prefill error | decode error (worst) | greedy | moved state | holds |",
             "| --- | ---: | ---: | --- | ---: | --- |"]  # fmt: skip
    return lines + [
        f"| {r['model']} | {r['prefill_error']:.1e} | {r['decode_error']:.1e} ({r['worst_decode_error']:.1e}) | "
        f"{r['greedy_agree']} | "
        f"{r['moved_state_error']:.1e} | {'yes' if r['ok'] else 'NO'} |"
        for r in rows
    ]


def _gemv(results: dict[str, Any]) -> list[str]:
    rows = [r for r in results.get("gemv", []) if r["usual"]]
    if not rows:
        return []
    copy = results.get("rates", {}).get("copy_bytes_per_second")
    lines = ["", "| matrix-vector product | GB/s | of copy |", "| --- | ---: | ---: |"]
    for r in rows:
        share = f"{r['rate'] / copy:.0%}" if copy else ""
        lines.append(f"| {r['format']} {r['shape'][0]}x{r['shape'][1]} | {r['rate'] / 1e9:,.1f} | {share} |")
    return lines


def _speeds(rows: list[dict[str, Any]], title: str) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{title}:", "", "| model | test | tokens/s | ms | of copy / matrix rate | line to meet, ms | peak memory |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for r in rows:
        share = r.get("share_of_copy", r.get("share_of_matrix_rate"))
        limit = f", {r['limit'] / 1e9:g} GB" if r.get("limit") else ""
        target = r.get("target_milliseconds")
        cells = [
            f"{r['shape']} {r['quant']}{limit}",
            r["test"],
            f"{r['tokens_per_second']:,.1f}",
            f"{r['milliseconds']:,.2f}",
            "" if share is None else f"{share:.0%}",
            "" if target is None else f"{target:.2f}",
            "" if r.get("peak_memory") is None else format_bytes(r["peak_memory"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
