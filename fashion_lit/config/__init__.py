"""Composition and validation of configurations, from command-line overrides to plain dicts."""
