"""A run on disk: its directory and checkpoints, and how it stops and resumes."""
