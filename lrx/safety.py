"""What a configuration may ask for: nothing in it runs code, whoever wrote it.

Hydra instantiates by import path (``_target_``, logging factories) before a job begins, and the blocklist it has for
that is by its authors' word no boundary. So everything that Hydra composes is checked right after composition, before
anything is made of it: ``guarded()`` puts the check there. Refused, by name and in one line:

* a ``_target_`` that is not on the list below, or stands where lrx instantiates nothing;
* factories, classes and object references in Hydra's logging sections, beyond plain handlers and formatters;
* ``hydra.callbacks`` and ``hydra.job.env_set`` (a variable such as LD_PRELOAD is code for a child process);
* resolvers that make new configuration out of text (``oc.create``, ``oc.decode``) or that are not known here, and
  ``oc.env`` anywhere but in the paths of ``ENV_KEYS``: what is resolved ends up in the run's record;
* search paths that import a package (``pkg://``), names of options that climb out of their folder (``..``), YAML tags
  that make objects, and ``--experimental-rerun``, which reads a pickle.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lrx.errors import UserError, did_you_mean

# A class right below one of these may be named. No deeper name: a.b.os.system is an attribute of some a.b, too.
PREFIXES = (
    "lrx.callbacks.",
    "pytorch_lightning.callbacks.",
    "lightning.pytorch.callbacks.",
    "pytorch_lightning.loggers.",
    "torch.optim.",
    "torch.nn.",
)
# What calls functions it is given, or takes what it is given for code.
TAKE_CODE = ("LambdaCallback", "LambdaLR", "MultiplicativeLR")
# What callbacks.extra may name: those that only look. The others change what is trained or when it ends, and callbacks
# do not count towards a run's identity; checkpoints, progress and early stopping are lrx's own.
OBSERVERS = ("DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary", "RichModelSummary")
PLUGIN_PREFIXES = ("hydra._internal.core_plugins.", "hydra_plugins.")  # classes that Hydra has found installed
HANDLERS = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler")
FORMATTERS = ("logging.Formatter", "colorlog.ColoredFormatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_FOLDER = "${hydra.runtime.output_dir}/"
RESOLVERS = (
    *("hydra", "lrx_root", "lrx_hydra", "now", "python_version"),
    *("oc.env", "oc.select", "oc.dict.keys", "oc.dict.values", "oc.deprecated"),
)
# Where an environment variable may be read: folders, which differ from machine to machine and are no secrets.
ENV_KEYS = ("paths.root", "task.data_dir", "model.path", "hydra.run.dir", "hydra.sweep.dir")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|PRIVATE", re.IGNORECASE)


def check(config: Any) -> None:
    """Refuse what could run code in a composed configuration, Hydra's own section included.

    ``config``: an OmegaConf node or plain containers; interpolations are looked at, not resolved. Raises ``UserError``
    with the key.
    """
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    if not isinstance(plain, Mapping):
        return
    hydra = plain.get("hydra")
    if isinstance(hydra, Mapping):
        _check_hydra(hydra)
    callbacks = plain.get("callbacks")
    extra = callbacks.get("extra") if isinstance(callbacks, Mapping) else None
    for name, section in extra.items() if isinstance(extra, Mapping) else ():
        if isinstance(section, Mapping):  # what it is instead, the schema says
            check_extra(f"callbacks.extra.{name}", section)
    for path, value in _walk(plain):
        key = ".".join(path)
        if path[-1] == "_target_":
            _check_place(path, value)
        if isinstance(value, str) and key != "hydra.job.override_dirname":  # the same text again
            repeated = path[:2] == ("hydra", "overrides")  # the command line, as text
            check_text(value.partition("=")[0].lstrip("+") if repeated else key, value)


def check_target(key: str, value: Any) -> str:
    """The import path ``value`` if it is on the list. Raises ``UserError`` with ``key``."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", value):
        raise UserError(f"{key}: {_short(value)} is no import path written out; nothing else is accepted")
    prefix, _, name = value.rpartition(".")
    listed = f"{prefix}." in PREFIXES and name[0].isupper() and name not in TAKE_CODE
    if not listed:
        raise UserError(f"{key}={_short(value)}: refused; lrx makes only classes of {', '.join(PREFIXES)}")
    return value


