"""Ways to reach a model. `base` has the protocol; the others load on first use."""
