"""Mathematics that several papers share, as plain functions and modules."""
