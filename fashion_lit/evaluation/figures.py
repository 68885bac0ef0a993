"""Figures: training curves, a range test, images with predictions, calibration, coverage."""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fashion_lit.data.classes import class_tags
from fashion_lit.evaluation.curves import Curve, RangeCurve
from fashion_lit.evaluation.scores import Bin
from fashion_lit.text import one_line, shorten

RIGHT, WRONG = "#1a7f37", "#b42318"  # green, red
TRAIN, VAL = "tab:blue", "tab:orange"
COLUMNS = 6  # of the grid of images
PICTURE, CAPTION, GAP = 112, 34, 4  # in pixels: image side, caption height, margin
PITCH = (PICTURE + CAPTION + GAP, PICTURE + 4 * GAP)  # distance between rows, between columns
MAX_CURVES = 10  # classes in one figure, as many as there are colours
MAX_NAME, MAX_LABEL, MAX_GUESS = 24, 18, 12  # characters of a class: in general, above a picture


def drawn_names(class_names: Sequence[str], most: int = MAX_NAME) -> list[str]:
    """Return names of classes as figures show them: one line of about `most` characters at most.

    A name with characters that the font lacks, such as Chinese ones, becomes the class's number,
    as in "#3".
    """
    known = _characters_of_font()
    lines = [shorten(one_line(name), most) for name in class_names]
    return [s if known.issuperset(map(ord, s)) else f"#{i}" for i, s in enumerate(lines)]


@cache
def _characters_of_font() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def curves_figure(curves: Mapping[str, Curve], num_epochs: float) -> Figure:
    """Plot training and validation loss and accuracy, and the learning rate, over epochs.

    Args:
        curves: curves by TensorBoard tag; missing ones are left out.
        num_epochs: number of epochs at the last step of the curves.
    """
    figure = Figure(figsize=(11, 3.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, 3)
    last_step = max((curve[-1][0] + 1 for curve in curves.values() if curve), default=1)
    for axes, name in zip(panels[:2], ("loss", "accuracy"), strict=True):
        for split, color in (("train", TRAIN), ("val", VAL)):
            _plot(axes, curves.get(f"{split}/{name}", []), num_epochs / last_step, color, split)
        axes.set_title(name)
        axes.legend()
    _plot(panels[2], curves.get("train/lr", []), num_epochs / last_step, "tab:green", "lr")
    panels[2].set_title("learning rate")
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    return figure


def class_curves_figure(curves: Mapping[str, Curve], class_names: Sequence[str]) -> Figure:
    """Plot each class's F1, precision and recall on validation images over steps, in ten colours.

    Of more than MAX_CURVES classes, those with the lowest F1 at the end are drawn.

    Args:
        curves: curves by TensorBoard tag; those named "val/f1/Shirt", … are drawn.
        class_names: names of all classes.
    """
    figure = Figure(figsize=(6, 9), dpi=100, layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, sharey=True)
    tags = class_tags(class_names)
    worst = sorted(tags, key=lambda tag: [v for _, v in curves.get(f"val/f1/{tag}", [])][-1:])
    chosen = [place for place, tag in enumerate(tags) if tag in worst[:MAX_CURVES]]
    for axes, score in zip(panels, ("f1", "precision", "recall"), strict=True):
        for tag in [tags[place] for place in chosen]:
            curve = curves.get(f"val/{score}/{tag}", [])
            values = [value for _, value in curve]
            marker = "." if len(curve) <= 50 else ""
            axes.plot([step for step, _ in curve], values, label=tag, marker=marker)
        axes.set_ylabel(score)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    if len(chosen) < len(tags):
        panels[0].set_title(f"{len(chosen)} of {len(tags)} classes, those with the lowest F1")
    drawn = drawn_names(tags)
    names = [drawn[place] for place in chosen]
    num_columns = 4 if max(map(len, names)) <= MAX_GUESS else 2
    lines, numbers = panels[0].get_lines(), [str(place) for place in chosen]
    legend = figure.legend(lines, numbers, loc="outside lower center", ncols=num_columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)  # a name may have dollar signs
        text.set_text(name)
    return figure


def _plot(axes: Axes, curve: Curve, epochs_of_step: float, color: str, label: str) -> None:
    marker = "." if len(curve) <= 50 else ""
    x = [(step + 1) * epochs_of_step for step, _ in curve]
    axes.plot(x, [value for _, value in curve], color=color, label=label, marker=marker)


def range_test_figure(curve: RangeCurve, title: str) -> Figure:
    """Plot the losses of a range test over the learning rate, with the suggestion marked."""
    figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, ".", color="silver", markersize=4, label="a batch")
    axes.plot(curve.rates, curve.smoothed, color=TRAIN, label="smoothed")
    if curve.suggestion is not None:
        first, last = (curve.rates[index] for index in curve.bottom)
        axes.axvspan(first, last, color=VAL, alpha=0.15, label="within 5 % of the minimum")
        label = f"suggestion: {curve.suggestion:.2g}"
        axes.axvline(curve.suggestion, color=VAL, linestyle="--", label=label)
    low = min(curve.losses)
    axes.set_ylim(low - 0.05 * (curve.highest_shown - low), curve.highest_shown)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title(title)
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    return figure


