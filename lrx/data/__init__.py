"""How bytes arrive: embedded (a package's source archive), local files, the hub. Nothing here imports torch at start-up."""
