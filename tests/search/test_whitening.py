"""Collections that are whitened, or see mirror images as well."""

import json

import numpy as np
import pytest
from makers.texts import dual
from PIL import Image

from rectrio_lib.core.errors import ArgumentError
from rectrio_lib.core.workspace import Workspace
from rectrio_lib.embeddings.store import open_store
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.pretrained import Pretrained, ProjectionHead
from rectrio_lib.encoders.registry import load_encoder, save_encoder
from rectrio_lib.search import whitening
from rectrio_lib.search.collection import Collection
from rectrio_lib.training.two_phase import attach

SIDE = 8
DIM = SIDE * SIDE


def save(folder, images):
    """Write grey images {path: (SIDE, SIDE)} in 0..1."""
    for path, image in images.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)).save(file)
    return folder


def things(folder, count=60, views=4, seed=0):
    """Products that differ in faint details, under light that changes much: what varies most is no help."""
    rng, images = np.random.default_rng(seed), {}
    light = [np.outer(np.linspace(-1, 1, SIDE), np.ones(SIDE)), np.outer(np.ones(SIDE), np.linspace(-1, 1, SIDE))]
    for number in range(count):
        details = rng.normal(0, 0.03, (SIDE, SIDE))
        for view in range(views):
            shade = sum(rng.normal(0, 0.15) * pattern for pattern in light)
            noise = rng.normal(0, 0.008, (SIDE, SIDE))
            images[f"p{number}/{view}.png"] = 0.5 + details + shade + noise
    return save(folder, images)


def classes(folder, count=50):
    """Three classes that differ in the strongest directions; all others are noise."""
    rng, images = np.random.default_rng(0), {}
    for number, pattern in enumerate(rng.normal(0, 0.08, (3, SIDE, SIDE))):
        for view in range(count):
            images[f"c{number}/{view}.png"] = 0.5 + pattern + rng.normal(0, 0.1, (SIDE, SIDE))
    return save(folder, images)


@pytest.fixture(autouse=True)
def pixels():
    save_encoder(RawPixels(1, SIDE), "pixels")


def vectors_of(shop):
    return shop.index.vectors_at(np.arange(len(shop.index)))


def whitened_by_hand(vectors, fitted, dim, floor=0.01):
    variance, directions = np.linalg.eigh(fitted.T.astype(float) @ fitted / len(fitted))
    kept = directions[:, ::-1][:, :dim] / np.sqrt(variance[::-1][:dim].clip(0) + floor * variance.mean())
    white = vectors @ kept
    return white / np.linalg.norm(white, axis=1, keepdims=True)


def made_from(name):
    return json.loads((Workspace().path("indexes", name) / "card.json").read_text())["made_from"]


# --- whitening


def test_vectors_are_whitened_by_the_collections_own(tmp_path):
    shop = Collection.build(things(tmp_path / "shop"), "pixels", whiten=20)
    stored = open_store("pixels", "shop").vectors()
    expected = whitened_by_hand(stored, stored, 20)
    assert shop.index.dim == 20 and shop.encoder_name == "shop-whitened"
    np.testing.assert_allclose(
        vectors_of(shop) @ vectors_of(shop).T, expected @ expected.T, atol=0.01
    )  # the store has 16 bits


def test_queries_from_elsewhere_are_whitened_alike_also_once_opened_again(tmp_path):
    folder = things(tmp_path / "shop")
    Collection.build(folder, "pixels", whiten=True)
    shop = Collection.open("shop")
    image = np.asarray(Image.open(folder / "p7" / "2.png"))[None]
    results = shop.search(image, k=4)
    assert results.frame()["path"][0] == "p7/2.png" and results.scores[0, 0] == pytest.approx(1, abs=0.01)
    assert set(results.frame()["label"]) == {"p7"}


def test_it_finds_the_same_thing_where_the_encoder_alone_does_not(tmp_path):
    folder = things(tmp_path / "shop")

    def found(shop):
        first = shop.search(shop.index.rows["image_id"].tolist(), k=1).column("label")[:, 0]
        return (first == shop.index.rows["label"]).mean()

    plain = found(Collection.build(folder, "pixels"))
    white = found(Collection.build(folder, "pixels", whiten=True))
    assert plain < 0.7 and white > 0.95


def test_images_of_validation_and_test_stay_out_of_the_fit(tmp_path):
    things(tmp_path / "shop" / "train"), things(tmp_path / "shop" / "test", 20)
    shop = Collection.build(tmp_path / "shop", "pixels", whiten=20)
    store = open_store("pixels", "shop")
    expected = whitened_by_hand(store.vectors(), store.vectors("train"), 20)
    assert 0 < len(store.vectors("train")) < len(store)
    np.testing.assert_allclose(vectors_of(shop) @ vectors_of(shop).T, expected @ expected.T, atol=0.01)


