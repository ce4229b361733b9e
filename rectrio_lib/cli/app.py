"""The `rectrio` command: a thin skin over the library."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# Nothing heavy up here: `rectrio --help` answers at once because each command imports what it needs.
from rectrio_lib import __version__
from rectrio_lib.cli import collections
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace

EXPORT_IMAGES = 512  # taken at random from the folder to compare an export with its encoder


class OneSentence(TyperGroup):
    """Tells known errors in one line; RECTRIO_DEBUG=1 shows where they come from."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("rectrio: stopped by Ctrl-C; what finished before is kept.", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if os.environ.get("RECTRIO_DEBUG") or not _is_known(error):
                raise
            typer.echo(f"rectrio: {error}", err=True)
            raise typer.Exit(1) from None


def _is_known(error: Exception) -> bool:
    from rectrio_lib.core.errors import RectrioError

    return isinstance(error, RectrioError)


app = typer.Typer(cls=OneSentence, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class _Echo(logging.Handler):
    """Shows what the library logs on standard error, so that standard output holds results alone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        typer.echo(record.getMessage(), err=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rectrio {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop."),
    ] = False,
) -> None:
    """Find pictures that look alike: in any folder, or chapter by chapter."""
    log = logging.getLogger("rectrio_lib")
    if not log.handlers:
        log.addHandler(_Echo())
        log.setLevel(logging.INFO)


@app.command()
def run(
    only: Annotated[list[str] | None, typer.Option("--only", help="A chapter number; repeat for more.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="The chapter number to start from.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="A file of notebooks/params, such as full; without, the quick parameters."),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A parameter; repeat for more.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Your own pictures: check, train if in class folders, index, report."),
    ] = None,
    name: Annotated[str, typer.Option(help="With --images: what to call them; else as the folder is called.")] = "",
) -> None:
    """Run the chapters in order with papermill, or go through a folder of your own pictures."""
    if images is not None:
        if only or start or profile:
            raise ArgumentError("--images goes with -p and --name alone: --only, --from and --profile choose chapters.")
        return collections.run_images(images, name, parameter or [])
    if name:
        raise ArgumentError(f"--name {name} goes with --images FOLDER alone.")
    from rectrio_lib.chapters import chapter, results, runner

    chosen = chapter.select_chapters(only or (), start)
    entries = runner.run_chapters(chosen, profile, chapter.parse_overrides(parameter or ()))
    outputs = Workspace().outputs
    typer.echo(f"\n{results.results_table(entries)}\n")
    typer.echo(f"Executed notebooks  {outputs / 'notebooks' / 'index.html'}")
    if (outputs / "figures").is_dir():
        typer.echo(f"Figures             {outputs / 'figures'}")
    typer.echo(f"Results             {outputs / 'results.json'}")


for command in (collections.index, collections.search, collections.embed, collections.info):
    app.command()(command)


@app.command()
def export(
    encoder: Annotated[str, typer.Argument(help="An encoder below outputs/encoders.", show_default=False)],
    folder: collections.Folder,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    texts: Annotated[
        Path | None, typer.Option(help="Descriptions, one a line, to compare a text tower on.", show_default=False)
    ] = None,
) -> None:
    """Export an encoder to OpenVINO and compare it with torch on a folder of pictures."""
    from rectrio_lib.core import tables
    from rectrio_lib.data import image_files
    from rectrio_lib.encoders import openvino, registry

    lines = texts.read_text(encoding="utf-8").split("\n") if texts else []
    descriptions = [line for line in lines if line.strip()]
    size, channels = (registry.encoder_card(encoder)["preprocessing"][key] for key in ("size", "channels"))
    paths = image_files.list_images(folder)["path"].sample(frac=1, random_state=0)[:EXPORT_IMAGES]
    read = image_files.read_ahead(folder, paths, size, channels, (), 32)
    images = [file.pixels for file in read if file.pixels is not None]
    with contextlib.redirect_stdout(sys.stderr):
        report = openvino.export_encoder(encoder, images, descriptions, precision)
    typer.echo(tables.plain_table(report.to_dict("records")))
    typer.echo(f"Export     {openvino.exported_folder(encoder, precision)}")


@app.command()
def demo() -> None:
    """Look at a few product photographs (or drawings) without training: a page of questions and answers."""
    from rectrio_lib.report.demo import NAME, run_demo

    page = run_demo()
    typer.echo(f"Page       {page}")
    typer.echo(f"Next       rectrio search PICTURE --index {NAME} --show answers.png")


@app.command()
def publish(name: Annotated[str, typer.Argument(help="The profile whose results to publish.")]) -> None:
    """Copy the results of a profile to outputs/published, and write the page of tables there."""
    from rectrio_lib.chapters import publish as publish_module

    typer.echo(publish_module.publish(name))


@app.command("clean-notebooks")
def clean_notebooks() -> None:
    """Bring the committed notebooks into their committed form.

    Checked outputs are taken from the last run with the committed parameters: run the chapter first.
    """
    from rectrio_lib.chapters import chapter, clean

    paths = chapter.chapter_paths()
    for path in paths:
        typer.echo(f"{'cleaned  ' if clean.clean(path) else 'unchanged'}  {path.name}")
    empty = [path.stem for path in paths if clean.checked_without_output(path)]
    if empty:
        raise ArgumentError(
            f"{', '.join(empty)}: checked cells have no output to compare with. "
            f"Run `rectrio run --only {empty[0][:2]}`, then clean again."
        )
