import numpy as np
import pytest

from rectrio_lib.data import catalog
from rectrio_lib.data.captions import (
    DRAWN,
    PARTS,
    PROMPTS,
    WRITTEN,
    Captions,
    describe,
    describe_drawings,
    fill,
    prompts,
)
from rectrio_lib.data.synthetic import draw_shapes
from rectrio_lib.encoders.dual import vocabulary, words

SETS = {"fashion": catalog.FASHION_CLASSES, "animals": tuple(catalog.ANIMALS_FOLDERS.values())}


@pytest.fixture(params=SETS.values(), ids=SETS.keys())
def classes(request):
    return request.param


# --- what is written


def test_every_class_is_described_in_about_ten_ways_of_which_two_are_for_testing(classes):
    for name in classes:
        counts = [len(WRITTEN[name][part]) for part in PARTS]
        assert counts[0] >= 8 and counts[1] >= 1 and counts[2] >= 2


def test_no_description_comes_twice_whatever_its_part(classes):
    texts = [" ".join(words(text)) for part in PARTS for text in describe(classes, part).texts]
    assert len(texts) == len(set(texts)) >= 100


def test_descriptions_vary_in_length_from_a_word_or_two_to_a_sentence(classes):
    lengths = [len(words(text)) for text in describe(classes).texts]
    assert min(lengths) <= 2 and max(lengths) >= 9 and len(set(lengths)) >= 7


@pytest.mark.parametrize("part", ["val", "test"])
def test_what_is_held_out_can_be_answered_from_words_of_the_training(classes, part):
    known = set(vocabulary(describe(classes).texts))
    for text in describe(classes, part).texts:
        asked = words(text)
        assert sum(word in known for word in asked) >= 0.75 * len(asked), text


def test_each_description_fits_its_own_class(classes):
    told = describe(classes, "test")
    assert told.fits.shape == (10, len(told)) and (told.fits.sum(0) == 1).all()
    for text, target in zip(told.texts, told.targets, strict=True):
        assert text in WRITTEN[classes[target]]["test"]


def test_the_order_of_the_classes_is_the_callers():
    assert describe(["Coat", "Bag"]).texts[0] == "coat"
    assert describe(["Bag", "Coat"]).texts[0] == "bag"


def test_classes_that_nobody_described_get_templates_and_other_ones_for_testing():
    told = {part: describe(["arrow", "Bag"], part) for part in PARTS}
    assert "an arrow" in told["train"].texts and "a handbag" in told["train"].texts
    for captions in told.values():
        assert sum("arrow" in text for text in captions.texts) == captions.fits[0].sum() > 0
    assert len({t for captions in told.values() for t in captions.texts}) == sum(map(len, told.values()))


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part='testing' is unknown: choose one of train, val, test"):
        describe(["Bag"], "testing")


# --- prompts


def test_prompts_put_every_name_into_every_template():
    told = prompts(["cat", "elephant"])
    assert len(told) == 2 * len(PROMPTS)
    assert "a photo of a cat." in told.texts and "a photo of an elephant." in told.texts
    assert told.fits.sum(1).tolist() == [len(PROMPTS)] * 2


def test_a_becomes_an_before_a_vowel_only():
    assert fill(["A {} on a hat", "extra {}"], "Ankle boot") == ["An Ankle boot on a hat", "extra Ankle boot"]


# --- captions


def test_the_mean_of_a_targets_texts_is_a_unit_vector_between_them():
    captions = Captions(("a", "b", "c"), np.array([[True, True, False], [False, True, True]]))
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(captions.means(vectors), [[root, root, 0], [0, root, root]], atol=1e-6)
    assert captions.targets.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("texts", "fits", "sentence"),
    [
        (("a", "b"), [[True]], r"fits should be bool \(targets, 2\), not bool \(1, 1\)"),
        (("a",), [[1]], r"fits should be bool \(targets, 1\), not int"),
        (("a", "b", "a"), [[True, True, True]], "'a' comes twice"),
        (("a", "b"), [[True, False]], "A text describes nothing"),
        (("a",), [[True], [False]], "nothing describes a target"),
    ],
)
def test_captions_that_cannot_be_are_refused(texts, fits, sentence):
    with pytest.raises(ValueError, match=sentence):
        Captions(texts, np.array(fits))


# --- drawings


@pytest.fixture(scope="module")
def drawings():
    _, frame = draw_shapes(6, views=3, size=4, channels=3)
    return frame, *describe_drawings(frame)


def test_every_drawing_is_described_alone_and_together(drawings):
    frame, targets, captions = drawings
    place = {text: number for number, text in enumerate(captions.texts)}
    for row, target in zip(frame.itertuples(), targets, strict=True):
        mine = [row.caption, f"a {row.colour} {row.label}", f"in {row.colour}", f"something {row.texture}"]
        assert captions.fits[target, [place[text] for text in mine]].all()
        assert captions.fits[target].sum() == len(DRAWN)


def test_a_text_fits_just_the_drawings_that_have_what_it_says(drawings):
    frame, targets, captions = drawings
    pose = frame["caption"].str.partition(", ")[2]
    expected = {
        "star": frame["label"] == "star",
        "something red": frame["colour"] == "red",
        "a dotted ring": (frame["label"] == "ring") & (frame["texture"] == "dotted"),
        "something upright": pose == "upright",
        "an arrow": frame["label"] == "arrow",
        "a heart, tilted to the left": (frame["label"] == "heart") & (pose == "tilted to the left"),
    }
    for text, meant in expected.items():
        assert meant.any()
        np.testing.assert_array_equal(captions.fits[targets, captions.texts.index(text)], meant)


def test_equal_combinations_share_a_target_and_others_do_not(drawings):
    frame, targets, captions = drawings
    things = frame.assign(target=targets).groupby("target")["caption"].nunique()
    assert (things == 1).all() and len(things) == len(captions.fits) == frame["caption"].nunique()
