"""The chapters, notebooks/NN_verb_object.ipynb, and the parameters they are run with.

A profile, notebooks/params/<profile>.yaml, maps a chapter to the parameters it changes:

    02_train_fashion_triplet:
      epochs: 15
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rectrio_lib.chapters import record, telling
from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError
from rectrio_lib.core.tables import shortened
from rectrio_lib.core.workspace import Workspace, quiet

JSON = {"true": True, "false": False, "null": None}  # the JSON literals that are not Python's


@dataclass(frozen=True)
class Chapter:
    """A numbered notebook.

    Attributes:
        path: the committed notebook.
        title: its first heading.
        parameters: the committed (quick) value of each parameter.
    """

    path: Path
    title: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """Such as "02_train_fashion_triplet"."""
        return self.path.stem


def chapter_paths() -> list[Path]:
    """Return the committed notebooks/NN_*.ipynb in order; refuse if there is none, as outside of a checkout."""
    folder = Workspace().root / "notebooks"
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        problem = "they do not come with the installed package. Clone the project and run this inside the checkout."
        raise MissingArtefactError(f"{folder} holds no chapters: {problem}")
    return paths


def select_chapters(only: Sequence[str] = (), start: str | None = None) -> list[Chapter]:
    """Read the chapters to run.

    Args:
        only: chapter numbers, such as "02"; empty means all.
        start: the number of the first one to run.

    Raises:
        ArgumentError: if a number is unknown, or a chapter's parameters cell is not as `read_chapter` wants it.
    """
    paths = {path.stem[:2]: path for path in chapter_paths()}
    only, start = [n.zfill(2) for n in only], start and start.zfill(2)
    unknown = sorted({*only, *([start] if start else [])} - set(paths))
    if unknown:
        raise ArgumentError(f"There is no chapter {', '.join(unknown)}: there are {', '.join(paths)}.")
    chosen = [p for n, p in paths.items() if (not only or n in only) and n >= (start or "")]
    if not chosen:
        raise ArgumentError(
            f"No chapter is both among {', '.join(only)} and from {start} on: give only one of the two."
        )
    return [read_chapter(path) for path in chosen]


def read_chapter(path: Path) -> Chapter:
    """Read a chapter's title and parameters without running it.

    Raises:
        ArgumentError: if not exactly one cell is tagged `parameters`, or it holds more than `name = literal` lines.
    """
    import nbformat  # takes a second, and chapters need nothing else of this file than `use_profile`

    notebook = nbformat.read(path, as_version=4)
    tagged = [c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ArgumentError(f"{path.name} has {len(tagged)} cells tagged `parameters`: it needs exactly one.")
    try:
        parameters = dict(map(_assignment, ast.parse(tagged[0]).body))
    except (SyntaxError, ValueError) as error:
        problem = f"its parameters cell must hold only `name = literal` lines: {error}."
        raise ArgumentError(f"{path.name}: {problem}") from error
    return Chapter(path, record.title_of(notebook) or path.stem, parameters)


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            with suppress(ValueError):
                return name, ast.literal_eval(value)
    raise ArgumentError(f"line {statement.lineno} is `{ast.unparse(statement)}`")


def parse_overrides(pairs: Iterable[str]) -> dict[str, str]:
    """Take "name=value" pairs apart; `choose_parameters` gives each value the type of the committed one."""
    overrides = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise ArgumentError(f"{shortened(pair)!r} should be `name=value`.")
        overrides[name] = value
    return overrides


def read_profile(name: str | None) -> dict[str, dict[str, Any]]:
    """Return {chapter: {parameter: value}} of notebooks/params/<name>.yaml; none and "quick" change nothing."""
    if name in (None, record.QUICK):
        return {}
    folder = Workspace().root / "notebooks" / "params"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ArgumentError(f"There is no profile {name!r}: there are {', '.join([record.QUICK, *known])}.")
    try:
        profile = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{folder / name}.yaml cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(profile, dict) or not all(isinstance(v, dict) for v in profile.values()):
        raise ArgumentError(f"{name}.yaml must map each chapter to its parameters, `chapter: {{name: value}}`.")
    if unknown := set(profile) - {path.stem for path in chapter_paths()}:
        raise ArgumentError(f"{name}.yaml names chapters that do not exist: {', '.join(sorted(unknown))}.")
    return profile


def choose_parameters(
    chapters: Sequence[Chapter], profile: str | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Decide what each chapter's parameters become.

    Args:
        chapters: the chapters to run.
        profile: name of a profile, or none for the committed parameters.
        overrides: {parameter: value} before the profile, as texts such as `3`, `true` or `["hnsw"]` or as they are.

    Returns:
        {chapter: {parameter: value}}, only the parameters that change.

    Raises:
        ArgumentError: if a parameter is unknown, or a value has another type than the committed one.
    """
    overrides, by_chapter, chosen = overrides or {}, read_profile(profile), {}
    _refuse(set(overrides).difference(*(c.parameters for c in chapters)), "every chapter to run", chapters)
    for chapter in chapters:
        wanted = by_chapter.get(chapter.name, {})
        _refuse(set(wanted) - set(chapter.parameters), chapter.name, [chapter])
        wanted = {**wanted, **{k: v for k, v in overrides.items() if k in chapter.parameters}}
        chosen[chapter.name] = {k: _fit(k, v, chapter.parameters[k]) for k, v in wanted.items()}
    return chosen


def use_profile(name: str, number: str, names: dict[str, Any]) -> None:
    """Give the parameters of a chapter that a person has open the values of a profile, and say which.

    What was changed by hand stays. Under papermill, which sets parameters itself, nothing happens.

    Args:
        name: a profile; "quick" is the committed values.
        number: of the chapter, such as "02".
        names: the notebook's `globals()`, after its parameters cell.
    """
    if name == record.QUICK or quiet():
        return
    (chapter,) = select_chapters([number])
    chosen = choose_parameters([chapter], name)[chapter.name]
    changed = {k: v for k, v in chosen.items() if names.get(k) == chapter.parameters[k]}
    names.update(changed)
    telling.say(f"Profile *{name}*: {', '.join(f'`{k} = {v!r}`' for k, v in changed.items()) or 'nothing changes'}.")


def _refuse(unknown: set[str], where: str, chapters: Sequence[Chapter]) -> None:
    if unknown:
        known = "; ".join(f"{c.name} knows {', '.join(c.parameters)}" for c in chapters)
        raise ArgumentError(f"Parameter {', '.join(sorted(unknown))} is unknown to {where}: {known}.")


def _fit(name: str, value: Any, default: Any) -> Any:
    """Give a value the type of the committed one, or refuse it."""
    wanted, fitted = list if isinstance(default, tuple) else type(default), value
    if isinstance(value, str) and wanted is not str:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            fitted = JSON[value] if value in JSON else ast.literal_eval(value)
    if wanted is float and type(fitted) is int:
        fitted = float(fitted)
    if (default is not None and type(fitted) is not wanted) or fitted in (math.inf, -math.inf):
        known = f"{wanted.__name__} values such as {default!r}"
        raise ArgumentError(f"Parameter {name} takes {known}, not {shortened(repr(value))}.")
    return fitted
