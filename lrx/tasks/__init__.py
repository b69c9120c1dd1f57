"""One file per benchmark: data module, loss, official metrics, and where its data comes from."""
