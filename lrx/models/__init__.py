"""One file per backbone family. Every model is built from the task's description of its inputs and outputs."""
