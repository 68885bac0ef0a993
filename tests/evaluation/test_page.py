"""The page of classes with any names."""

import csv
import io

import torch

from fashion_lit.evaluation.page import Evaluation, Result, page
from fashion_lit.evaluation.predictions import Predictions
from fashion_lit.evaluation.scores import score
from fashion_lit.evaluation.tables import class_table


def test_names_are_escaped_and_reports_of_other_data_are_left_out() -> None:
    names = ["<b>&amp;</b>", "お", "a" * 60, *(f"class {i}" for i in range(57))]
    labels = torch.arange(600) % 60
    probabilities = torch.eye(60)[(labels + (torch.arange(600) < 7)) % 60]
    images = torch.zeros(600, 3, 8, 9, dtype=torch.uint8)
    predictions = Predictions(probabilities, labels, images)
    result = Result("m", "test", predictions, score(probabilities, labels, names))
    evaluation = Evaluation("t", "s", result, [result], "No temperature.")
    html = page(evaluation, {"confusion_matrix": b""})
    assert "<b>&amp;</b>" not in html
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in html
    assert "<td>お (#1 in figures)</td>" in html
    assert f"<td>{'a' * 60}</td>" in html
    assert html.count("<tr>") >= 60  # a row for each class
    assert "report A" not in html
    assert "darker: more frequent mistakes" in html
    assert "row shares" not in html  # the matrix has no numbers
    rows = csv.DictReader(io.StringIO(class_table(result.scores)))
    assert [row["class"] for row in rows][:60] == names
