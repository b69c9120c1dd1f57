"""The standard plots of a table: what they show (``series``), how they are drawn (``figures``), and their files.

``scores``: every seed of every column. ``pareto``: the headline score against trainable parameters and step time.
``sensitivity``: the selection score against each tuned value. ``curves``: selection metric and training loss by step.
"""

from lrx.results.plots.files import Drawn, draw
from lrx.results.plots.painters import get_ready

__all__ = ["Drawn", "draw", "get_ready"]