def test_a_pretrained_backbone_gets_a_head_so_that_it_can_still_learn(tmp_path):
    torchvision = Pretrained("torchvision:squeezenet1_0", 32, 32).eval()
    save_encoder(torchvision, "squeeze")
    Collection.build(things(tmp_path / "shop", 12), "squeeze", whiten=16)
    encoder = load_encoder("shop-whitened")
    assert isinstance(encoder, Pretrained) and encoder.head.dim == 16
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    own = attach(torchvision, encoder.head).encode(images)
    np.testing.assert_allclose(encoder.encode(images), own, atol=1e-5)


def test_without_a_word_it_stays_as_it_was_and_can_be_taken_back(tmp_path):
    folder = things(tmp_path / "shop")
    Collection.build(folder, "pixels", whiten=20)
    file = Workspace().path("indexes", "shop") / "vectors.faiss"
    before = file.stat().st_ino
    again = Collection.build(folder)
    assert (again.index.dim, again.report.embedded, file.stat().st_ino) == (20, 0, before)
    assert Collection.build(folder, whiten=False).encoder_name == "pixels"
    Collection.build(folder, "pixels", whiten=20)
    assert Collection.build(folder, "pixels").encoder_name == "pixels"


def test_added_images_are_whitened_too(tmp_path):
    shop = Collection.build(things(tmp_path / "shop"), "pixels", whiten=20)
    rng = np.random.default_rng(5)
    more = save(tmp_path / "more", {"new.png": 0.5 + rng.normal(0, 0.1, (SIDE, SIDE))})
    assert shop.add(more) == 1
    assert shop.search(str(more / "new.png"), k=1).scores[0, 0] <= 1
    stored = open_store("pixels", "shop").vectors()
    pixels = np.asarray(Image.open(more / "new.png"), np.float32).reshape(1, -1)
    expected = whitened_by_hand(np.concatenate([stored, pixels / np.linalg.norm(pixels)]), stored, 20)
    np.testing.assert_allclose(vectors_of(shop) @ vectors_of(shop)[-1], expected @ expected[-1], atol=0.01)


# --- labels decide


def test_labels_decide_for_it_where_the_very_same_thing_is_sought(tmp_path):
    shop = Collection.build(things(tmp_path / "shop"), "pixels", whiten="auto")
    told = made_from("shop")["whitening"]
    assert shop.encoder_name == "shop-whitened" and told["dims"] == shop.index.dim == DIM - DIM % 64
    assert (told["wanted"], told["source"]) == ("auto", "pixels") and "mAP@R" in told["why"]
    assert shop.info()["whitening"] == told["why"]


def test_labels_decide_against_it_where_classes_are_sought(tmp_path):
    folder = classes(tmp_path / "kinds")
    shop = Collection.build(folder, "pixels", whiten="auto")
    told = made_from("kinds")["whitening"]
    assert (shop.encoder_name, told["dims"], told["wanted"]) == ("pixels", 0, "auto")
    assert told["why"].startswith("Not whitened: mAP@R")
    assert Collection.build(folder).made_from["whitening"]["wanted"] == "auto"


def test_the_decision_is_that_of_validation_images_where_there_are_some(tmp_path):
    things(tmp_path / "shop" / "train"), things(tmp_path / "shop" / "val", 20, seed=1)
    shop = Collection.build(tmp_path / "shop", "pixels", whiten="auto")
    assert "mAP@R of 80 images" in shop.made_from["whitening"]["why"]


def test_many_validation_images_are_judged_at_random(tmp_path, monkeypatch):
    monkeypatch.setattr(whitening, "MOST_JUDGED", 40)
    seen, evaluate = [], whitening.evaluate
    monkeypatch.setattr(
        whitening, "evaluate", lambda found, names, **k: seen.append(names) or evaluate(found, names, **k)
    )
    things(tmp_path / "shop" / "train"), things(tmp_path / "shop" / "val", 20, seed=1)
    Collection.build(tmp_path / "shop", "pixels", whiten="auto")
    assert len(seen[0]) == 40 and len(set(seen[0])) > 15  # the first 40 by path are of ten things


def test_without_labels_nothing_is_whitened(tmp_path):
    flat = {path.replace("/", "-"): np.asarray(Image.open(tmp_path / "a" / path)) / 255
            for path in ("p1/0.png", "p2/1.png") if things(tmp_path / "a", 3)}  # fmt: skip
    shop = Collection.build(save(tmp_path / "flat", flat), "pixels", whiten="auto")
    assert shop.encoder_name == "pixels" and "no labels" in shop.made_from["whitening"]["why"]


