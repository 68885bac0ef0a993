"""Networks, and the two LightningModules that train them."""
