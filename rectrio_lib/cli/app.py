"""The `rectrio` command: a thin skin over the library."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# Nothing heavy up here: `rectrio --help` answers at once because each command imports what it needs.
from rectrio_lib.cli import collections, serve, taste
from rectrio_lib.cli.output import say
from rectrio_lib.core.errors import ArgumentError, RectrioError
from rectrio_lib.core.files import FULL
from rectrio_lib.core.workspace import Workspace

AWAY = ("OperationalError", "InterfaceError", "InternalError", "TimeoutError", "DatabaseError")  # not a fault of ours
WHICH = "it is where RECTRIO_DATABASE says, or else outputs/service.sqlite. Is it there, running and writable?"
EXPORT_IMAGES = 512  # taken at random from the folder to compare an export with its encoder


class OneSentence(TyperGroup):
    """Shows known errors in one line, with RECTRIO_DEBUG=1 their traceback too; others are bugs, to be reported."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("rectrio: stopped by Ctrl-C; what finished before is kept.", err=True)
            raise typer.Exit(130) from None
        except RectrioError as error:
            if os.environ.get("RECTRIO_DEBUG"):
                raise
            say(f"rectrio: {error}", err=True)
            raise typer.Exit(1) from None
        except Exception as error:
            if getattr(error, "errno", None) in FULL:
                where = f" ({error.filename})" if error.filename else ""
                kept = "make room, then call again; what finished before is kept."
                say(f"rectrio: {error.strerror}{where}: {kept}", err=True)
                raise typer.Exit(1) from None
            if type(error).__module__ == "sqlalchemy.exc" and type(error).__name__ in AWAY:
                if os.environ.get("RECTRIO_DEBUG"):
                    raise
                reason = " ".join(str(getattr(error, "orig", None) or error).split())
                say(f"rectrio: The database of the service cannot be used ({reason}): {WHICH}", err=True)
                raise typer.Exit(1) from None
            if type(error).__module__.partition(".")[0] not in ("click", "typer"):  # those end commands and show usage
                from importlib.metadata import metadata

                _, address = metadata("rectrio").get_all("Project-URL")[0].split(", ")
                say(f"rectrio: this is a bug; please report it with the lines below: {address}/issues", err=True)
            raise


app = typer.Typer(
    cls=OneSentence,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes a quarter of the time of --help
)


