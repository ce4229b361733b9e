"""Answers that know when to stop: probabilities for scores, and a reason where nothing is sure enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rectrio_lib.app.generation import Generation
from rectrio_lib.app.schemas import Result, SearchRequest
from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.index.live import Snapshot
from rectrio_lib.search.options import Options
from rectrio_lib.search.pipeline import nearest


def with_minimum(now: Generation, request: SearchRequest) -> SearchRequest:
    """Return the request with the least score that `sure` and `minimum_probability` ask for.

    Raises:
        ArgumentError: if it is no query by images alone, or nothing tells what scores mean here.
    """
    if not by_images(request):
        raise ArgumentError("`sure` works for queries by image only: leave out text and `without`.")
    wanted = Options(minimum=request.minimum, sure=request.sure, minimum_probability=request.minimum_probability)
    return request.model_copy(update={"minimum": wanted.calibrated(now.calibrate()).minimum})


def by_images(request: SearchRequest) -> bool:
    """Tell whether images are compared with images, as calibrations do."""
    return bool(request.like) and not request.without and all(part.text is None for part in request.like)


def add_probabilities(now: Generation, request: SearchRequest, results: Sequence[Result]) -> None:
    """Say of each result how probable it is that it is right, if that is known."""
    known = now.collection.calibration
    if known is not None and results and by_images(request):
        found = known.probability(np.array([result.score for result in results])).tolist()
        for result, probability in zip(results, found, strict=True):
            result.probability = probability


def reason(now: Generation, snapshot: Snapshot, request: SearchRequest, query: np.ndarray, own: Sequence[int]) -> str:
    """Say why nothing was sure enough."""
    scores, _ = nearest(snapshot, query[None], 1, Options(where=request.where), np.array([own], np.int64))
    if np.isnan(scores[0, 0]):
        return "No other image meets the condition."
    sure = now.calibrate().probability(scores)[0, 0]
    return f"Nothing here is like that: the most similar image is of the same kind with a probability of {sure:.0%}."
