"""The chapters, notebooks/NN_verb_object.ipynb, and the parameters they are run with.

A profile, notebooks/params/<profile>.yaml, maps a chapter to the parameters it changes:

    02_train_fashion_triplet:
      epochs: 15
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from rectrio_lib.chapters import record
from rectrio_lib.core.errors import ArgumentError, DataError, MissingArtefactError
from rectrio_lib.core.tables import shortened
from rectrio_lib.core.workspace import Workspace

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
    """Return the committed notebooks/NN_*.ipynb in order.

    Raises:
        MissingArtefactError: if there is none, as outside of a checkout.
    """
    folder = Workspace().root / "notebooks"
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise MissingArtefactError(
            f"{folder} holds no chapters: they do not come with the installed package. Clone the project and run this "
            "inside the checkout."
        )
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
    chosen = [p for n, p in paths.items() if (not only or n in only) and (not start or n >= start)]
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
    notebook = nbformat.read(path, as_version=4)
    tagged = [c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ArgumentError(f"{path.name} has {len(tagged)} cells tagged `parameters`: it needs exactly one.")
    try:
        parameters = dict(map(_assignment, ast.parse(tagged[0]).body))
    except (SyntaxError, ValueError) as error:
        raise ArgumentError(
            f"{path.name}: its parameters cell must hold only `name = literal` lines: {error}."
        ) from error
    return Chapter(path, record.title_of(notebook) or path.stem, parameters)


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            try:
                return name, ast.literal_eval(value)
            except ValueError:
                pass
    raise ArgumentError(f"line {statement.lineno} is `{ast.unparse(statement)}`")


def parse_overrides(pairs: Iterable[str]) -> dict[str, str]:
    """Take "name=value" pairs apart; `choose_parameters` gives each value the type of the committed one.

    Raises:
        ArgumentError: if there is no name or no equals sign.
    """
    overrides = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise ArgumentError(f"{shortened(pair)!r} should be `name=value`.")
        overrides[name] = value
    return overrides


def read_profile(name: str | None) -> dict[str, dict[str, Any]]:
    """Return {chapter: {parameter: value}} of notebooks/params/<name>.yaml; none and "quick" change nothing.

    Raises:
        ArgumentError: if there is no such profile, or it names an unknown chapter.
        DataError: if the file is not YAML.
    """
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
    stems = {path.stem for path in chapter_paths()}
    if not isinstance(profile, dict) or not all(isinstance(v, dict) for v in profile.values()):
        raise ArgumentError(f"{name}.yaml must map each chapter to its parameters, `chapter: {{name: value}}`.")
    if set(profile) - stems:
        raise ArgumentError(f"{name}.yaml names chapters that do not exist: {', '.join(sorted(set(profile) - stems))}.")
    return profile


def choose_parameters(
    chapters: Sequence[Chapter], profile: str | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Decide what each chapter's parameters become.

    Args:
        chapters: the chapters to run.
        profile: name of a profile, or none for the committed parameters.
        overrides: {parameter: value}, for every chapter that knows it; goes before the profile. A text stands for a
            literal such as `3`, `true` or `["hnsw"]` where the committed value is not a text.

    Returns:
        {chapter: {parameter: value}}, only the parameters that change.

    Raises:
        ArgumentError: if a parameter is unknown, or a value has another type than the committed one.
    """
    overrides = overrides or {}
    by_chapter = read_profile(profile)
    known = {name for chapter in chapters for name in chapter.parameters}
    _refuse(set(overrides) - known, "every chapter to run", chapters)
    chosen = {}
    for chapter in chapters:
        wanted = by_chapter.get(chapter.name, {})
        _refuse(set(wanted) - set(chapter.parameters), chapter.name, [chapter])
        wanted = {**wanted, **{k: v for k, v in overrides.items() if k in chapter.parameters}}
        chosen[chapter.name] = {k: _fit(k, v, chapter.parameters[k]) for k, v in wanted.items()}
    return chosen


def _refuse(unknown: set[str], where: str, chapters: Sequence[Chapter]) -> None:
    if unknown:
        known = "; ".join(f"{c.name} knows {', '.join(c.parameters)}" for c in chapters)
        raise ArgumentError(f"Parameter {', '.join(sorted(unknown))} is unknown to {where}: {known}.")


def _fit(name: str, value: Any, default: Any) -> Any:
    """Give a value the type of the committed one, or refuse it."""
    wanted = list if isinstance(default, tuple) else type(default)
    fitted = value if wanted is str else _literal(value)
    if wanted is float and type(fitted) is int:
        fitted = float(fitted)
    if (default is not None and type(fitted) is not wanted) or fitted in (math.inf, -math.inf):
        known = f"{wanted.__name__} values such as {default!r}"
        raise ArgumentError(f"Parameter {name} takes {known}, not {shortened(repr(value))}.")
    return fitted


def _literal(value: Any) -> Any:
    """Read a text as the Python or JSON literal that it is; anything else is returned."""
    if not isinstance(value, str):
        return value
    try:
        return JSON[value] if value in JSON else ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
