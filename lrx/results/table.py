"""From a sweep and its records to its page and the files that hold it.

Nothing is blank: what did not run, failed or cannot be had says so.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lrx.files import write_atomic
from lrx.results import blocks, render
from lrx.results.cells import cell_text, cost_number, cost_text, scale_of
from lrx.results.gather import Gathered, gather, save_bundle
from lrx.results.render import Document
from lrx.results.tidy import tidy_csv

__all__ = ["cell_text", "cost_number", "cost_text", "document", "gather", "scale_of", "tidy_csv", "write"]


def document(data: Gathered) -> Document:
    """The whole page: our scores, how they compare, what they cost, the published table, the claims."""
    sweep, table = data.sweep, data.table
    page = [blocks.scores_block(sweep, table), blocks.comparison_block(sweep, table), blocks.costs_block(sweep, table)]
    for published in sweep.published:
        ours = data.at_published_scale.get(published.key)
        page += [blocks.difference_block(published, ours, table), blocks.published_block(published)]
        if ours and ours.records():
            page.append(blocks.scores_block(sweep, ours, published))
    if sweep.claims:
        page.append(blocks.claims_block(sweep, table))
    marked = any(each.on_reported for each in (table, *data.at_published_scale.values()))
    mark = f" ({blocks.MARK})" if marked else ""
    title = f"{sweep.title} (scale {scale_of(table)}){mark}"
    return Document(sweep.name, title, [f"Paper: {sweep.paper}."], [block for block in page if block])


def write(data: Gathered, folder: Path | str, *, plots: bool = True, save_records: bool = False) -> list[Path]:
    """Write ``table.md``, ``table.tex``, ``table.csv``, the plots, and with ``save_records`` the bundle behind them."""
    folder = Path(folder)
    page = document(data)
    files = {"table.md": render.markdown(page), "table.tex": render.latex(page), "table.csv": tidy_csv(data)}
    written = [write_atomic(folder / name, content) for name, content in files.items()]
    if plots:
        from lrx.results.plots import draw

        drawn = draw(data.sweep, data.table, folder)
        written += drawn.files
        for line in drawn.absent:
            print(f"not drawn: {line}", file=sys.stderr)
    if save_records:
        written.append(save_bundle(data, folder / "records.jsonl"))
    return written
