"""Sweeps and searches: plan the jobs, launch them and rank the runs."""
