"""State-space models: initialisations, kernels, scans and the layers built of them."""
