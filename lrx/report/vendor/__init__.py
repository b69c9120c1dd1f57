"""JavaScript libraries that the report carries inside it. ``python -m lrx.report.vendor`` fetches them anew."""
