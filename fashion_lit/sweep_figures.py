"""Figures of a sweep: a heat map over two settings, the effect of each, time against the metric."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fashion_lit.ranking import Entry


def draw_figures(
    sweep_dir: Path, entries: Sequence[Entry], columns: Sequence[str], metric: str
) -> None:
    """Write what the finished entries allow: heat_map.png, main_effects.png, time.png."""
    done = [entry for entry in entries if entry.metric]
    if len(done) < 2 or not columns:
        return
    figures = {
        "main_effects": main_effects(done, columns, metric),
        "time": time_figure(done, metric),
    }
    if len(columns) == 2:
        figures["heat_map"] = heat_map(done, columns[0], columns[1], metric)
    for name, figure in figures.items():
        figure.savefig(sweep_dir / f"{name}.png")


def setting_values(entries: Sequence[Entry], column: str) -> list[float | str]:
    """List a setting's values: numbers by size, then words."""
    values = {entry.runs[0].settings.get(column, "-") for entry in entries}
    return sorted(
        values, key=lambda v: (isinstance(v, str), 0 if isinstance(v, str) else v, str(v))
    )


def heat_map(entries: Sequence[Entry], across: str, down: str, metric: str) -> Figure:
    """Draw the mean of `metric` over two settings."""
    columns, rows = setting_values(entries, across), setting_values(entries, down)
    means: dict[tuple[int, int], list[float]] = {}
    for entry in entries:
        settings = entry.runs[0].settings
        place = (rows.index(settings.get(down, "-")), columns.index(settings.get(across, "-")))
        means.setdefault(place, []).append(entry.mean)
    grid = [
        [
            statistics.fmean(means[r, c]) if (r, c) in means else float("nan")
            for c in range(len(columns))
        ]
        for r in range(len(rows))
    ]
    size = (2.2 + 0.9 * len(columns), 1.6 + 0.6 * len(rows))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="viridis", aspect="auto")
    low, high = image.get_clim()
    for (r, c), values in means.items():
        value = statistics.fmean(values)
        color = "white" if value < (low + high) / 2 else "black"
        axes.text(c, r, f"{value:.4f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(columns)), [str(v) for v in columns])
    axes.set_yticks(range(len(rows)), [str(v) for v in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_title(metric)
    return figure


def main_effects(entries: Sequence[Entry], columns: Sequence[str], metric: str) -> Figure:
    """Draw `metric` over each setting: every entry a dot, their mean a line."""
    figure = Figure(figsize=(3.2 * len(columns), 3), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        values = setting_values(entries, column)
        found = [
            [e.mean for e in entries if e.runs[0].settings.get(column, "-") == value]
            for value in values
        ]
        for place, means in enumerate(found):
            axes.plot([place] * len(means), means, "o", color="tab:blue", alpha=0.5)
        axes.plot(range(len(values)), [statistics.fmean(m) for m in found], color="tab:orange")
        axes.set_xticks(range(len(values)), [str(v) for v in values], rotation=30)
        axes.set_xlabel(column)
    panels[0].set_ylabel(metric)
    return figure


def time_figure(entries: Sequence[Entry], metric: str) -> Figure:
    """Draw each entry's mean training time against its metric."""
    figure = Figure(figsize=(4.5, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for entry in entries:
        seconds = [run.metrics["seconds"] for run in entry.runs if "seconds" in run.metrics]
        axes.plot(statistics.fmean(seconds), entry.mean, "o", color="tab:blue", alpha=0.7)
    axes.set_xlabel("seconds a run")
    axes.set_ylabel(metric)
    return figure
