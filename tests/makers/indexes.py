"""Small indexes of random vectors, and naive search to compare them with."""

import numpy as np
import pandas as pd

from rectrio_lib.index.index import Index

DIM = 6


def unit(rng, count, *dims):
    vectors = rng.normal(size=(count, *(dims or [DIM])))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def clustered(rng, count, dim=32, clusters=60):
    """Unit vectors around the same centres for every generator: galleries and fresh queries of one world."""
    centres = np.random.default_rng(99).normal(size=(clusters, dim))
    vectors = centres[rng.integers(clusters, size=count)] + 0.5 * rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def named(start, count):
    return pd.DataFrame(
        {"image_id": [f"p{i}" for i in range(start, start + count)], "number": range(start, start + count)}
    )


def built(kind="flat", count=40, seed=0, search_param=4096, **options):
    """An index of thorough search: what it finds differs from exact search by rounding alone."""
    vectors = unit(np.random.default_rng(seed), count)
    return Index.build(kind, vectors, named(0, count), "abc", search_param=search_param, **options), vectors


def nearest(vectors, queries, k, mask=None):
    """Positions and scores of the k best among all vectors, or the mask ones, by sorting every product."""
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    if mask is not None:
        products[:, ~mask] = -np.inf
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(products, order, 1)
