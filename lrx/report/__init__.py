"""The report: everything that ran, in one HTML file that needs neither network nor server. Imports no torch."""

from lrx.report.build import write

__all__ = ["write"]
