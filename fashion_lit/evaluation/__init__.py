"""Predictions to numbers, figures and words; nothing here knows a run."""
