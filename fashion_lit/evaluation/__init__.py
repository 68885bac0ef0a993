"""Scores, figures, text and the HTML page of predictions; independent of fashion_lit.runs."""
