"""A plan as text for a terminal."""

from __future__ import annotations

from nanochat_platform.hardware import GIB
from nanochat_platform.plan.model import Plan


def describe(plan: Plan) -> str:
    """Return the plan as text for a terminal."""
    lines = [f"{plan.preset} on {plan.hardware} ({plan.hardware_title})"]
    lines += [f"  {name:<12}{text}" for name, text in _facts(plan).items()]
    lines += ["", f"  {'stage':<12}{'steps':>8}{'tokens':>10}{'time':>10}{'cost':>10}"]
    for row in plan.stages:
        tokens = _count(row.tokens) if row.tokens else "-"
        ends = f"{_time(row.seconds):>10}{dollars(row.usd):>10}"
        lines.append(f"  {row.stage:<12}{row.steps or '-':>8}{tokens:>10}{ends}")
    lines.append(f"  {'total':<30}{_time(plan.seconds):>10}{dollars(plan.usd):>10}")
    lines += _cluster_lines(plan)
    lines += [f"  warning: {text}" for text in plan.warnings]
    return "\n".join(lines)


def _cluster_lines(plan: Plan) -> list[str]:
    if not plan.objects:
        return []
    wide = max(len(f"{planned.kind}/{planned.name}") for planned in plan.objects)
    lines = ["", f"  {'object':<{wide}}  {'pods':>4}  requests"]
    for planned in plan.objects:
        asked = ", ".join(f"{name} {amount}" for name, amount in planned.requests.items())
        lines.append(f"  {planned.kind + '/' + planned.name:<{wide}}  {planned.pods or '-':>4}  {asked}")
    quota = ", ".join(f"{name} {amount}" for name, amount in plan.quota.items())
    return [*lines, f"  quota needed at one time: {quota}"]


def _facts(plan: Plan) -> dict[str, str]:
    counts = plan.parameters
    groups = ", ".join(f"{name} {_count(n)}" for name, n in counts.items() if n and name != "total")
    data = plan.source
    if plan.shards_needed:
        data += f", {plan.shards_needed} shards"
    if plan.epochs and plan.epochs > 1:
        data += f", {plan.epochs:.2f} epochs"
    speed = f"{plan.tok_per_s:,.0f} tok/s" if plan.tok_per_s else "unknown"
    if plan.mfu:
        speed += f", MFU {plan.mfu:.0%}"
    needed, limit = plan.memory_bytes["total"] / GIB, plan.memory_limit_bytes / GIB
    return {
        "model": f"{plan.arch} d{plan.depth}, width {plan.width}, {_count(counts['total'])} parameters",
        "": groups,
        "horizon": f"{_count(plan.flops_per_token)} FLOPs/token, {plan.total_flops:.2e} in base training",
        "batch": f"{plan.total_batch_tokens:,} tokens = ranks {plan.ranks} x rows {plan.device_batch_size}"
        f" x accumulation {plan.accumulation} x length {plan.seq_len}",
        "memory": f"{needed:.1f} of {limit:.1f} GiB per rank",
        "data": data,
        "throughput": f"{speed} ({plan.throughput_source})",
        **({"price": f"{dollars(plan.usd_per_hour)} an hour a node, supposed"} if plan.usd_per_hour else {}),
    }


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def dollars(usd: float | None) -> str:
    """Return an amount as text; `-` where it is not known."""
    return "-" if usd is None else f"${usd:,.2f}"
