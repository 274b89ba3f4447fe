"""Codes on disk equal the quantiser's, survive a kill, and refuse another quantiser or data set."""

import threading

import numpy as np
import pytest
from stand_in import StandIn

from vipra_ros.config import ConfigError
from vipra_ros.learning.tokenise import quantiser_hash, tokenise
from vipra_ros.learning.vq import load_vq
from vipra_ros.policy.pictures import resize


@pytest.fixture(scope="module")
def vq(quantiser):
    return load_vq(quantiser)


def test_codes_equal_the_quantisers(data, vq, tmp_path):
    codes = tokenise(data, vq, tmp_path, ("front",), quantiser_hash(vq))
    images = np.stack([image for _, image in data.frames("front")])
    assert codes.shape == (len(data), 1, vq.config.codes_per_frame) and codes.dtype == np.int16
    assert np.array_equal(codes[:, 0], vq.encode(images).numpy())


def test_pictures_of_another_size_are_scaled_as_the_policy_scales_them(vq, tmp_path):
    class Wide(StandIn):
        def frames(self, camera, start=0, stop=None):
            for i, image in super().frames(camera, start, stop):
                yield i, np.pad(image.repeat(3, 0).repeat(3, 1), ((0, 0), (7, 7), (0, 0)))

    codes, wide = tokenise(Wide(), vq, tmp_path, ("front",), "id"), Wide()
    images = np.stack([resize(image, vq.config.image_size) for _, image in wide.frames("front")])
    assert np.array_equal(codes[:, 0], vq.encode(images).numpy())


def test_a_killed_run_goes_on(vq, tmp_path):
    class Dying(StandIn):
        left = 80

        def frames(self, camera, start=0, stop=None):
            for item in super().frames(camera, start, stop):
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
                yield item

    dying = Dying()
    with pytest.raises(KeyboardInterrupt):
        tokenise(dying, vq, tmp_path, ("front",), "id")
    dying.left, whole = 10**6, StandIn()
    codes = tokenise(dying, vq, tmp_path, ("front",), "id")
    # It began again behind the first block of 64, not at the start.
    assert dying.left == 10**6 - (len(whole) - 64)
    assert np.array_equal(codes, tokenise(whole, vq, tmp_path / "fresh", ("front",), "id"))


def test_two_runs_that_share_the_folder_code_once(vq, tmp_path):
    both, read = threading.Event(), []

    class Shared(StandIn):
        def frames(self, camera, start=0, stop=None):
            both.wait(2.0)  # the other run is here by then, if it may
            for item in super().frames(camera, start, stop):
                read.append(item[0])
                yield item

    def other():
        threading.Timer(0.3, both.set).start()
        tokenise(Shared(), vq, tmp_path, ("front",), "id")

    thread = threading.Thread(target=other)
    thread.start()
    codes = tokenise(Shared(), vq, tmp_path, ("front",), "id")
    thread.join()
    assert sorted(read) == list(range(len(codes)))


def test_codes_of_something_else_are_refused(data, vq, tmp_path):
    tokenise(data, vq, tmp_path, ("front",), "one")
    with pytest.raises(ConfigError, match="another data set or quantiser"):
        tokenise(data, vq, tmp_path, ("front",), "two")
    with pytest.raises(ConfigError, match="another data set or quantiser"):
        tokenise(StandIn(episodes=6), vq, tmp_path, ("front",), "one")
