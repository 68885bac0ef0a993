"""fashion-lit: train, sweep, compare and resume Fashion-MNIST classifiers."""

__version__ = "0.1.0"
