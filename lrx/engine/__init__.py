"""The jobs of a sweep: what they are, which are left to do, and the processes that do them. No torch up to the fork."""
