"""A document of small tables, and its Markdown, LaTeX and terminal forms. Nothing here knows what a run is."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Text:
    """A cell: what is read first, and what stands smaller behind it."""

    main: str
    detail: str = ""
    bold: bool = False

    def __str__(self) -> str:
        return f"{self.main} {self.detail}".strip()


@dataclass(frozen=True)
class Block:
    """A table with a heading. ``widths``: a share of the page's width for columns of running text, else 0."""

    key: str
    title: str
    caption: str
    header: list[str]
    rows: list[list[Text]]
    notes: list[str] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A title, introductory paragraphs, and blocks."""

    name: str
    title: str
    intro: list[str]
    blocks: list[Block]


def markdown(document: Document) -> str:
    """GitHub-flavoured Markdown."""
    lines = [f"# {_md(document.title)}", ""]
    for paragraph in document.intro:
        lines += [_md(paragraph), ""]
    for block in document.blocks:
        lines += [f"## {_md(block.title)}", "", _md(block.caption), ""]
        if block.rows:
            right = [_align_right(block, column) for column in range(len(block.header))]
            lines.append(_md_row(block.header))
            lines.append(_md_row(["---:" if is_right else ":---" for is_right in right]))
            for row in block.rows:
                lines.append(_md_row([f"**{_md(str(c))}**" if c.bold else _md(str(c)) for c in row], escape=False))
            lines.append("")
        for note in block.notes:
            lines.append(f"- {_md(note)}")
        if block.notes:
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def latex(document: Document) -> str:
    """A file to ``\\input``: one ``table`` per block. The document needs ``\\usepackage{booktabs}`` and UTF-8."""
    lines = [f"% {line}" for line in (document.title, "needs \\usepackage{booktabs}")]
    for block in document.blocks:
        if not block.rows:
            continue
        lines += ["", "\\begin{table}[htbp]", "\\centering", f"\\caption{{{_tex(f'{block.title}. {block.caption}')}}}"]
        lines += ["\\vspace{4pt}", f"\\label{{tab:{document.name.replace('_', '-')}-{block.key}}}", "\\footnotesize"]
        lines += ["\\setlength{\\tabcolsep}{3pt}", f"\\begin{{tabular}}{{{_tex_columns(block)}}}", "\\toprule"]
        headings = [[_tex(line) for line in textwrap.wrap(text, 10)] for text in block.header]
        lines.append(" & ".join(_stack(heading, "b") for heading in headings) + " \\tabularnewline")
        lines.append("\\midrule")
        for index, row in enumerate(block.rows):
            lines += ["\\addlinespace[2pt]"] if index else []
            cells = [_tex_cell(cell, _running(block, column)) for column, cell in enumerate(row)]
            lines.append(" & ".join(cells) + " \\tabularnewline")
        lines += ["\\bottomrule", "\\end{tabular}"]
        if block.notes:
            notes = " ".join(_tex(note.rstrip(".") + ".") for note in block.notes)
            lines.append(f"\\par\\smallskip\\begin{{minipage}}{{\\linewidth}}\\scriptsize {notes}\\end{{minipage}}")
        lines.append("\\end{table}")
    return "\n".join(lines) + "\n"


def show(document: Document, console: Console) -> None:
    """Print to a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text as Rich

    console.print(Rich(document.title, style="bold"))
    for paragraph in document.intro:
        console.print(Rich(paragraph))
    for block in document.blocks:
        console.print()
        if block.rows:
            table = Table(title=Rich(block.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
            for column, label in enumerate(block.header):
                right = _align_right(block, column)
                table.add_column(Rich(label), justify="right" if right else "left", overflow="fold")
            for row in block.rows:
                table.add_row(*(Rich(str(cell), style="bold" if cell.bold else "") for cell in row))
            console.print(table)
        else:
            console.print(Rich(block.title, style="bold"))
        console.print(Rich(block.caption, style="dim"))
        for note in block.notes:
            console.print(Rich(f"- {note}", style="dim"))


def _align_right(block: Block, column: int) -> bool:
    """Columns of numbers, and what stands in their place, go right; the first column and running text go left."""
    return column > 0 and not _running(block, column)


def _running(block: Block, column: int) -> bool:
    return bool(block.widths and block.widths[column])


def _md_row(cells: list[str], escape: bool = True) -> str:
    return "| " + " | ".join(_md(cell) if escape else cell for cell in cells) + " |"


def _md(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = " ".join(text.split())
    for character in "\\|*_`<[~":
        text = text.replace(character, "\\" + character)
    return text


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "→": r"$\to$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
}


def _tex(text: str) -> str:
    """Text that LaTeX prints as it is. Letters with accents pass; other symbols it may not know become ``?``."""
    plain = "".join(_TEX.get(c, c if c.isascii() or c in _LATIN else "?") for c in " ".join(text.split()))
    return plain if "–" in text or "—" in text else plain.replace("--", "-{}-")  # --root is no dash


# What pdfLaTeX's UTF-8 input knows without further packages: the letters of Latin-1.
_LATIN = {chr(code) for code in range(0xC0, 0x100)} - {"÷"}


def _tex_cell(cell: Text, running: bool) -> str:
    """Running text as a paragraph; a number with its detail below it."""
    if running:
        text = f"\\raggedright {_tex(str(cell))}"
        return f"\\textbf{{{text}}}" if cell.bold else text
    main = f"\\textbf{{{_tex(cell.main)}}}" if cell.bold else _tex(cell.main)
    return _stack([main, *(f"{{\\tiny {_tex(line)}}}" for line in textwrap.wrap(cell.detail, 11))], "t")


def _stack(lines: list[str], place: str) -> str:
    """Lines below each other, which keeps columns narrow enough for a page."""
    if len(lines) == 1:
        return lines[0]
    return f"\\begin{{tabular}}[{place}]{{@{{}}r@{{}}}}" + " \\\\ ".join(lines) + "\\end{tabular}"


def _tex_columns(block: Block) -> str:
    specs = []
    for column in range(len(block.header)):
        if _running(block, column):
            specs.append(f"p{{{block.widths[column]:.2f}\\linewidth}}")
        else:
            specs.append("r" if _align_right(block, column) else "l")
    return "@{}" + "".join(specs) + "@{}"
