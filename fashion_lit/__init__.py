"""fashion-lit: train and sweep Fashion-MNIST classifiers."""

__version__ = "0.1.0"
