"""The commands about what people like: what they will like next, and a network that learns it."""

from __future__ import annotations

from typing import Annotated

import typer

from rectrio_lib.cli import collections, serve
from rectrio_lib.cli.output import escaped, say, say_json


def recommend(
    like: Annotated[list[str] | None, typer.Argument(help="What is liked: files, image_ids or paths.")] = None,
    dislike: Annotated[list[str] | None, typer.Option(help="An image that is not liked; repeat for more.")] = None,
    seen: Annotated[list[str] | None, typer.Option(help="An image not to be shown; repeat for more.")] = None,
    index: collections.Index = "",
    folder: collections.Moved = None,
    k: Annotated[int, typer.Option(help="Most results.")] = 10,
    strategy: Annotated[str, typer.Option(help="logistic, mean or best.")] = "logistic",
    where: collections.Where = None,
    distinct: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Drop results more similar than this (e.g. 0.98).")
    ] = None,
    mmr: Annotated[float | None, typer.Option(help="Variety: 1 counts likes alone (e.g. 0.7).")] = None,
    group_by: Annotated[str | None, typer.Option(help="A column: of each of its values at most --per-group.")] = None,
    per_group: Annotated[int, typer.Option(help="Most results of one group.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show what will be liked, by what was liked and disliked."""
    from rectrio_lib.search.collection import Collection

    taste = {"strategy": strategy, "where": where, "distinct": distinct, "mmr": mmr}
    taste |= {"group_by": group_by, "per_group": per_group}
    shop = Collection.open(index, folder)
    results = shop.recommend(like or (), dislike or (), seen or (), k, **taste)
    if as_json:
        say_json(collections.as_json_object(shop, results, k) | {"ignored": results.ignored})
    else:
        for name, reason in results.ignored.items():
            say(f"Ignored    {escaped(name)}: {reason}", err=True)
        collections.say_results(shop, results)


def calibrate(name: collections.Opened = "", folder: collections.Moved = None) -> None:
    """Learn what scores mean, so that results can end where they are no longer sure."""
    from rectrio_lib.search.collection import Collection

    known = Collection.open(name, folder).calibrate()
    learned = {"labels": "images of one label", "copies": "altered copies of images"}[known.source]
    say(f"Learned    from {known.pairs:,} pairs, where {learned} are right")
    for share in (0.5, 0.9, 0.99):
        least = known.minimum(sure=share)
        say(f"{f'{share:.0%} right':<10} {'no score would do' if least > 1 else f'from a score of {least:.3f}'}")


def retrain(
    name: collections.Opened = "",
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the encoder before.")] = False,
) -> None:
    """Learn from the likes and dislikes of a served collection, if that makes it better."""
    engine = serve.database()
    from rectrio_lib.app.generation import Generation
    from rectrio_lib.app.learning import retrain as learning
    from rectrio_lib.search.collection import Collection

    now = Generation.of(Collection.open(name), engine)
    if undo:
        say(f"Encoder    {learning.undo(now)}")
        return
    verdict = learning.retrain(now, engine)
    for title, figures in (("Judgements", verdict.held_out), ("Labels", verdict.labels)):
        if figures is not None:
            gain = f"{figures.after - figures.before:+.3f}, 95 % from {figures.low:+.3f} to {figures.high:+.3f}"
            say(f"{title:<10} {figures.before:.3f} -> {figures.after:.3f} ({gain}; {figures.count:,} held out)")
    for note in verdict.notes:
        say(f"Note       {note}")
    say(f"Verdict    {verdict.reason}")
    say(f"Encoder    {verdict.encoder}")