def pictures_figure(
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    class_names: Sequence[str],
    title: str = "",
) -> Figure:
    """Draw images with their true class, the predicted class if it is wrong, and the confidence.

    Args:
        images: (N, H, W), each of which is stretched to its darkest and lightest pixel; or colour
            (N, 3, H, W), uint8 or in [0, 1].
        labels: true classes (N,) int64.
        probabilities: predicted probabilities (N, C).
        class_names: C names.
        title: title of the figure, if any.
    """
    confidence, predicted = probabilities.max(1)
    num_rows = max(1, -(-len(images) // COLUMNS))
    width, height, above = 1.75 * COLUMNS, 2.05 * num_rows, 0.4 if title else 0.0  # inches
    figure = Figure(figsize=(width, height + above), dpi=100)
    # All images share one canvas: axes and a computed layout for each take ten times as long.
    axes = figure.add_axes((0, 0, 1, height / (height + above)))
    axes.set_axis_off()
    canvas = torch.zeros(num_rows * PITCH[0], COLUMNS * PITCH[1])
    if images.ndim == 4:
        canvas = torch.ones(*canvas.shape, 3)
    label_names, guess_names = (drawn_names(class_names, most) for most in (MAX_LABEL, MAX_GUESS))
    for index, image in enumerate(images):
        top, left = PITCH[0] * (index // COLUMNS) + CAPTION, PITCH[1] * (index % COLUMNS) + 2 * GAP
        canvas[top : top + PICTURE, left : left + PICTURE] = _tile(image)
        label, guess = int(labels[index]), int(predicted[index])
        certainty = f"{100 * float(confidence[index]):.0f} %"
        if label == guess:
            color, caption = RIGHT, f"{label_names[label]}\n{certainty}"
        else:
            color = WRONG
            caption = f"{label_names[label]}\n→ {guess_names[guess]} {certainty}"
        style = {"color": color, "fontsize": 9, "parse_math": False}
        axes.text(left + PICTURE / 2, top - GAP, caption, ha="center", va="bottom", **style)
    axes.imshow(canvas.numpy(), cmap="gray_r", vmin=0, vmax=1, aspect="auto")
    if title:
        figure.suptitle(title)
    return figure


def _tile(image: Tensor) -> Tensor:
    """Return an image (H, W) or (3, H, W) as (PICTURE, PICTURE) or (PICTURE, PICTURE, 3) in [0, 1].

    The grey values of an image are stretched to its darkest and lightest pixel.
    """
    pixels = image.float()
    if image.ndim == 2:
        low, high = pixels.aminmax()
        pixels = ((pixels - low) / (high - low).clamp(min=1e-9))[None]
    elif image.dtype == torch.uint8:
        pixels = pixels / 255
    if max(pixels.shape[1:]) > PICTURE:
        tile = F.interpolate(pixels[None], PICTURE, mode="bilinear", antialias=True)[0]
    else:
        tile = F.interpolate(pixels[None], PICTURE)[0]
    return tile[0] if image.ndim == 2 else tile.permute(1, 2, 0).clamp(0, 1)


def surest_mistakes(probabilities: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the indices (at most `count`,) int64 of the most confident mistakes, in this order."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    order = confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order[:count]]


def example_grid(predicted: Tensor, labels: Tensor, count: int) -> Tensor:
    """Choose images for a grid; return their indices (at most `count`,) int64 in ascending order.

    At most a third are the first mistakes of the split, the others its first correct predictions.
    """
    wrong = (predicted != labels).nonzero()[: count // 3, 0]
    right = (predicted == labels).nonzero()[: count - len(wrong), 0]
    return torch.cat([right, wrong]).sort().values


def reliability_figure(bins: Sequence[Bin], calibrated: Sequence[Bin] = ()) -> Figure:
    """Draw the reliability diagram of confidence bins; perfect calibration is the diagonal.

    Args:
        bins: bins of the predictions.
        calibrated: bins of the predictions that a temperature has calibrated, if any.
    """
    figure = Figure(figsize=(4.4, 4.2), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="gray", linestyle="--", label="perfect")
    x = [b.confidence for b in bins]
    upper.plot(x, [b.accuracy for b in bins], "o-", color=TRAIN, label="as predicted")
    if calibrated:
        points = [(b.confidence, b.accuracy) for b in calibrated]
        upper.plot(*zip(*points, strict=True), "s-", color=VAL, label="calibrated")
    upper.set_ylabel("accuracy")
    upper.legend()
    lower.bar(x, [b.num_images for b in bins], width=0.04, color=TRAIN)
    lower.set_yscale("log")
    lower.set_ylabel("images")
    lower.set_xlabel("confidence")
    return figure


def coverage_figure(kept: Tensor, accuracy: Tensor) -> Figure:
    """Plot the accuracy on the most confident predictions over their share `kept`, (N,) each."""
    figure = Figure(figsize=(4.4, 4.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    first = max(1, len(kept) // 100)  # the first percent is noisy
    axes.plot(kept[first - 1 :].numpy(), accuracy[first - 1 :].numpy(), color=TRAIN)
    axes.set_xlabel("share of images, the most confident first")
    axes.set_ylabel("accuracy on this share")
    axes.grid(alpha=0.3)
    return figure
