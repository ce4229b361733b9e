import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectrio_lib.core import lookup
from rectrio_lib.core.lookup import IdSet, all_differ, positions

WORDS = st.lists(st.text("ab|é\U0001f600", max_size=3), max_size=12, unique=True)
IDS = st.lists(st.text("0123abcf", min_size=1, max_size=16), max_size=20)


@given(st.data(), WORDS)
def test_positions_are_those_of_a_naive_search(data, texts):
    wanted = data.draw(st.just(texts) | st.lists(st.sampled_from([*texts, "x"])))
    expected = [texts.index(text) if text in texts else -1 for text in wanted]
    for kind in (list, lambda values: pd.Series(values, dtype=object), lambda values: pd.Series(values, dtype=str)):
        assert positions(kind(wanted), kind(texts)).tolist() == expected
    halves = pd.concat([pd.Series(texts[:3], dtype=str), pd.Series(texts[3:], dtype=str)])
    assert positions(wanted, halves).tolist() == expected


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.booleans(), st.sampled_from([object, str]))
def test_texts_that_differ_are_told_from_those_that_do_not_even_if_hashes_collide(texts, collide, kind):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "FRESH", 3)
        if collide:
            patch.setattr(lookup, "hash_array", lambda part, categorize: np.zeros(len(part), np.uint64))
        assert all_differ(pd.Series(texts, dtype=kind)) == (len(set(texts)) == len(texts))


@given(IDS, IDS)
def test_a_set_of_ids_holds_what_a_set_holds(first, later):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "FRESH", 3)
        ids = IdSet(pd.Series(first, dtype=str))
        for image_id in later:
            ids.add(image_id)
        known = {*first, *later}
        for one in (ids, pickle.loads(pickle.dumps(ids))):
            assert all(image_id in one for image_id in known)
            assert not any(image_id in one for image_id in ("", "x", "f" * 17, *(f"{name}x" for name in known)))
        assert len(ids._fresh) < 3 and isinstance(ids._sorted, np.ndarray)
