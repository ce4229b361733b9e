"""The commands about any folder of images: a thin skin over `Collection`."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from rectrio_lib.cli.output import escaped, program, say, say_json
from rectrio_lib.core.errors import ArgumentError

if TYPE_CHECKING:  # imported by the commands that need them, see `app`
    from rectrio_lib.embeddings.embed import Report
    from rectrio_lib.search.collection import Collection
    from rectrio_lib.search.results import Results

FOLDER = "A folder of images, in class folders or not; or s3://…, gs://…, https://…, 'set-{000..009}.tar', set.parquet."
Folder = Annotated[str, typer.Argument(help=FOLDER, show_default=False)]
Moved = Annotated[str | None, typer.Option(help="Where the images are now, if they have moved.", show_default=False)]
Opened = Annotated[str, typer.Argument(help="Of an index, if there are several.", show_default=False)]
Index = Annotated[str, typer.Option(help="Name of the index, if there are several.", show_default=False)]
Where = Annotated[str | None, typer.Option(help="Such as \"label == 'cat' and width > 200\".")]
Name = Annotated[str, typer.Option(help="Its name; by default that of the folder.", show_default=False)]
Encoder = Annotated[str, typer.Option(help="An encoder below outputs/encoders.", show_default=False)]
BACKBONES = "clip:ViT-B/32; several are joined by +; auto: that one where there is a GPU, else lite:efficientnet_lite0"
Backbone = Annotated[str, typer.Option(help=f"A pretrained network instead, such as {BACKBONES}.", show_default=False)]
AllowRandomWeights = Annotated[
    bool, typer.Option("--allow-random-weights", help="Go on without pretrained weights, to try the commands.")
]
RANDOM = "STAND-IN: the vectors come from random weights. Results mean nothing."


class RayAlone(TyperCommand):
    """A command whose option --ray needs no value: then it is where RAY_ADDRESS says, or on this machine."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Enter the value where it is left out."""
        alone = f"--ray={os.environ.get('RAY_ADDRESS') or 'local'}"
        following = pairwise([*args, "-"])  # also where there is none
        return super().parse_args(
            ctx, [alone if arg == "--ray" and after.startswith("-") else arg for arg, after in following]
        )


def index(
    folder: Folder,
    name: Name = "",
    encoder: Encoder = "",
    backbone: Backbone = "",
    kind: Annotated[
        str,
        typer.Option(
            help="flat, hnsw, ivf, ivf-pq, ivf-sq8; auto: what suits best; by default as before, or auto.",
            show_default=False,
        ),
    ] = "",
    recall: Annotated[
        float | None,
        typer.Option(
            help="Share of the true ten nearest neighbours to be found; by default as before, or 0.95.",
            show_default=False,
        ),
    ] = None,
    allow_random_weights: AllowRandomWeights = False,
    vectors: Annotated[
        str, typer.Option(help="Keep the vectors on a server: postgresql://… or, Qdrant, http://…", show_default=False)
    ] = "",
    memory_limit: Annotated[
        str,
        typer.Option(
            help="What the index may take, such as 2GB, or none: what is larger stays on disk; by default as before.",
            show_default=False,
        ),
    ] = "",
    ray: Annotated[
        str,
        typer.Option(
            metavar="[ADDRESS]",
            help="Embed on Ray: on this machine or, given HOST:PORT of a running Ray, on all of its nodes.",
            show_default=False,
        ),
    ] = "",
    whiten: Annotated[
        str,
        typer.Option(
            help="Whiten the vectors, to find the very same thing rather than its kind: yes, no, a number of "
            "dimensions, or auto, if labels say that it helps; by default as before.",
            show_default=False,
        ),
    ] = "",
    mirror: Annotated[
        bool | None,
        typer.Option(
            help="Encode each image mirrored as well: twice the time; by default as before.", show_default=False
        ),
    ] = None,
) -> None:
    """Embed what is new in a folder of images, and build an index of it."""
    from rectrio_lib.search.collection import Collection

    made_by = _encoder(encoder, backbone)
    options = {"allow_random_weights": allow_random_weights, "vectors": vectors}
    options |= {"memory_limit": memory_limit or None, "ray": ray, "whiten": _whitening(whiten), "mirror": mirror}
    shop = Collection.build(folder, made_by, name, kind, recall, **options)
    _say_report(shop.report, shop.workspace.path("embeddings", shop.made_from["store"]))
    say(f"Encoder    {shop.encoder_name}{f'. {RANDOM}' if shop.random_weights else ''}")
    say(f"Index      {shop.name}: {shop.index.info()}")
    if (shop.workspace.outputs / "uploads" / shop.name).is_dir():
        say(f"Uploads    {program()} reindex {quoted(shop.name)} takes in what was uploaded to the service.")
    say_next(shop.name)


def embed(folder: Folder, name: Name = "", encoder: Encoder = "", backbone: Backbone = "") -> None:
    """Embed what is new in a folder of images."""
    from rectrio_lib.search import building, provenance

    store, report = building.embed(folder, _encoder(encoder, backbone), name)
    _say_report(report, store.folder)
    random = f". {RANDOM}" if provenance.flags(store.card)["random_weights"] else ""
    say(f"Vectors    {len(store):,} of length {store.card['dim']} in {store.folder}{random}")
    given = {"name": name, "encoder": encoder, "backbone": backbone}
    options = "".join(f" --{option} {quoted(value)}" for option, value in given.items() if value)
    say(f"Next       {program()} index {quoted(folder)}{options}")


