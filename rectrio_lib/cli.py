"""The `rectrio` command: a thin skin over the library."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

# Nothing heavy up here: `rectrio --help` answers at once because each command imports what it needs.
from rectrio_lib import __version__, cli_search


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
    from rectrio_lib.running import ChapterError

    return isinstance(error, ValueError | OSError | ModuleNotFoundError | ChapterError)


app = typer.Typer(cls=OneSentence, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
bench = typer.Typer(no_args_is_help=True, help="Measure against the usual way, both run here and now.")
app.add_typer(bench, name="bench")


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
            raise ValueError("--images goes with -p and --name alone: --only, --from and --profile choose chapters.")
        return cli_search.run_images(images, name, parameter or [])
    if name:
        raise ValueError(f"--name {name} goes with --images FOLDER alone.")
    from rectrio_lib import chapters, reports, resources, running

    chosen = chapters.select_chapters(only or (), start)
    results = running.run_chapters(chosen, profile, chapters.parse_overrides(parameter or ()))
    outputs = resources.outputs_root()
    typer.echo(f"\n{reports.results_table(results)}\n")
    typer.echo(f"Executed notebooks  {outputs / 'notebooks' / 'index.html'}")
    if (outputs / "figures").is_dir():
        typer.echo(f"Figures             {outputs / 'figures'}")
    typer.echo(f"Results             {outputs / 'results.json'}")


for command in (cli_search.index, cli_search.search, cli_search.embed, cli_search.info):
    app.command()(command)


@app.command()
def export(
    encoder: Annotated[str, typer.Argument(help="An encoder below outputs/encoders.", show_default=False)],
    folder: cli_search.Folder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    texts: Annotated[
        Path | None, typer.Option(help="Descriptions, one a line, to compare a text tower on.", show_default=False)
    ] = None,
) -> None:
    """Export an encoder to OpenVINO and compare it with torch on a folder of pictures."""
    from rectrio_lib import export as exporting
    from rectrio_lib import reports

    lines = texts.read_text(encoding="utf-8").split("\n") if texts else []
    asked = [line for line in lines if line.strip()]
    with contextlib.redirect_stdout(sys.stderr):
        report = exporting.export_encoder(encoder, folder, asked, precision)
    typer.echo(reports.plain_table(report.to_dict("records")))
    typer.echo(f"Export     {exporting.exported_folder(encoder, precision)}")


@app.command()
def demo() -> None:
    """Look at a few product photographs (or drawings) without training: a page of questions and answers."""
    from rectrio_lib import demo as first_look

    page = first_look.run()
    typer.echo(f"Page       {page}")
    typer.echo(f"Next       rectrio search PICTURE --index {first_look.NAME} --show answers.png")


@app.command()
def publish(name: Annotated[str, typer.Argument(help="The profile whose results to publish.")]) -> None:
    """Copy results to outputs/published and write the README's tables from there."""
    from rectrio_lib import reports

    typer.echo(reports.publish(name))
    typer.echo(reports.update_readme())


@app.command("clean-notebooks")
def clean_notebooks() -> None:
    """Bring the committed notebooks into their committed form.

    Checked outputs are taken from the last run with the committed parameters: run the chapter first.
    """
    from rectrio_lib import chapters, notebooks

    paths = chapters.chapter_paths()
    for path in paths:
        typer.echo(f"{'cleaned  ' if notebooks.clean(path) else 'unchanged'}  {path.name}")
    empty = [path.stem for path in paths if notebooks.checked_without_output(path)]
    if empty:
        raise ValueError(
            f"{', '.join(empty)}: checked cells have no output to compare with. "
            f"Run `rectrio run --only {empty[0][:2]}`, then clean again."
        )


@bench.command("train")
def bench_train(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Seconds to a given recall, against random triplets through a DataLoader."""
    from rectrio_lib import bench as measure

    with contextlib.redirect_stdout(sys.stderr):  # progress and remarks, so that --json prints nothing but JSON
        outcome = measure.bench_train()
    if as_json:
        typer.echo(json.dumps(outcome))
    else:
        measure.print_bench(outcome)


@bench.command("finetune")
def bench_finetune(
    backbone: Annotated[str, typer.Option(help="Family and network.")] = "clip:ViT-B/32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Pictures a second and peak memory of fine-tuning: precisions, with and without checkpointing."""
    from rectrio_lib import bench_finetune as measure

    outcome = measure.bench_finetune(backbone)
    if as_json:
        typer.echo(json.dumps(outcome))
    else:
        measure.print_finetune(outcome)


@bench.command("search")
def bench_search(
    count: Annotated[int, typer.Option(help="Vectors to search among.")] = 1_000_000,
    dim: Annotated[int, typer.Option(help="Their length.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Milliseconds of a query at equal recall, against bare FAISS, usearch and hnswlib; what asked recall is kept."""
    from rectrio_lib import bench_search as measure

    with contextlib.redirect_stdout(sys.stderr):
        outcome = measure.bench_search(count, dim)
    typer.echo(json.dumps(outcome)) if as_json else measure.print_search(outcome)


@bench.command("embed")
def bench_embed(
    backbone: Annotated[str, typer.Option(help="Family and network.")] = "clip:ViT-B/32",
    count: Annotated[int, typer.Option(help="Pictures to embed, at most.")] = 1024,
    folder: Annotated[Path | None, typer.Option(help="Where to take them from; without, they are generated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Pictures a second from disk to vectors, against the bare forward pass of the same network."""
    from rectrio_lib import bench_embed as measure

    with contextlib.redirect_stdout(sys.stderr):
        outcome = measure.bench_embed(backbone, count, folder)
    typer.echo(json.dumps(outcome)) if as_json else measure.print_embed(outcome)


@bench.command("openvino")
def bench_openvino(
    backbone: Annotated[str, typer.Option(help="Family and network.")] = "clip:ViT-B/32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Milliseconds of one picture and of 32 at once: torch against OpenVINO."""
    from rectrio_lib import bench_openvino as measure

    with contextlib.redirect_stdout(sys.stderr):
        outcome = measure.bench_openvino(backbone)
    typer.echo(json.dumps(outcome)) if as_json else measure.print_openvino(outcome)


if __name__ == "__main__":
    app()
