"""Figures of a sweep: a heat map of two settings, main effects, learning curves and time."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fashion_lit.evaluation.curves import read_curves
from fashion_lit.files import png, write_atomically
from fashion_lit.sweeps.ranking import Entry

Value = float | str
FIGURES = ("heat_map", "scatter", "main_effects", "learning_curves", "time")
MAX_TICKS = 12  # with more distinct numbers, the axis is continuous
NUM_CURVES = 5
MAX_INCHES = 20
MAX_NUMBERS = 200  # cells; a larger heat map gets a colour bar instead of numbers


def draw_figures(
    sweep_dir: Path, entries: Sequence[Entry], columns: Sequence[str], metric: str
) -> None:
    """Write the figures that the finished entries allow into `sweep_dir`.

    Always main_effects.png and time.png; for two settings heat_map.png, or scatter.png if their
    values do not recur; learning_curves.png of the best entries if they have more than one point.
    Writes nothing for fewer than two finished entries or without settings that vary.
    """
    done = [entry for entry in entries if entry.metric]
    if len(done) < 2 or not columns:
        return
    figures = {
        "main_effects": main_effects(done, columns, metric),
        "time": time_figure(done, metric),
    }
    if len(columns) == 2:
        means = mean_over(done, *columns)
        is_grid = all(len({place[i] for place in means}) < len(means) for i in (0, 1))
        draw = heat_map if is_grid else scatter
        figures["heat_map" if is_grid else "scatter"] = draw(means, columns[0], columns[1], metric)
    labels = [", ".join(describe_settings(entry, columns)) for entry in done[:NUM_CURVES]]
    curves = [entry_curves(entry, metric) for entry in done[:NUM_CURVES]]
    if any(len(points) > 1 for members in curves for points in members):
        figures["learning_curves"] = learning_curves(dict(zip(labels, curves, strict=True)), metric)
    for name in FIGURES:
        path = sweep_dir / f"{name}.png"
        if name in figures:
            write_atomically(path, png(figures[name]))
        else:
            path.unlink(missing_ok=True)  # may be left from when the sweep was smaller


def value_of(entry: Entry, column: str) -> Value:
    """Return an entry's value of a setting, or "-" if it does not have that setting."""
    return entry.runs[0].settings.get(column, "-")


def describe_settings(entry: Entry, columns: Sequence[str]) -> list[str]:
    """Return an entry's settings without their groups: ["lr=0.1", …]."""
    return [f"{column.split('.')[-1]}={short(value_of(entry, column))}" for column in columns]


