"""How bytes arrive: embedded (a package's source archive), local files, the hub. Only ``loader`` imports torch."""