def check_extra(key: str, section: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(class name, arguments) of a section of ``callbacks.extra``. Raises ``UserError`` for what is refused."""
    target = check_target(f"{key}._target_", section.get("_target_"))
    arguments = check_arguments(key, section)
    name = target.rpartition(".")[2]
    if name not in OBSERVERS or "callbacks" not in target:
        raise UserError(f"{key}._target_={target}: refused, it does not only look; {did_you_mean(name, OBSERVERS)}")
    return name, arguments


def check_arguments(key: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments beside a ``_target_``: plain data, without Hydra's ``_args_``, ``_partial_``, ..."""
    arguments = {name: value for name, value in section.items() if name != "_target_"}
    for path, value in _walk(arguments):
        if re.fullmatch(r"_\w+_", path[-1]):
            raise UserError(f"{'.'.join([key, *path])}: refused; beside _target_ stand keyword arguments of plain data")
        if value is not None and not isinstance(value, str | int | float | bool | Mapping | Sequence):
            raise UserError(f"{'.'.join([key, *path])}: {_short(value)} is no plain data")
    return arguments


def check_text(key: str, text: str) -> None:
    """Refuse resolvers in ``text`` that are not known or not allowed at ``key``."""
    if "${" not in text:
        return
    for name, argument in _resolvers(key, text):
        if name not in RESOLVERS:
            raise UserError(f"{key}={_short(text)}: the resolver {name!r} is refused; known: {', '.join(RESOLVERS)}")
        if name != "oc.env":
            continue
        if key not in ENV_KEYS:
            raise UserError(f"{key}: ${{oc.env:...}} is refused here, the value would end up in the record; "
                            f"it is accepted in {', '.join(ENV_KEYS)}")  # fmt: skip
        if not re.fullmatch(r"\w+(,.*)?", argument) or SECRET.search(argument.split(",")[0]):
            raise UserError(f"{key}: ${{oc.env:{_short(argument)}}} is refused: it may hold a secret")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While this is open, whatever Hydra composes is checked before Hydra or a job sees it; re-entrant.

    Wrapped are the one function through which runs, multiruns, their jobs and the compose API compose, the lookup of a
    config file by its name, the source that imports packages, and the rerun of a pickled configuration.
    """
    import importlib

    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource

    main = importlib.import_module("hydra.main")  # as an attribute, ``hydra.main`` is the decorator
    load, find = ConfigLoaderImpl.load_configuration, ConfigRepository._find_object_source
    source = ImportlibResourcesConfigSource.__init__
    if hasattr(load, "_checked_by_lrx"):
        yield
        return

    def load_checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        from yaml import YAMLError

        try:
            config = load(self, *args, **kwargs)
        except YAMLError as error:  # broken, or with a tag that would make an object
            raise UserError(f"a configuration file cannot be read: {' '.join(str(error).split())[:300]}") from None
        check(config)
        return config

    def find_inside(self: Any, config_path: str, *args: Any, **kwargs: Any) -> Any:
        if ".." in re.split(r"[/\\]", config_path) or not config_path.isprintable():
            raise UserError(f"{_short(config_path)}: no such option; a name must not lead out of its folder")
        return find(self, config_path, *args, **kwargs)

    def source_of_plugins(self: Any, provider: str, path: str) -> None:
        if provider in ("main", "command-line") or provider.startswith("hydra.searchpath"):
            raise UserError(
                f"{_short(path)}: a package is imported to read it, which runs its code; give file://FOLDER"
            )
        source(self, provider, path)

    def no_rerun(file_path: str, overrides: Any) -> Any:
        raise UserError(f"--experimental-rerun={_short(file_path)}: refused, a pickle runs code when it is read")

    load_checked._checked_by_lrx = True  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (ConfigLoaderImpl, "load_configuration", load_checked),
            (ConfigRepository, "_find_object_source", find_inside),
            (ImportlibResourcesConfigSource, "__init__", source_of_plugins),
            (main, "_get_rerun_conf", no_rerun),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def _check_place(path: tuple[str, ...], value: Any) -> None:
    key = ".".join(path)
    if path[:1] == ("hydra",):
        plugin = path in (("hydra", "launcher", "_target_"), ("hydra", "sweeper", "_target_"))
        if not plugin or not isinstance(value, str) or not value.startswith(PLUGIN_PREFIXES):
            raise UserError(f"{key}={_short(value)}: refused; only installed launchers and sweepers are accepted here")
        return
    check_target(key, value)
    if path[:2] != ("callbacks", "extra") or len(path) != 4:
        raise UserError(f"{key}={_short(value)}: refused; lrx makes nothing there, only of callbacks.extra.NAME")


def _check_hydra(hydra: Mapping[str, Any]) -> None:
    if hydra.get("callbacks"):
        raise UserError("hydra.callbacks: refused, they run before a job is checked; callbacks.extra adds callbacks")
    job = hydra.get("job")
    if isinstance(job, Mapping) and job.get("env_set"):
        raise UserError("hydra.job.env_set: refused; set environment variables in the shell that starts the run")
    for name in ("hydra_logging", "job_logging"):
        _check_logging(f"hydra.{name}", hydra.get(name))
    for name in ("launcher", "sweeper"):  # instantiated: an interpolation could bring a whole section along
        if isinstance(hydra.get(name), str):
            raise UserError(f"hydra.{name}={_short(hydra[name])}: refused; choose one with hydra/{name}=NAME")


def _check_logging(key: str, section: Any) -> None:
    """Of ``logging.config``'s language: handlers and formatters of known classes, and the standard streams."""
    if section is None:
        return
    if not isinstance(section, Mapping):
        raise UserError(f"{key}={_short(section)}: refused; logging is configured by a mapping")
    for path, value in _walk(section):
        where = ".".join([key, *path])
        accepted = FORMATTERS if path[0] == "formatters" else HANDLERS if path[0] == "handlers" else ()
        if path[-1] in ("()", "class", "factory", "listener", "queue", "."):
            if value not in accepted:
                raise UserError(f"{where}={_short(value)}: refused; accepted: {', '.join(accepted) or 'nothing'}")
        elif path[-1] == "filename":
            inside = isinstance(value, str) and value.startswith(LOG_FOLDER) and ".." not in value
            if not inside or not str(value).endswith(".log"):
                raise UserError(f"{where}={_short(value)}: refused; a log file is {LOG_FOLDER}NAME.log")
        elif path[-1] == "style" and value == "{":
            raise UserError(f"{where}={value}: refused; such formats reach into objects")
        elif isinstance(value, str) and re.match(r"\w+://", value) and value not in STREAMS:
            raise UserError(f"{where}={_short(value)}: refused; accepted: {', '.join(STREAMS)}")
        elif isinstance(value, str) and "${" in value:
            raise UserError(f"{where}={_short(value)}: refused; logging sections hold no interpolations")


def _walk(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every (path, value) below ``node``, inner nodes too."""
    items: Any = ()
    if isinstance(node, Mapping):
        items = ((str(key), value) for key, value in node.items())
    elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
        items = ((str(index), value) for index, value in enumerate(node))
    for key, value in items:
        here = (*path, key)
        yield here, value
        yield from _walk(value, here)


def _resolvers(key: str, text: str) -> list[tuple[str, str]]:
    """(name, argument text) of each resolver call in ``text``, nested ones too, as OmegaConf's own grammar reads it."""
    from omegaconf import grammar_parser
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_visitor import OmegaConfGrammarParser as Grammar

    simple = r"(?:[^$]|\$(?!\{)|\$\{[\w.\[\]]*\})*"  # nothing but plain references to other keys
    if re.fullmatch(simple, text):
        return []
    try:
        tree = grammar_parser.parse(text)
    except GrammarParseError as error:
        raise UserError(f"{key}={_short(text)}: cannot be read: {' '.join(str(error).split())[:120]}") from None
    found: list[tuple[str, str]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        pending.extend(getattr(node, "children", None) or [])
        if isinstance(node, Grammar.InterpolationResolverContext):
            # A name put together by another interpolation keeps its text "${...}" here and is on no list.
            arguments = node.sequence()
            found.append((node.resolverName().getText(), arguments.getText() if arguments else ""))
    return found


def _short(value: Any) -> str:
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else text[:77] + "..."
