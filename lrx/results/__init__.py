"""What came out of the runs: records, the tables and plots made of them, and the papers' claims. Imports no torch."""
