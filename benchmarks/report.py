"""What the samples say: medians, ratios, goals; the table, the raw figures and the plot."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Sample

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
MB = 1e6


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and between what it should lie; ``value`` is None where it could not be had, for a reason.

    A goal without bounds is a figure that is told beside the others.
    """

    text: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    problem: str = ""

    @property
    def is_met(self) -> bool | None:
        """Tell whether it is met; None where nothing was asked of it."""
        if self.low is None and self.high is None:
            return None
        if self.value is None:
            return False
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: the samples of each contender, what they come to, and what to know about them."""

    case: str
    title: str
    samples: Mapping[str, Sequence[Sample]]
    goals: Sequence[Goal]
    notes: Sequence[str] = field(default_factory=tuple)


# ------------------------------------------------------------------------------------------ statistics

Figure = Callable[[Sample], float]


def wall(sample: Sample) -> float:
    """Wall seconds of the whole process."""
    return sample.wall_seconds


def cpu(sample: Sample) -> float:
    """CPU seconds of the whole process and its children."""
    return sample.cpu_seconds


def memory(sample: Sample) -> float:
    """Peak resident memory in bytes."""
    return float(sample.peak_rss_bytes)


def told(name: str) -> Figure:
    """Return the reader of a figure that the run told itself."""
    return lambda sample: sample.figures[name]


download_wall = told("download_wall_seconds")
download_cpu = told("download_cpu_seconds")


def good(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples of runs that did what they should."""
    return [sample for sample in samples if not sample.problem]


def median(samples: Sequence[Sample], figure: Figure) -> float | None:
    """Return the median of a figure over the good runs; None unless more than half of all runs were good."""
    values = [figure(sample) for sample in good(samples)]
    return statistics.median(values) if values and 2 * len(values) > len(samples) else None


def ratio(above: float | None, below: float | None) -> float | None:
    """Return the quotient; None where a side is missing or nothing."""
    return above / below if above is not None and below else None


def compared(
    text: str,
    samples: Mapping[str, Sequence[Sample]],
    ours: tuple[str, Figure],
    other: tuple[str, Figure],
    low: float | None = None,
    high: float | None = None,
) -> Goal:
    """Return the quotient of two medians as a goal; the problem of a missing one is that of its last failed run."""
    sides = [median(samples.get(name, ()), figure) for name, figure in (ours, other)]
    problems = [
        f"{name}: {problem_of(samples.get(name, ()))}"
        for (name, _figure), side in zip((ours, other), sides, strict=True)
        if side is None
    ]
    return Goal(text, ratio(*sides), low, high, "×", "; ".join(problems))


def problem_of(samples: Sequence[Sample]) -> str:
    """Return why a contender has no median."""
    problems = [sample.problem for sample in samples if sample.problem and not sample.problem.startswith("spared")]
    return problems[-1] if problems else "not measured"


# ------------------------------------------------------------------------------------------ the table


