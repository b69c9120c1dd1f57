"""Short names -> the files that define them, read without importing them.

A config says ``method.name: altlora``; this module finds the class with ``name = "altlora"`` in ``lrx/methods/`` (or in
a module that another package names in the entry-point group ``lrx.methods``) and reads its constructor's signature,
docstrings and declared facts from the source. Nothing heavy is imported, so that validation, ``list`` and ``info``
answer at once; ``load`` imports the class when a run needs it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lrx.errors import UserError, did_you_mean

KINDS = {"methods": "method", "models": "model", "tasks": "task"}
_BASES = {"methods": "Method", "models": "Model", "tasks": "Suite"}
REQUIRED = object()


@dataclass(frozen=True)
class Entry:
    """What the source of a registered class says. ``signature``: argument -> (annotation text, default or REQUIRED)."""

    kind: str
    name: str
    module: str
    path: Path
    class_name: str
    doc: str
    class_doc: str
    attributes: dict[str, Any] = field(default_factory=dict)
    signature: dict[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return int(self.attributes.get("version", 1))


@functools.cache
def entries(kind: str) -> dict[str, Entry]:
    """All registered classes of ``kind`` (``methods``, ``models``, ``tasks``) by name."""
    found: dict[str, Entry] = {}
    folder = Path(__file__).resolve().parent / kind
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_") and path.stem != "base":
            for entry in _read(kind, f"lrx.{kind}.{path.stem}", path):
                found[entry.name] = entry
    for point in metadata.entry_points(group=f"lrx.{kind}"):
        spec = importlib.util.find_spec(point.value.partition(":")[0])
        if spec is None or spec.origin is None:
            raise UserError(f"entry point {point.name!r} of lrx.{kind} names {point.value!r}, which is not installed")
        for entry in _read(kind, spec.name, Path(spec.origin)):
            found.setdefault(entry.name, entry)
    return found


def names(kind: str) -> list[str]:
    """Registered names of ``kind``, sorted."""
    return sorted(entries(kind))


def find(kind: str, name: str) -> Entry:
    """The entry called ``name``. Raises ``UserError`` with the closest names."""
    known = entries(kind)
    if name not in known:
        raise UserError(f"no {KINDS[kind]} is called {name!r}; {did_you_mean(name, known)}")
    return known[name]


def load(kind: str, name: str) -> type:
    """Import the module of ``name`` and return its class."""
    entry = find(kind, name)
    return getattr(importlib.import_module(entry.module), entry.class_name)


def _read(kind: str, module: str, path: Path) -> list[Entry]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from None
    doc = ast.get_docstring(tree) or ""
    found = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or _BASES[kind] not in {_last_name(base) for base in node.bases}:
            continue
        attributes = _literals(node)
        name = attributes.get("name")
        if isinstance(name, str):
            signature = _signature(node, path)
            class_doc = ast.get_docstring(node) or ""
            found.append(Entry(kind, name, module, path, node.name, doc, class_doc, attributes, signature))
    return found


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    values = {}
    for item in node.body:
        match item:
            case ast.Assign(targets=[ast.Name(id=key)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=key), value=ast.expr() as value):
                pass
            case _:
                continue
        try:
            values[key] = ast.literal_eval(value)
        except ValueError:
            continue  # not a plain literal: not a declared fact
    return values


def _signature(node: ast.ClassDef, path: Path) -> dict[str, tuple[str, Any]]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = item.args
            if len(arguments.args) > 1:
                name = arguments.args[1].arg
                raise UserError(f"{path}:{item.lineno}: {node.name}: argument {name!r} must stand behind a '*'")
            result: dict[str, tuple[str, Any]] = {}
            for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
                annotation = ast.unparse(arg.annotation) if arg.annotation else "Any"
                try:
                    result[arg.arg] = (annotation, REQUIRED if default is None else ast.literal_eval(default))
                except ValueError:
                    raise UserError(
                        f"{path}:{item.lineno}: {node.name}: the default of {arg.arg!r} must be a plain literal; "
                        "it is read without running the file"
                    ) from None
            return result
    return {}