class _Echo(logging.Handler):  # standard output holds results alone
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), err=True)
        if record.exc_info and record.levelno >= logging.ERROR:
            say("".join(traceback.format_exception(*record.exc_info)), err=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        from rectrio_lib import __version__

        say(f"rectrio {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Find images that look alike: in any folder, or chapter by chapter."""
    log = logging.getLogger("rectrio_lib")
    if not log.handlers:
        log.addHandler(_Echo())
        log.setLevel(logging.INFO)


Parameters = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A parameter; repeat for more.")]


@app.command()
def run(
    only: Annotated[list[str] | None, typer.Option("--only", help="A chapter number; repeat for more.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="The chapter number to start from.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="A file of notebooks/params, such as full; by default the quick parameters.")
    ] = None,
    parameter: Parameters = None,
    processes: Annotated[
        int | None, typer.Option(help="Share each training among so many processes, at most one per core or GPU.")
    ] = None,
    images: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the chapters in order with papermill."""
    if images is not None:
        _moved(f"rectrio run --images {images}", f"rectrio build {collections.quoted(images)}")
    from rectrio_lib.chapters import chapter, results, runner

    chosen = chapter.select_chapters(only or (), start)
    entries = runner.run_chapters(chosen, profile, chapter.parse_overrides(parameter or ()), processes)
    outputs = Workspace().outputs
    say(f"\n{results.results_table(entries)}\n")
    say(f"Executed notebooks  {outputs / 'notebooks' / 'index.html'}")
    if (outputs / "figures").is_dir():
        say(f"Figures             {outputs / 'figures'}")
    say(f"Results             {outputs / 'results.json'}")


Run = Annotated[
    str,
    typer.Argument(
        help="How its name or hash in outputs/runs begins; or 02 for chapter 02's newest run, 02~1 for the one before.",
        show_default=False,
    ),
]


@app.command()
def compare(a: Run, b: Run) -> None:
    """Compare two runs of a chapter: parameters that differ, then figures, query by query where they were kept."""
    from rectrio_lib.chapters.compare import compare_runs

    say(compare_runs(a, b))


def _moved(old: str, new: str) -> None:
    say(f"rectrio: `{old}` is now `{new}`.", err=True)
    raise typer.Exit(2)


@app.command()
def build(
    folder: collections.Folder,
    name: collections.Name = "",
    parameter: Parameters = None,
    allow_random_weights: collections.AllowRandomWeights = False,
) -> None:
    """Take a folder of your own images: train if it has class folders, build an index, write a report."""
    from rectrio_lib.chapters import chapter, own_images

    page = own_images.run_folder(folder, name, chapter.parse_overrides(parameter or ()), allow_random_weights)
    say(f"Report     {page}")
    collections.say_next(page.parent.name)


app.command(cls=collections.RayAlone)(collections.index)
for command in (collections.embed, collections.search, collections.info):
    app.command()(command)
for command in (taste.recommend, taste.calibrate, taste.retrain, serve.serve, serve.reindex):
    app.command()(command)
app.add_typer(serve.keys, name="keys")


@app.command()
def demo() -> None:
    """Search a few product photographs (or drawings) without training: a page of queries and results."""
    from rectrio_lib.report.demo import NAME, run_demo

    say(f"Page       {run_demo()}")
    collections.say_next(NAME)


@app.command()
def export(
    encoder: Annotated[str, typer.Argument(help="An encoder below outputs/encoders.", show_default=False)],
    folder: collections.Folder,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    texts: Annotated[
        Path | None, typer.Option(help="Descriptions, one per line, to compare a text tower on.", show_default=False)
    ] = None,
) -> None:
    """Export an encoder to OpenVINO and compare it with torch on a folder of images."""
    from rectrio_lib.core import tables
    from rectrio_lib.data import image_files
    from rectrio_lib.data.places.place import place_of
    from rectrio_lib.encoders import openvino, registry

    lines = texts.read_text(encoding="utf-8").split("\n") if texts else []
    size, channels = (registry.encoder_card(encoder)["preprocessing"][key] for key in ("size", "channels"))
    place = place_of(folder)
    paths = place.list()["path"].sample(frac=1, random_state=0)[:EXPORT_IMAGES]
    read = image_files.read_ahead(place, paths, size, channels, (), 32)
    images = [file.pixels for file in read if file.pixels is not None]
    report = openvino.export_encoder(encoder, images, [line for line in lines if line.strip()], precision)
    say(tables.plain_table(report.to_dict("records")))
    say(f"Export     {openvino.exported_folder(encoder, precision)}")


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench() -> None:
    """Point to the chapter that measures speed."""
    _moved("rectrio bench", "rectrio run --only 10")


@app.command()
def publish(name: Annotated[str, typer.Argument(help="The profile whose results to publish.")]) -> None:
    """Copy the results of a profile to outputs/published, and write the page of tables there."""
    from rectrio_lib.chapters import publish as publish_module

    say(publish_module.publish(name))


@app.command("clean-notebooks")
def clean_notebooks() -> None:
    """Bring the committed notebooks into their committed form.

    Checked outputs are taken from the last run with the committed parameters: run the chapter first.
    """
    from rectrio_lib.chapters import chapter, clean

    paths = chapter.chapter_paths()
    for path in paths:
        say(f"{'cleaned  ' if clean.clean(path) else 'unchanged'}  {path.name}")
    empty = [path.stem for path in paths if clean.checked_without_output(path)]
    if empty:
        raise ArgumentError(
            f"{', '.join(empty)}: checked cells have no output to compare with. "
            f"Run `rectrio run --only {empty[0][:2]}`, then clean again."
        )
