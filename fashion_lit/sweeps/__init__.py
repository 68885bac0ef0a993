"""Many runs: their jobs, where they run, and their order."""