def search(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, or images of the index by image_id or path.", show_default=False),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Words to search for; with an image: like it, but …")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Words to turn away from.")] = None,
    index: Index = "",
    folder: Moved = None,
    k: Annotated[int, typer.Option(help="Results per query.")] = 10,
    where: Where = None,
    minimum: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Only results of at least this similarity (e.g. 0.8).")
    ] = None,
    distinct: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Drop results whose cosine to a better one exceeds this (e.g. 0.98)."),
    ] = None,
    mmr: Annotated[float | None, typer.Option(help="Variety: 1 counts similarity alone (e.g. 0.7).")] = None,
    expand: Annotated[int, typer.Option(help="Query expansion: re-query with this many top results (e.g. 3).")] = 0,
    reciprocal: Annotated[int | None, typer.Option(help="k-reciprocal re-ranking with this k1 (e.g. 20).")] = None,
    combine: Annotated[bool, typer.Option("--combine", help="Average all query images into one query.")] = False,
    show: Annotated[Path | None, typer.Option(help="Write queries and results as an image, a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Find the most similar images of an index."""
    from rectrio_lib.search.collection import Collection

    options = {"where": where, "minimum": minimum, "distinct": distinct, "mmr": mmr}
    options |= {"expand": expand, "reciprocal": reciprocal, "combine": combine}
    shop, queries = Collection.open(index, folder), list(dict.fromkeys(images or []))
    texts = list(dict.fromkeys(text)) if text else None
    results = shop.search(queries or None, texts, without, k, **options)
    if show is not None:
        from rectrio_lib.report import grids

        grids.save_image(grids.answer_grid(shop, queries, results), show)
    if as_json:
        say_json(as_json_object(shop, results, k))
    else:
        say_results(shop, results)
        if show is not None:
            say(f"Shown in {show}")


def info(name: Annotated[str, typer.Argument(help="Of an index, a store or an encoder; by default all.")] = "") -> None:
    """List indexes, embedding stores and encoders."""
    from rectrio_lib.cli.info import overview
    from rectrio_lib.core import tables

    found = overview(name)
    for title, rows in found.items():
        say(f"{title}\n{tables.plain_table(_cells(rows)) if rows else 'none'}\n")
    if not any(found.values()):
        say(f"Next       {program()} index FOLDER")


def say_next(name: str) -> None:
    """Print the command that searches a collection."""
    say(f"Next       {program()} search IMAGE --index {quoted(name)} --show answers.png")


def quoted(text: str | Path) -> str:
    """Return text as a shell takes it."""
    return f'"{text}"' if " " in str(text) else str(text)


def _encoder(encoder: str, backbone: str) -> str:
    if encoder and backbone:
        raise ArgumentError(f"--encoder {encoder} and --backbone {backbone} exclude each other: give one of them.")
    if backbone and ":" not in backbone and backbone != "auto":
        raise ArgumentError(f"--backbone {backbone} should name family and network, such as clip:ViT-B/32.")
    return encoder or backbone


def _whitening(given: str) -> bool | int | str | None:
    known = {"": None, "yes": True, "no": False, "auto": "auto"}
    if given not in known and not (given.isascii() and given.isdigit()):
        raise ArgumentError(f"--whiten {given}: expected yes, no, auto, or a number of dimensions such as 256.")
    return known[given] if given in known else int(given)


def _say_report(report: Report, home: Path) -> None:
    say(f"Images     {report}")
    if len(report.ledger):
        say(f"Left out   {len(report.ledger):,}, with reasons in {home / 'ledger.csv'}")


def say_results(shop: Collection, results: Results) -> None:
    """Print a table of results for each query."""
    from rectrio_lib.core import tables

    if shop.random_weights:
        say(RANDOM)
    frame = results.frame()
    columns = ["rank", "score", *(c for c in ("label", "path") if c in frame)]
    for query in dict.fromkeys(results.query_ids):
        found = frame.loc[frame["query"] == query, columns if "path" in columns else [*columns, "image_id"]]
        found = found.dropna(axis="columns", how="all")  # without likes there are no scores
        table = tables.plain_table(_cells(found.to_dict("records"))) if len(found) else "no results"
        say(f"{escaped(query)}\n{table}\n")
    if shop.uri:
        say(f"Paths are below {shop.uri}")


def _cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: escaped(value) for name, value in row.items()} for row in rows]


def as_json_object(shop: Collection, results: Results, k: int) -> dict[str, Any]:
    """Return results as JSON takes them."""
    frame = results.frame()
    card = {"index": shop.name, "encoder": shop.encoder_name, "stand_in": shop.stand_in, "k": k}
    card |= {"folder": shop.uri or None, "queries": []}
    for query in results.query_ids:
        found = frame[frame["query"] == query].drop(columns="query")
        # by way of pandas, which knows how to write its own numbers, and missing ones as null
        card["queries"].append({"query": query, "answers": json.loads(found.to_json(orient="records"))})
    return card