def shown(value: float | None, unit: str = "") -> str:
    """Return a figure for people: three digits that mean something."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    if 0 < abs(value) < 0.095:
        digits = 3
    return f"{value:.{digits}f}{' ' + unit if unit and unit != '×' else ''}"


def bounds(goal: Goal) -> str:
    """Return what was asked of a figure."""
    if goal.low is not None and goal.high is not None:
        return f"{goal.low:g} to {goal.high:g}"
    if goal.low is not None:
        return f"≥ {goal.low:g}"
    return "" if goal.high is None else f"≤ {goal.high:g}"


def goal_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table of the goals in Markdown."""
    lines = ["| case | figure | measured | goal | met |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        title = outcome.title
        for goal in outcome.goals:
            met = {True: "yes", False: "**no**", None: ""}[goal.is_met]
            figure = shown(goal.value, goal.unit) + (f" ({_cell(goal.problem)})" if goal.problem else "")
            lines.append(f"| {title} | {goal.text} | {figure} | {bounds(goal)} | {met} |")
            title = ""
    return lines


def figure_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table of all contenders in Markdown: medians, and from which to which."""
    lines = [
        "| case | contender | wall, s | CPU, s | peak memory, MB | runs |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        title = outcome.title
        for name, samples in outcome.samples.items():
            fine = good(samples)
            runs = f"{len(fine)}" if len(fine) == len(samples) else f"{len(fine)} of {len(samples)}"
            if len(fine) < len(samples):
                runs += f": {_cell(problem_of(samples))}"
            alone = name_of_alone(fine)
            cells = [_spread(fine, wall), _spread(fine, cpu), _memory(fine)]
            lines.append(f"| {title} | {name} | {' | '.join(cells)} | {runs} |")
            title = ""
            if alone:
                cells = [_spread(fine, download_wall), _spread(fine, download_cpu), ""]
                lines.append(f"| | {name}, download alone | {' | '.join(cells)} | |")
    return lines


def name_of_alone(samples: Sequence[Sample]) -> bool:
    """Tell whether all these runs said what the download alone took."""
    return bool(samples) and all("download_wall_seconds" in sample.figures for sample in samples)


def _spread(samples: Sequence[Sample], figure: Figure) -> str:
    values = [figure(sample) for sample in samples]
    if not values:
        return "–"
    middle = shown(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({shown(min(values))}–{shown(max(values))})"


def _memory(samples: Sequence[Sample]) -> str:
    values = [sample.peak_rss_bytes for sample in samples if sample.peak_rss_bytes]
    return shown(statistics.median(values) / MB) if values else "–"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def markdown(outcomes: Sequence[Outcome], about: Mapping[str, str]) -> str:
    """Return everything that stands between the markers."""
    lines = [f"- {name}: {_cell(text)}" for name, text in about.items()]
    lines += ["", "### Goals", "", *goal_lines(outcomes), "", "### All contenders", "", *figure_lines(outcomes)]
    notes = [f"- {outcome.title}: {note}" for outcome in outcomes for note in outcome.notes]
    return "\n".join([*lines, *(["", "### Notes of this run", "", *notes] if notes else [])])


def between_markers(document: str, content: str) -> str:
    """Return a document with other content between its markers."""
    before, begin, rest = document.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} and {END} in the document")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


# ------------------------------------------------------------------------------------------ raw figures


def as_json(outcomes: Sequence[Outcome], about: Mapping[str, str]) -> str:
    """Return everything that was measured, for machines."""
    content = {"about": dict(about), "cases": [_record(outcome) for outcome in outcomes]}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _record(outcome: Outcome) -> dict[str, Any]:
    return {
        "case": outcome.case,
        "title": outcome.title,
        "samples": {name: [_rounded(sample) for sample in samples] for name, samples in outcome.samples.items()},
        "goals": [asdict(goal) for goal in outcome.goals],
        "notes": list(outcome.notes),
    }


def _rounded(sample: Sample) -> dict[str, Any]:
    if sample.problem:
        return {"problem": sample.problem}
    figures = {name: round(value, 4) for name, value in sample.figures.items()}
    return {
        "wall_seconds": round(sample.wall_seconds, 4),
        "cpu_seconds": round(sample.cpu_seconds, 4),
        "peak_rss_bytes": sample.peak_rss_bytes,
        **({"figures": figures} if figures else {}),
    }


def from_json(text: str) -> tuple[list[Outcome], dict[str, str]]:
    """Return what was measured earlier."""
    content = json.loads(text)
    return [_outcome(record) for record in content["cases"]], content["about"]


def _outcome(record: Mapping[str, Any]) -> Outcome:
    samples = {name: [Sample(**sample) for sample in runs] for name, runs in record["samples"].items()}
    goals = [Goal(**goal) for goal in record["goals"]]
    return Outcome(record["case"], record["title"], samples, goals, tuple(record["notes"]))


def merged(earlier: Sequence[Outcome], now: Sequence[Outcome], order: Sequence[str]) -> list[Outcome]:
    """Return all cases in their order, those of this run in place of earlier ones."""
    found = {outcome.case: outcome for outcome in [*earlier, *now]}
    return [found[case] for case in order if case in found]


# ------------------------------------------------------------------------------------------ the plot


def plot(outcomes: Sequence[Outcome], path: Path) -> str:
    """Draw wall and CPU of each contender of each case; return why not, or an empty text."""
    try:
        import matplotlib
    except ImportError:
        return "no plot: pip install -r requirements-bench.txt"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [outcome for outcome in outcomes if len(_bars(outcome)) > 1]
    if not drawn:
        return "no plot: no case has two contenders"
    columns = 2
    rows = -(-len(drawn) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(11, 2.4 * rows), squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place < len(drawn):
            _draw(axis, drawn[place], with_legend=place == 0)
        else:
            axis.axis("off")
    figure.tight_layout()
    # Without the version of the library and the date in it, the same figures make the same file.
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
    return ""


def _bars(outcome: Outcome) -> dict[str, tuple[float, float]]:
    bars = {}
    for name, samples in outcome.samples.items():
        seconds, processor = median(samples, wall), median(samples, cpu)
        if name_of_alone(good(samples)):
            seconds, processor = median(samples, download_wall), median(samples, download_cpu)
        if seconds is not None and processor is not None:
            bars[name] = (seconds, processor)
    return bars


def _draw(axis: Any, outcome: Outcome, with_legend: bool) -> None:
    bars = _bars(outcome)
    places = range(len(bars))
    for shift, part, label, colour in ((-0.2, 0, "wall", "#3b6fb6"), (0.2, 1, "CPU", "#e08a3c")):
        values = [bar[part] for bar in bars.values()]
        axis.barh([place + shift for place in places], values, 0.38, label=label, color=colour)
        for place, value in zip(places, values, strict=True):
            axis.text(value, place + shift, f" {shown(value)}", va="center", fontsize=7)
    axis.set_yticks(list(places), list(bars), fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel("seconds", fontsize=7)
    axis.set_title(textwrap.fill(outcome.title, 60), fontsize=9)
    if with_legend:
        axis.legend(fontsize=7)