def test_words_are_kept_unless_it_is_asked_for(tmp_path, caplog):
    encoder = dual()
    save_encoder(encoder, "words")
    folder = things(tmp_path / "shop")
    auto = Collection.build(folder, "words", whiten="auto")
    assert auto.encoder_name == "words" and "by words" in auto.made_from["whitening"]["why"]
    asked = Collection.build(folder, "words", whiten=True)
    assert "finds nothing by words" in asked.made_from["whitening"]["why"]
    with pytest.raises(ArgumentError, match="no text tower"):
        asked.search(text="a shirt")


@pytest.mark.parametrize("whiten", ["yes please", -3, 2.5])
def test_what_is_no_whitening_is_refused(tmp_path, whiten):
    with pytest.raises(ArgumentError, match="expected True, False, a number of dimensions, or 'auto'"):
        Collection.build(things(tmp_path / "shop", 5), "pixels", whiten=whiten)


@pytest.mark.parametrize(
    ("count", "whiten", "said"),
    [
        (5, True, "needs 32 images to learn from, and shop has 20: leave it out"),
        (10, 30, "whiten=30 needs 60 images to learn from, and shop has 40: take whiten=20 or less"),
        (60, 65, "dim=65: features of length 64"),
    ],
)
def test_too_few_images_or_too_short_vectors_are_said(tmp_path, count, whiten, said):
    with pytest.raises(ArgumentError, match=said):
        Collection.build(things(tmp_path / "shop", count), "pixels", whiten=whiten)


# --- mirror images


def test_the_mirror_image_counts_in_index_and_query(tmp_path):
    folder = things(tmp_path / "shop", 5)
    shop = Collection.build(folder, "pixels", mirror=True)
    image = np.asarray(Image.open(folder / "p3" / "1.png"), np.float32)
    parts = [side.ravel() / np.linalg.norm(side) for side in (image, image[:, ::-1])]
    place = shop.positions(["p3/1.png"])["p3/1.png"]
    expected = (parts[0] + parts[1]) / np.linalg.norm(parts[0] + parts[1])
    np.testing.assert_allclose(shop.index.vectors_at(np.array([place]))[0], expected, atol=2e-3)
    flipped = np.ascontiguousarray(image[None, :, ::-1]).astype(np.uint8)
    assert Collection.open("shop").search(flipped, k=1).scores[0, 0] == pytest.approx(1, abs=2e-3)
    card = Workspace().cards("encoders")["pixels-mirrored"]
    assert shop.encoder_name == "pixels-mirrored" and card["arguments"]["mirror"] is True


def test_mirror_images_stay_until_they_are_taken_back(tmp_path):
    folder = things(tmp_path / "shop", 5)
    Collection.build(folder, "pixels", mirror=True)
    assert Collection.build(folder).encoder_name == "pixels-mirrored"
    assert Collection.build(folder, mirror=False).encoder_name == "pixels"
    Collection.build(folder, "pixels-mirrored")
    assert Collection.build(folder, "pixels").encoder_name == "pixels"


def test_mirrored_and_whitened(tmp_path):
    folder = things(tmp_path / "shop")
    shop = Collection.build(folder, "pixels", mirror=True, whiten=20)
    stored = open_store("pixels-mirrored", "shop").vectors()
    expected = whitened_by_hand(stored, stored, 20)
    np.testing.assert_allclose(vectors_of(shop) @ vectors_of(shop).T, expected @ expected.T, atol=0.01)
    again = Collection.build(folder)
    assert (again.encoder_name, again.made_from["whitening"]["source"]) == ("shop-whitened", "pixels-mirrored")
    image = np.asarray(Image.open(folder / "p7" / "2.png"))[None]
    assert again.search(image, k=1).frame()["path"][0] == "p7/2.png"


def test_an_encoder_that_was_trained_again_is_mirrored_again(tmp_path):
    folder = things(tmp_path / "shop", 12)
    heads = [ProjectionHead(512, 4), ProjectionHead(512, 4)]
    for head in heads:
        whole = attach(Pretrained("torchvision:squeezenet1_0", 32, 32).eval(), head)
        save_encoder(whole, "own", trained_on="something")
        shop = Collection.build(folder, "own", mirror=True)
        assert shop.index.encoder_hash == Workspace().cards("encoders")["own-mirrored"]["hash"]
        assert load_encoder("own-mirrored").source.head.project[0].weight.equal(whole.head.project[0].weight)
