"""lrx: reproducing papers about low-rank adaptation and low-rank spaces."""

__version__ = "0.1.0"
