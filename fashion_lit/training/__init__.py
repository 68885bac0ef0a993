"""One run: build it, train it, show its progress, predict with it."""
