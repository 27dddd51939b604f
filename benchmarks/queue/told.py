"""What the figures of the queue come to: ratios and goals, the tables, the plot."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.queue import model
from benchmarks.report import Goal

Figures = Mapping[str, Any]

LABELS = {
    "product": "this server, aiohttp",
    "own": "a server of our own, given up",
    "waitress": "waitress",
    "bare-waitress": "waitress, bare Flask",
    "granian": "granian WSGI",
    "granian-rsgi": "granian RSGI, body first",
    "uvicorn": "uvicorn, body first",
    "hypercorn": "hypercorn, body first",
    "gunicorn": "gunicorn gthread",
    "cheroot": "cheroot",
}


def medians(samples: Sequence[Figures]) -> Figures:
    """Return the median of each figure, and the rounds of the first one."""
    found = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    return found | {"rounds": [sample["per_second"] for sample in samples]}


def together(earlier: Any, later: Any) -> Any:
    """Return the figures of two runs as those of one: the samples of both."""
    if isinstance(earlier, list) and isinstance(later, list):
        return [*earlier, *later]
    if isinstance(earlier, dict) and isinstance(later, dict):
        return earlier | {
            name: together(earlier[name], later[name]) if name in earlier else later[name] for name in later
        }
    return later


def rounds_of(figures: Any) -> int:
    """Return how many rounds there are of a case."""
    while isinstance(figures, dict) and figures:
        figures = next(iter(figures.values()))
    return len(figures) if isinstance(figures, list) else 0


def summed_up(figures: Figures) -> dict[str, Any]:
    """Return the figures with medians in place of samples."""
    found = dict(figures)
    if "choose" in figures:
        found["choose"] = {
            kind: {how: medians(samples) for how, samples in both.items()} for kind, both in figures["choose"].items()
        }
    if "verbs" in figures:
        found["verbs"] = {name: medians(samples) for name, samples in figures["verbs"].items()}
    return found


def goals(figures: Figures) -> list[Goal]:
    """Return what was wanted, and what came of it."""
    found = []
    if chosen := figures.get("choose"):
        held = chosen["product"]["held"]["per_second"]
        for kind in ("waitress", "bare-waitress"):
            if kind in chosen:
                for how in ("held", "alone"):
                    text = f"leases a second of this server while held against, to {LABELS[kind]} {how}"
                    low = 2.0 if (kind, how) == ("waitress", "held") else None
                    found.append(_ratio(text, held, chosen[kind][how]["per_second"], low))
    if verbs := figures.get("verbs"):
        jobs = {how: verbs[f"lease of 8 {how}"]["per_second"] for how in ("1", "2", "direct")}
        found.append(
            _ratio("jobs a second, leased 8 at a time, to the Lua called directly", jobs["1"], jobs["direct"], 0.5)
        )
        found.append(_ratio("the same of two servers", jobs["2"], jobs["direct"], None))
    if (workers := figures.get("workers")) and "get_url" in workers["steady"]:
        p99 = workers["steady"]["get_url"]["p99_ms"]
        found.append(Goal(f"p99 of a lease with {workers['workers']} workers", round(p99, 1), None, 500.0, "ms"))
    return found


def _ratio(text: str, own: float, other: float, low: float | None) -> Goal:
    value = round(own / other, 2) if other else None
    return Goal(text, value, low if other else None, None, problem="" if other else "the other one answered nobody")


def markdown(figures: Figures, machine: Mapping[str, str]) -> str:
    """Return the tables."""
    lines = [", ".join(f"{name}: {value}" for name, value in machine.items()), ""]
    lines += ["| what | figure | wanted | |", "|---|---|---|---|"]
    for goal in goals(figures):
        wanted = f"≥ {goal.low:g}" if goal.low is not None else f"≤ {goal.high:g}" if goal.high is not None else ""
        met = {True: "met", False: "**missed**", None: ""}[goal.is_met]
        value = goal.problem or f"{goal.value:g} {goal.unit}".strip()
        lines.append(f"| {goal.text} | {value} | {wanted} | {met} |")
    for case, table in (("choose", _choose), ("verbs", _verbs), ("workers", _workers)):
        if case in figures:
            lines += ["", *table(figures[case])]
    if "verbs" in figures:
        lines += ["", *model.table(figures["verbs"])]
    return "\n".join(lines)


def _choose(figures: Figures) -> list[str]:
    lines = [
        "| server | leases/s | rounds | CPU of a lease | p50, p99 "
        "| held against: leases/s | rounds | p50, p99 | MB, held |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in sorted(figures, key=lambda name: -float(figures[name]["held"]["per_second"])):
        alone, held = figures[kind]["alone"], figures[kind]["held"]
        rounds = [", ".join(f"{one:.0f}" for one in each["rounds"]) for each in (alone, held)]
        lines.append(
            f"| {LABELS[kind]} | **{alone['per_second']:.0f}** | {rounds[0]} | {alone['cpu_us']:.0f} µs "
            f"| {alone['p50_ms']:.0f}, {alone['p99_ms']:.0f} ms | **{held['per_second']:.0f}** | {rounds[1]} "
            f"| {held['p50_ms']:.0f}, {held['p99_ms']:.0f} ms | {alone['memory_mb']:.0f}, {held['memory_mb']:.0f} |"
        )
    return lines


def _verbs(figures: Figures) -> list[str]:
    lines = ["| each second | one server | two servers | the Lua directly | one to direct |", "|---|---|---|---|---|"]
    for verb in ("lease", "lease of 8", "heartbeat", "ack"):
        one, two, direct = (figures[f"{verb} {how}"]["per_second"] for how in ("1", "2", "direct"))
        what = {"lease": "jobs leased, 1 at a time", "lease of 8": "jobs leased, 8 at a time"}.get(verb, f"{verb}s")
        lines.append(f"| {what} | {one:.0f} | {two:.0f} | {direct:.0f} | {one / direct:.2f} |")
    return lines


def _workers(figures: Figures) -> list[str]:
    lines = [
        f"| {figures['workers']} workers | calls/s | p50 | p99 | worst |",
        "|---|---|---|---|---|",
    ]
    for phase, text in (("steady", "as usual"), ("back", "after an outage of 20 s")):
        for verb, each in figures[phase].items():
            times = " | ".join(f"{each[name]:.0f} ms" for name in ("p50_ms", "p99_ms", "worst_ms"))
            lines.append(f"| {verb}, {text} | {each['per_second']:.0f} | {times} |")
    troubles = ", ".join(f"{name} {count}" for name, count in figures["troubles"].items()) or "none"
    lines += [
        "",
        f"The server took {figures['server_cpu']:.2f} of a core and {figures['memory_mb']:.0f} MB, the simulated"
        f" workers {figures['client_cpu']:.2f} of a core. Calls that came to nothing, nearly all in the outage:"
        f" {troubles}.",
    ]
    return lines


def plot(figures: Figures, path: Path) -> None:
    """Draw what is there."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    drawn = [case for case in ("choose", "verbs", "workers") if case in figures]
    figure, axes = pyplot.subplots(len(drawn), 1, figsize=(9, 3.6 * len(drawn)), squeeze=False)
    for case, (axis,) in zip(drawn, axes, strict=True):
        {"choose": _draw_choose, "verbs": _draw_verbs, "workers": _draw_workers}[case](axis, figures[case])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_choose(axis: Any, figures: Figures) -> None:
    kinds = sorted(figures, key=lambda name: float(figures[name]["held"]["per_second"]))
    places = range(len(kinds))
    for how, shift, colour in (("alone", 0.2, "#9db8d2"), ("held", -0.2, "#1f5f99")):
        text = "alone" if how == "alone" else "500 half bodies, 1,000 half heads, 2,000 idle"
        values = [figures[kind][how]["per_second"] for kind in kinds]
        axis.barh([place + shift for place in places], values, 0.4, color=colour, label=text)
    axis.set_yticks(list(places), [LABELS[kind] for kind in kinds])
    axis.set_title("Leases a second at 64 connections")
    axis.legend(loc="lower right")


def _draw_verbs(axis: Any, figures: Figures) -> None:
    names = ("lease", "lease of 8", "heartbeat", "ack")
    for number, (how, colour) in enumerate((("1", "#1f5f99"), ("2", "#6fa3cf"), ("direct", "#c9c9c9"))):
        values = [figures[f"{name} {how}"]["per_second"] for name in names]
        text = {"1": "one server", "2": "two servers", "direct": "the Lua directly"}[how]
        bars = axis.bar([place + 0.27 * (number - 1) for place in range(4)], values, 0.27, color=colour, label=text)
        axis.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=8)
    axis.set_xticks(range(4), ["leased, 1 at a time", "leased, 8 at a time", "heartbeats", "acks"])
    axis.set_title("Each second, 64 clients")
    axis.legend()


def _draw_workers(axis: Any, figures: Figures) -> None:
    axis.plot(figures["each_second"], color="#1f5f99")
    axis.set_title(f"Calls of {figures['workers']} workers answered in each second; the server is away for 20 s")
    axis.set_xlabel("seconds")
    axis.set_ylim(bottom=0)
