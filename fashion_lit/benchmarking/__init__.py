"""This project measured against the reports' way of doing the same."""
