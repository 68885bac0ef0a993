"""Files to batches: the images, their augmentation, the DataModule."""
