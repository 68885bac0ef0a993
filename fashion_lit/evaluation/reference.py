"""Published test accuracy and per-class scores of the two course reports."""

from dataclasses import dataclass

from fashion_lit.data.sources.fashion_mnist import CLASS_NAMES


@dataclass(frozen=True)
class Reference:
    """The published test scores of a course report.

    Args:
        name: name of the course report.
        protocol: its model, and how the epoch was selected.
        accuracy: in [0, 1].
        classes: {class: (precision, recall, F1)}, rounded as printed.
    """

    name: str
    protocol: str
    accuracy: float
    classes: dict[str, tuple[float, float, float]]


def _table(rows: str) -> dict[str, tuple[float, float, float]]:
    numbers = [tuple(float(cell) for cell in row.split()) for row in rows.strip().splitlines()]
    return dict(zip(CLASS_NAMES, numbers, strict=True))  # type: ignore[arg-type]


REPORT_A = Reference(
    "report A",
    "ResNet-18 at 224 pixels, best of 20 epochs selected on the test set",
    0.9430,
    _table("""
        .89 .91 .90
        1.00 .99 .99
        .92 .93 .93
        .94 .94 .94
        .91 .93 .92
        .99 .99 .99
        .85 .80 .83
        .97 .98 .98
        .99 .99 .99
        .98 .97 .98
    """),
)
REPORT_B = Reference(
    "report B",
    "a CNN trained from scratch, best of 20 epochs selected on validation images",
    0.9372,
    _table("""
        .889 .893 .891
        .994 .994 .994
        .913 .920 .916
        .934 .943 .938
        .893 .916 .904
        .989 .985 .987
        .821 .782 .801
        .963 .982 .972
        .992 .988 .990
        .982 .969 .975
    """),
)
REPORTS = (REPORT_A, REPORT_B)