def short(value: Value) -> str:
    """Format a setting's value, floats with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_order(values: Iterable[Value]) -> list[Value]:
    """Return the distinct values of a setting: sorted numbers, then sorted strings."""
    numbers = sorted({v for v in values if not isinstance(v, str)})
    return [*numbers, *sorted({v for v in values if isinstance(v, str)})]


def mean_over(entries: Sequence[Entry], across: str, down: str) -> dict[tuple[Value, Value], float]:
    """Average the metric over all other settings: {(value across, value down): mean}."""
    groups: dict[tuple[Value, Value], list[float]] = {}
    for entry in entries:
        groups.setdefault((value_of(entry, across), value_of(entry, down)), []).append(entry.mean)
    return {place: statistics.fmean(values) for place, values in groups.items()}


def heat_map(
    means: Mapping[tuple[Value, Value], float], across: str, down: str, metric: str
) -> Figure:
    """Draw the mean of `metric` over two settings, one cell for each pair of values."""
    columns, rows = (in_order(place[i] for place in means) for i in (0, 1))
    grid = [[means.get((c, r), float("nan")) for c in columns] for r in rows]
    # In inches; with many values the cells shrink.
    size = (min(2.2 + 0.9 * len(columns), MAX_INCHES), min(1.6 + 0.6 * len(rows), MAX_INCHES))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="viridis", aspect="auto")
    low, high = image.get_clim()
    place_of = [{value: i for i, value in enumerate(values)} for values in (columns, rows)]
    if len(means) > MAX_NUMBERS:
        figure.colorbar(image)
    for (c, r), value in means.items() if len(means) <= MAX_NUMBERS else ():
        x, y = place_of[0][c], place_of[1][r]
        color = "white" if value < (low + high) / 2 else "black"
        axes.text(x, y, f"{value:.4f}", ha="center", va="center", color=color, fontsize=9)
    rotation = 30 if len(columns) > 8 else 0
    axes.set_xticks(range(len(columns)), [short(v) for v in columns], rotation=rotation)
    axes.set_yticks(range(len(rows)), [short(v) for v in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_title(metric)
    return figure


def scatter(
    means: Mapping[tuple[Value, Value], float], across: str, down: str, metric: str
) -> Figure:
    """Draw a dot for each pair of values that was tried, coloured by `metric`."""
    figure = Figure(figsize=(5.5, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    x, y = (
        lay_out(axes, name, across, [place[i] for place in means])
        for i, (name, across) in enumerate((("x", across), ("y", down)))
    )
    dots = axes.scatter(x, y, c=list(means.values()), cmap="viridis", s=70, edgecolors="black")
    figure.colorbar(dots, label=metric)
    return figure


def lay_out(axes: Axes, name: str, label: str, values: Sequence[Value]) -> Sequence[float]:
    """Prepare the axis "x" or "y" for a setting's values; return the coordinate of each value.

    Strings, and up to MAX_TICKS distinct values, are spaced evenly. More numbers are placed at
    their values, on a logarithmic axis if they are positive and span more than a decade.
    """
    distinct = in_order(values)
    numbers = [v for v in values if not isinstance(v, str)]
    axes.set(**{f"{name}label": label})
    if len(numbers) == len(values) and len(distinct) > MAX_TICKS:
        if min(numbers) > 0 and max(numbers) > 10 * min(numbers):
            axes.set(**{f"{name}scale": "log"})
        return numbers
    places = {value: float(place) for place, value in enumerate(distinct)}
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_ticks(list(places.values()), [short(v) for v in distinct])
    return [places[value] for value in values]


def main_effects(entries: Sequence[Entry], columns: Sequence[str], metric: str) -> Figure:
    """Draw `metric` over each setting: a dot for each entry, a line through the means per value.

    The line is left out for settings with more than MAX_TICKS values.
    """
    figure = Figure(figsize=(3.2 * len(columns), 3), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        x = lay_out(axes, "x", column, [value_of(entry, column) for entry in entries])
        axes.plot(x, [entry.mean for entry in entries], "o", color="tab:blue", alpha=0.5)
        groups: dict[float, list[float]] = {}
        for place, entry in zip(x, entries, strict=True):
            groups.setdefault(place, []).append(entry.mean)
        if len(groups) <= MAX_TICKS:
            places = sorted(groups)
            means = [statistics.fmean(groups[place]) for place in places]
            axes.plot(places, means, color="tab:orange")
        axes.tick_params(axis="x", rotation=30)
    panels[0].set_ylabel(metric)
    return figure


def time_figure(entries: Sequence[Entry], metric: str) -> Figure:
    """Draw each entry's metric over the mean seconds that its runs took."""
    figure = Figure(figsize=(4.5, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    points = [(entry.seconds, entry.mean) for entry in entries if entry.seconds is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], "o", color="tab:blue", alpha=0.7)
    axes.set_xlabel("seconds a run")
    axes.set_ylabel(metric)
    return figure


def entry_curves(entry: Entry, metric: str) -> list[list[tuple[float, float]]]:
    """Return [(epoch, value), …] of `metric` for each finished run that logged it."""
    curves = []
    for run in entry.runs:
        points = read_curves(run.path).get(metric) if run.metrics else None
        if points:
            epochs_of_step = float(run.settings["trainer.max_epochs"]) / (points[-1][0] + 1)
            curves.append([((step + 1) * epochs_of_step, value) for step, value in points])
    return curves


def learning_curves(curves: Mapping[str, list[list[tuple[float, float]]]], metric: str) -> Figure:
    """Draw `metric` over epochs for each entry, all seeds of an entry in one colour."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for place, (label, members) in enumerate(curves.items()):
        for number, points in enumerate(members):
            x, y = zip(*points, strict=True)
            label_once = "_" * number + label  # the legend omits labels that start with "_"
            axes.plot(x, y, ".-", color=f"C{place}", label=label_once)
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.legend(fontsize=8)
    return figure
