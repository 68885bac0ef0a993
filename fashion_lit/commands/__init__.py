"""The commands, one module each: a `main(arguments)` that returns the exit code."""
