"""An encoder around another one: the mirror image, a whitening head."""

import numpy as np
import pytest
import torch
from makers.networks import pictures, pretrained, same_in_a_new_process, small
from makers.texts import dual

from rectrio_lib.encoders.adapted import adapted
from rectrio_lib.encoders.base import RawPixels
from rectrio_lib.encoders.pretrained import ProjectionHead
from rectrio_lib.encoders.registry import fingerprint, load_encoder, save_encoder

pytestmark = pytest.mark.usefixtures("full_precision")


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("source", [RawPixels(3, 12), pretrained(size=12)], ids=["pixels", "pretrained"])
def test_the_mirror_image_counts_as_much_as_the_image(source):
    images = pictures(4, 3)
    whole = adapted(source, mirror=True)
    expected = unit(source.encode(images) + source.encode(np.ascontiguousarray(images[..., ::-1])))
    np.testing.assert_allclose(whole.encode(images), expected, atol=1e-5)
    np.testing.assert_allclose(whole.encode(images[..., ::-1].copy()), expected, atol=1e-5)
    assert whole.dim == source.dim and whole.preprocessing == source.preprocessing


def test_a_head_stands_on_the_vectors_of_the_mean():
    source, images = small(), pictures(4)
    torch.manual_seed(0)
    head = ProjectionHead(10, 3).eval()
    whole = adapted(source, mirror=True, head=head)
    both = unit(source.encode(images) + source.encode(np.ascontiguousarray(images[..., ::-1])))
    np.testing.assert_allclose(whole.encode(images), head.encode(both), atol=1e-5)
    assert whole.dim == 3


def test_saved_and_opened_in_a_new_process_it_gives_the_same_vectors(tmp_path):
    torch.manual_seed(0)
    whole = adapted(small(), mirror=True, head=ProjectionHead(10, 3))
    same_in_a_new_process(whole, pictures(4), tmp_path)


def test_each_of_its_parts_changes_the_fingerprint():
    torch.manual_seed(0)
    source, heads = small(), [ProjectionHead(10, 3), ProjectionHead(10, 3)]
    kinds = [source, adapted(source), adapted(source, True), *(adapted(source, True, head) for head in heads)]
    assert len({fingerprint(encoder) for encoder in kinds}) == len(kinds)


def test_words_are_read_as_before_but_not_with_a_head():
    source = dual()
    mirrored, headed = adapted(source, mirror=True), adapted(source, head=ProjectionHead(source.dim, 3))
    save_encoder(mirrored, "mirrored")
    for encoder in (mirrored, load_encoder("mirrored")):
        np.testing.assert_allclose(encoder.encode_texts(["a shirt"]), source.encode_texts(["a shirt"]), atol=1e-6)
    with pytest.raises(ValueError, match="cannot read texts"):
        headed.encode_texts(["a shirt"])


def test_random_weights_stay_random():
    source = pretrained("clip:ViT-B/32", size=64)
    assert adapted(source, mirror=True).stand_in is True and adapted(small()).stand_in is False
