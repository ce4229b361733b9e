"""How good a search is with some options: every image of an index is searched among the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.evaluation.evaluation import Evaluation
from rectrio_lib.evaluation.retrieval import evaluate_results
from rectrio_lib.index.base import VectorIndex
from rectrio_lib.search.searcher import Searcher


def leave_one_out(index: VectorIndex, k: int = 10, **options) -> Evaluation:
    """Measure recall_at_1 and map_at_r of a search with options; without any, as `evaluation.evaluate` does.

    Args:
        index: its rows have `image_id` and `label`.
        k: results per query, at least as many as a label has images beside the query.
        **options: fields of `search.options.Options`, such as reciprocal=4.

    Raises:
        ArgumentError: if k is smaller than that, or an option does not fit.
    """
    rows = index.rows[~index.removed]
    others = rows.groupby("label")["label"].transform("size").to_numpy() - 1
    if k < others.max():
        raise ArgumentError(
            f"k={k}: a label has {others.max()} images beside the query; take at least as many results."
        )
    found = Searcher(index).search(rows["image_id"].tolist(), k=k, **options).column("label")
    return evaluate_results(found, rows["label"].to_numpy(), others)


def best_options(index: VectorIndex, candidates: Sequence[dict[str, Any]], k: int = 10) -> dict[str, Any]:
    """Return the options with the highest map_at_r, the earliest of equals; choose on an index of validation images."""
    return max(candidates, key=lambda options: leave_one_out(index, k, **options).means()["map_at_r"])
