"""Image sources, augmentation and the LightningDataModule."""
