"""Running chapters strictly with papermill: what would pass silently there is an error here."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat

from rectrio_lib.chapters import pages, record, results
from rectrio_lib.chapters.chapter import Chapter, chapter_paths, choose_parameters
from rectrio_lib.core import errors
from rectrio_lib.core.errors import ChapterError, MissingPackageError
from rectrio_lib.core.workspace import Workspace, quiet

LOG = logging.getLogger(__name__)


TRAINS = re.compile(r"\b(rt\.fit|train_head|train_blocks|fine_tune)\(")  # what a chapter that trains calls


def run_chapters(
    chapters: Sequence[Chapter],
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    processes: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Run chapters in order; executed copies go to outputs/notebooks, results to outputs/results.json and runs/.

    Args:
        chapters: what `chapter.select_chapters` returns.
        profile: see `chapter.choose_parameters`.
        overrides: see `chapter.choose_parameters`.
        processes: that share each training, see `loop.fit`; None leaves it to `RECTRIO_PROCESSES`.

    Returns:
        {chapter: entry} as in results.json.

    Raises:
        MissingPackageError: if papermill or what it needs is not installed.
        ArgumentError: if a profile or parameter is unknown, there are too few cores or GPUs, or several processes are
            asked for and no chapter trains; before anything runs.
        MissingArtefactError: if a chapter needs what another one makes.
        ChapterError: if a chapter fails or does not record.
    """
    missing = [name for name in ("ipykernel", "nbconvert", "papermill") if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"Running chapters needs {', '.join(missing)}: pip install 'rectrio[lab]'.")
    changes = choose_parameters(chapters, profile, overrides)
    entries, settings = {}, {"RECTRIO_QUIET": "1"}
    if processes is not None:
        _check_processes(chapters, processes)
        settings["RECTRIO_PROCESSES"] = str(processes)
    for chapter in chapters:
        executed = _execute(chapter, changes[chapter.name], settings)
        records = record.recorded(executed)
        for warning in _warnings(executed):
            LOG.warning("%s  %s", chapter.name[:2], warning)
        if len(records) != 1:
            raise ChapterError(
                f"Chapter {chapter.name} called record() {len(records)} times: its last cell must, once."
            )
        entry = {
            **records[0],
            "profile": profile or record.QUICK,
            "parameters": {**chapter.parameters, **changes[chapter.name]},
            "duration_seconds": round(executed.metadata.papermill.duration, 1),
            **_commit(chapter.path.parent),
        }
        entry["values"] = entry.pop("values")  # last, where it is read best
        results.add_result(chapter.name, entry)
        entries[chapter.name] = entry
        LOG.info("%s  %-60s %7.1f s", chapter.name[:2], chapter.title, entry["duration_seconds"])
    return entries


def _check_processes(chapters: Sequence[Chapter], processes: int) -> None:
    from rectrio_lib.training.distributed.processes import check

    check(processes)
    idle = [c.name[:2] for c in chapters if not TRAINS.search(c.path.read_text(encoding="utf-8"))]
    if idle and processes > 1:
        told = f"{', '.join(idle)} {'trains' if len(idle) == 1 else 'train'} nothing"
        if len(idle) == len(chapters):
            able = [path.stem[:2] for path in chapter_paths() if TRAINS.search(path.read_text(encoding="utf-8"))]
            raise errors.ArgumentError(f"Chapter {told} that several processes could share: {', '.join(able)} do.")
        LOG.info("Chapter %s: one process there.", told)


def _warnings(executed: nbformat.NotebookNode) -> list[str]:
    """Return what a chapter warned of that its reader must know, each once: `loop.CollapseWarning`."""
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.get("name") == "stderr")
    return list(dict.fromkeys(re.findall(r"CollapseWarning: (.*)", text)))


def _commit(folder: Path) -> dict[str, str]:
    """Return {"commit": ...} of the checkout around a folder, marked as dirty if files differ; {} if git knows none."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": done.stdout.strip()} if done.returncode == 0 and done.stdout.strip() else {}


def _execute(chapter: Chapter, changes: dict[str, Any], settings: dict[str, str]) -> nbformat.NotebookNode:
    """Run one chapter in a kernel of this very interpreter, with some environment, and render what came of it."""
    import papermill  # slow to import, and not needed by `record`
    from nbclient.exceptions import DeadKernelError

    target = Workspace().outputs / "notebooks" / chapter.path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    bar = {"desc": chapter.name, "leave": False}
    try:
        return papermill.execute_notebook(
            _literally(chapter.path),
            _literally(target),
            changes,
            cwd=chapter.path.parent,
            kernel_name="python3",
            language="python",
            kernel_manager_class=_own_kernel(settings),
            shutdown_kernel="immediate",  # artefacts are on disk: skip the graceful shutdown
            extra_arguments=["--log-level=CRITICAL"],
            progress_bar=bar if sys.stderr.isatty() and not quiet() else False,
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == errors.MissingArtefactError.__name__:
            raise errors.MissingArtefactError(error.evalue) from None
        reason = f"{error.ename}: {(error.evalue.strip() or '(no message)').splitlines()[0]}"
        raise ChapterError(f"Chapter {chapter.name}, cell [{error.exec_count}]: {reason} (see {target})") from None
    except DeadKernelError:
        raise ChapterError(f"Chapter {chapter.name}: its kernel died, perhaps out of memory (see {target})") from None
    finally:
        if target.exists():
            pages.write_pages(target)


def _literally(path: Path) -> str:
    """Return a path for papermill, which would fill in whatever stands between braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _own_kernel(settings: dict[str, str]) -> type:
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    class OwnKernel(AsyncKernelManager):
        """Starts this interpreter, whatever `python3` kernel the user has installed, with progress bars off."""

        def __init__(self, **options: Any) -> None:
            # With no folders to search, the native kernel is all that is left: sys.executable.
            super().__init__(**options, kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))

        def start_kernel(self, **options: Any) -> Any:
            return super().start_kernel(**options, env={**os.environ, **settings})

    return OwnKernel
