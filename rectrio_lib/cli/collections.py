"""The commands about any folder of pictures: a thin skin over `galleries`, `report_pages` and `inventory`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rectrio_lib.core.errors import ArgumentError

if TYPE_CHECKING:  # imported by the commands that need them, see `cli`
    import pandas as pd

    from rectrio_lib.embeddings.embed import Report
    from rectrio_lib.search.collection import Collection
    from rectrio_lib.search.results import Results


Folder = Annotated[Path, typer.Argument(help="A folder of pictures, sorted into folders or not.", show_default=False)]
Name = Annotated[str, typer.Option(help="What to call it; without, as the folder is called.", show_default=False)]
Encoder = Annotated[str, typer.Option(help="An encoder below outputs/encoders.", show_default=False)]
Backbone = Annotated[
    str,
    typer.Option(
        help="A pretrained network instead, such as clip:ViT-B/32, which finds better and is slower than "
        "torchvision:squeezenet1_0, which is taken for a new index if nothing is said.",
        show_default=False,
    ),
]
RANDOM = "STAND-IN: the vectors come from random weights. What they find alike means nothing."


def embed(folder: Folder, name: Name = "", encoder: Encoder = "", backbone: Backbone = "") -> None:
    """Embed what is new in a folder of pictures."""
    from rectrio_lib.search import collection

    store, report = collection.embed(folder, _maker(encoder, backbone), name)
    _tell(report, store.folder)
    told = f". {RANDOM}" if store.card["stand_in"] else ""
    typer.echo(f"Vectors    {len(store):,} of length {store.card['dim']} in {store.folder}{told}")
    typer.echo(f"Next       rectrio index {_quoted(folder)}{_options(name=name, encoder=encoder, backbone=backbone)}")


def index(
    folder: Folder,
    name: Name = "",
    encoder: Encoder = "",
    backbone: Backbone = "",
    kind: Annotated[str, typer.Option(help="flat, hnsw, ivf, ivf-pq, ivf-sq8; auto: what suits best.")] = "auto",
    recall: Annotated[float, typer.Option(help="Share of the true ten neighbours that a search is to find.")] = 0.95,
) -> None:
    """Embed what is new in a folder of pictures, and build an index of it."""
    from rectrio_lib.embeddings.store import store_folder
    from rectrio_lib.search import collection

    gallery, report = collection.build(folder, _maker(encoder, backbone), name, kind, recall)
    _tell(report, store_folder(gallery.encoder, gallery.name))
    typer.echo(f"Encoder    {gallery.encoder}{f'. {RANDOM}' if gallery.stand_in else ''}")
    typer.echo(f"Index      {gallery.name}: {gallery.index.info()}")
    typer.echo(f"Next       rectrio search PICTURE --index {_quoted(gallery.name)} --show answers.png")


def search(
    pictures: Annotated[
        list[str] | None,
        typer.Argument(help="Picture files, or pictures of the index by image_id or path.", show_default=False),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Words instead; with a picture: like it, but …")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Words for what to do without.")] = None,
    index: Annotated[str, typer.Option(help="Its name; not needed if there is only one.", show_default=False)] = "",
    k: Annotated[int, typer.Option(help="Answers a picture.")] = 10,
    where: Annotated[str | None, typer.Option(help="Such as \"label == 'cat' and width > 200\".")] = None,
    minimum: Annotated[float | None, typer.Option(help="Only answers of at least this similarity.")] = None,
    distinct: Annotated[float | None, typer.Option(help="No answer more similar to a better one; try 0.98.")] = None,
    mmr: Annotated[float | None, typer.Option(help="Variety: 1 looks at similarity alone; try 0.7.")] = None,
    expand: Annotated[int, typer.Option(help="Search again with so many best answers; try 3.")] = 0,
    reciprocal: Annotated[int | None, typer.Option(help="Order by so many shared neighbours; try 20.")] = None,
    combine: Annotated[bool, typer.Option("--combine", help="One question of all pictures: their mean.")] = False,
    show: Annotated[Path | None, typer.Option(help="Write questions and answers as a picture, a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Find the pictures of an index that are most alike."""
    from rectrio_lib.report import thumbnails
    from rectrio_lib.search import collection

    options = {"where": where, "minimum": minimum, "distinct": distinct, "mmr": mmr}
    options |= {"expand": expand, "reciprocal": reciprocal, "combine": combine}
    with contextlib.redirect_stdout(sys.stderr):  # remarks, so that --json prints nothing but JSON
        gallery, pictures = collection.open_collection(index), list(dict.fromkeys(pictures or []))
        if text or without:
            results = gallery.search_words(pictures, list(dict.fromkeys(text or [])), without or [], k, **options)
        else:
            results = gallery.search(pictures, k, **options)
        if show is not None:
            thumbnails.answer_grid(gallery, pictures, results).savefig(show, bbox_inches="tight")
    if as_json:
        typer.echo(json.dumps(_as_json(gallery, results, k), ensure_ascii=False))
    else:
        _print_answers(gallery, results)
        if show is not None:
            typer.echo(f"Shown in {show}")


