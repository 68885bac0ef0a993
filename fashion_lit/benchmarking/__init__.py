"""Measure this project's speed against the course reports' way of training."""
