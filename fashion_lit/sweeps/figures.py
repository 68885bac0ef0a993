"""Figures of a sweep: a heat map of two settings, main effects, learning curves and time."""

import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from fashion_lit.evaluation.curves import read_curves
from fashion_lit.files import png, write_atomically
from fashion_lit.sweeps.ranking import Entry, describe_name, have_names
from fashion_lit.text import one_line, shorten

Value = float | str
FIGURES = ("heat_map", "scatter", "main_effects", "learning_curves", "time")
MAX_TICKS = 12  # with more distinct numbers, the axis is continuous; other values lack labels
NUM_CURVES = 5
MAX_PANELS, PANELS_A_ROW = 8, 4
MAX_INCHES = 16
MAX_CELLS = 16, 24  # across and down; a larger heat map gets a colour bar instead of numbers
MAX_LABEL, MAX_LEGEND = 14, 60  # characters


def draw_figures(
    sweep_dir: Path, entries: Sequence[Entry], columns: Sequence[str], metric: str
) -> list[str]:
    """Write the figures that the finished entries allow into `sweep_dir`; return their names.

    Always main_effects.png and time.png; for two settings heat_map.png, or scatter.png if their
    values do not recur; learning_curves.png of the best entries if they have more than one point.
    Writes nothing for fewer than two finished entries or without settings that vary.
    """
    done = [entry for entry in entries if entry.metric]
    if len(done) < 2 or not columns:
        return []
    figures = {
        "main_effects": main_effects(done, columns, metric),
        "time": time_figure(done, metric),
    }
    if len(columns) == 2:
        across, down = sorted(columns)
        means = mean_over(done, across, down)
        is_grid = all(len({place[i] for place in means}) < len(means) for i in (0, 1))
        draw = heat_map if is_grid else scatter
        figures["heat_map" if is_grid else "scatter"] = draw(means, across, down, metric)
    labels = describe_entries(done[:NUM_CURVES], columns)
    curves = [entry_curves(entry, metric) for entry in done[:NUM_CURVES]]
    if any(len(points) > 1 for members in curves for points in members):
        figures["learning_curves"] = learning_curves(dict(zip(labels, curves, strict=True)), metric)
    for name in FIGURES:
        path = sweep_dir / f"{name}.png"
        if name in figures:
            with warnings.catch_warnings():  # of names in letters that matplotlib's font lacks
                warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
                write_atomically(path, png(figures[name]))
        else:
            path.unlink(missing_ok=True)  # may be left from when the sweep was smaller
    return [f"{name}.png" for name in FIGURES if name in figures]


def value_of(entry: Entry, column: str) -> Value:
    """Return an entry's value of a setting, or "-" if it does not have that setting."""
    return entry.runs[0].settings.get(column, "-")


def describe_entries(entries: Sequence[Entry], columns: Sequence[str]) -> list[str]:
    """Return "1: NAME" of each entry, or "1: lr=0.1, …" if the runs' names repeat the settings."""
    if have_names(entries):
        texts = [describe_name(entry) for entry in entries]
    else:
        texts = [
            ", ".join(f"{c.split('.')[-1]}={short(value_of(e, c))}" for c in columns)
            for e in entries
        ]
    return [f"{place}: {plain(text, MAX_LEGEND)}" for place, text in enumerate(texts, start=1)]


def short(value: Value) -> str:
    """Format a setting's value for a label, floats with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else plain(str(value), MAX_LABEL)


def plain(text: str, most: int) -> str:
    """Return text as one line of about `most` characters that is no formula of matplotlib."""
    return shorten(one_line(text), most).replace("$", r"\$")


def label_ticks(axis: Axis, labels: Sequence[str], most: int) -> None:
    """Label places 0, 1, 2, … of an axis, but only every second, third, … if they are many."""
    every = -(-len(labels) // most)
    axis.set_ticks(range(0, len(labels), every), labels[::every])


def in_order(values: Iterable[Value]) -> list[Value]:
    """Return the distinct values of a setting: sorted numbers, then sorted strings."""
    distinct = set(values)
    texts = {value for value in distinct if isinstance(value, str)}
    return [*sorted(distinct - texts), *sorted(texts)]


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
    is_small = len(columns) <= MAX_CELLS[0] and len(rows) <= MAX_CELLS[1]
    if not is_small:
        figure.colorbar(image)
    for (c, r), value in means.items() if is_small else ():
        x, y = place_of[0][c], place_of[1][r]
        color = "white" if value < (low + high) / 2 else "black"
        axes.text(x, y, f"{value:.4f}", ha="center", va="center", color=color, fontsize=9)
    labels = [short(value) for value in columns]
    label_ticks(axes.xaxis, labels, 2 * MAX_CELLS[0])
    label_ticks(axes.yaxis, [short(value) for value in rows], 2 * MAX_CELLS[1])
    if len(columns) > 8 or max(map(len, labels)) > 8:
        tilt(axes)
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
    label_ticks(axis, [short(value) for value in distinct], MAX_TICKS)
    return [places[value] for value in values]


def tilt(axes: Axes) -> None:
    """Write the labels of the x axis obliquely, so that long ones do not overlap."""
    axes.tick_params(axis="x", rotation=40)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")


def main_effects(entries: Sequence[Entry], columns: Sequence[str], metric: str) -> Figure:
    """Draw `metric` over each setting: a dot for each entry, a line through the means per value.

    The line is left out for settings with more than MAX_TICKS values. Only the first MAX_PANELS
    settings are drawn.
    """
    drawn = columns[:MAX_PANELS]
    size = (min(len(drawn), PANELS_A_ROW), -(-len(drawn) // PANELS_A_ROW))
    figure = Figure(figsize=(3.2 * size[0], 3.2 * size[1]), dpi=120, layout="constrained")
    panels = figure.subplots(size[1], size[0], sharey=True, squeeze=False)
    for axes in panels.flat[len(drawn) :]:
        axes.set_axis_off()
    for axes, column in zip(panels.flat, drawn, strict=False):
        x = lay_out(axes, "x", column, [value_of(entry, column) for entry in entries])
        axes.plot(x, [entry.mean for entry in entries], "o", color="tab:blue", alpha=0.5)
        groups: dict[float, list[float]] = {}
        for place, entry in zip(x, entries, strict=True):
            groups.setdefault(place, []).append(entry.mean)
        if len(groups) <= MAX_TICKS:
            places = sorted(groups)
            means = [statistics.fmean(groups[place]) for place in places]
            axes.plot(places, means, color="tab:orange")
        tilt(axes)
    for axes in panels[:, 0]:
        axes.set_ylabel(metric)
    if len(drawn) < len(columns):
        figure.suptitle(f"{len(drawn)} of the {len(columns)} settings that differ")
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
