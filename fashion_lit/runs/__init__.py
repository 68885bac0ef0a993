"""A run on disk: its directory, its checkpoints, how it stops and resumes."""