def info(name: Annotated[str, typer.Argument(help="Of an index, a store or an encoder; without, all.")] = "") -> None:
    """Tell which indexes, embedding stores and encoders there are."""
    from rectrio_lib.cli.info import overview
    from rectrio_lib.core import tables

    for title, rows in overview(name).items():
        typer.echo(f"{title}\n{tables.plain_table(rows) if rows else 'none'}\n")


def run_images(folder: Path, name: str, parameters: list[str]) -> None:
    """Go from a folder of pictures to a report; see `own_images.run_folder`."""
    from rectrio_lib.chapters import chapter, own_images

    page = own_images.run_folder(folder, name, chapter.parse_overrides(parameters))
    typer.echo(f"Report     {page}")
    typer.echo(f"Next       rectrio search PICTURE --index {_quoted(page.parent.name)} --show answers.png")


def _maker(encoder: str, backbone: str) -> str:
    if encoder and backbone:
        raise ArgumentError(f"--encoder {encoder} and --backbone {backbone} exclude each other: give one of them.")
    if backbone and ":" not in backbone:
        raise ArgumentError(f"--backbone {backbone} should name family and network, such as clip:ViT-B/32.")
    return encoder or backbone


def _tell(report: Report, home: Path) -> None:
    typer.echo(f"Pictures   {report}")
    if len(report.ledger):
        typer.echo(f"Left out   {len(report.ledger):,}, with reasons in {home / 'ledger.csv'}")


def _print_answers(gallery: Collection, results: Results) -> None:
    from rectrio_lib.core import tables

    if gallery.stand_in:
        typer.echo(RANDOM)
    answers = results.frame()
    columns = ["rank", "score", *(c for c in ("label", "path") if c in answers)]
    for query in dict.fromkeys(results.query_ids):
        found = answers.loc[answers["query"] == query, columns if "path" in columns else [*columns, "image_id"]]
        typer.echo(f"{query}\n{tables.plain_table(found.to_dict('records')) if len(found) else 'no answer'}\n")
    if gallery.folder is not None:
        typer.echo(f"Paths are below {gallery.folder}")


def _as_json(gallery: Collection, results: Results, k: int) -> dict[str, Any]:
    answers = results.frame()
    told = {"index": gallery.name, "encoder": gallery.encoder, "stand_in": gallery.stand_in, "k": k}
    told |= {"folder": None if gallery.folder is None else str(gallery.folder)}
    queries = {query: answers[answers["query"] == query] for query in results.query_ids}
    return told | {"queries": [{"query": query, "answers": _records(found)} for query, found in queries.items()]}


def _records(found: pd.DataFrame) -> list[dict[str, Any]]:
    # by way of pandas, which knows how to write its own numbers, and missing ones as null
    return json.loads(found.drop(columns="query").to_json(orient="records"))


def _quoted(text: str | Path) -> str:
    return f'"{text}"' if " " in str(text) else str(text)


def _options(**given: str) -> str:
    return "".join(f" --{name} {_quoted(value)}" for name, value in given.items() if value)
