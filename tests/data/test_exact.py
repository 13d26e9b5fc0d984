from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from modnet.data import exact
from modnet.data.corruption_blurs import disk, line
from modnet.data.corruptions import _areas, _poisson
from modnet.data.jpeg import _LUMINANCE, coded, scaled
from modnet.data.warp import ONE, affine, resampled
from modnet.randomness import Key


def test_divided_rounds_half_up() -> None:
    values = torch.tensor([-3, -2, -1, 0, 1, 2, 3, 5])
    assert exact.divided(values, 2).tolist() == [-1, -1, 0, 0, 1, 1, 2, 3]
    assert exact.divided(values, 3).tolist() == [-1, -1, 0, 0, 0, 1, 1, 2]


def test_filters_of_a_flat_image_leave_it_flat() -> None:
    flat = torch.full((1, 2, 6, 7), 93, dtype=torch.int32)
    assert torch.equal(exact.blurred(flat, (1, 2, 3, 2, 1)), flat)
    assert torch.equal(exact.filtered(flat, disk(2.3)), flat)
    assert torch.equal(exact.filtered(flat, line(5.5, 3)), flat)


def test_separable_and_plain_filters_agree() -> None:
    values = (Key.of(0).bits(torch.arange(2), 3 * 8 * 9) & 255).view(2, 3, 8, 9).to(torch.int32)
    square = [[a * b for b in (1, 2, 1)] for a in (1, 2, 1)]
    assert torch.equal(exact.blurred(values, (1, 2, 1)), exact.filtered(values, square))


def test_otsu_parts_two_tones() -> None:
    tones = torch.tensor([[10, 12, 11, 200, 210, 205], [0, 0, 255, 255, 0, 255]])
    low = exact.otsu(tones.view(2, 1, 2, 3).to(torch.int32))
    assert 12 <= int(low[0]) < 200
    assert 0 <= int(low[1]) < 255


def test_normal_numbers_are_normal() -> None:
    values = exact.normal(Key.of(3), torch.arange(100), (1000,)).double() / 4096
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 1) < 0.01


def test_poisson_table_has_the_mean_of_the_value_and_its_variance() -> None:
    table = _poisson(25.0).view(256, -1).double()
    for value in (0, 30, 100):
        photons = table[value] * 25 / 255
        assert float(photons.mean()) == pytest.approx(value * 25 / 255, abs=0.05)
        assert float(photons.var()) == pytest.approx(value * 25 / 255, rel=0.05, abs=1e-9)


def test_areas_share_every_pixel_out() -> None:
    matrix = _areas(10, 3)
    assert matrix.sum(1).tolist() == [10.0] * 3
    assert matrix.sum(0).tolist() == [3.0] * 10


def test_stretched_keeps_the_corners_and_lies_between() -> None:
    grid = torch.tensor([[[0, 10], [20, 40]]])
    drawn = exact.stretched(grid, 5, 7)[0]
    corners = [drawn[0, 0], drawn[0, -1], drawn[-1, 0], drawn[-1, -1]]
    assert [int(c) // 65536 for c in corners] == [0, 10, 20, 40]
    assert int(drawn[2, 3]) == 65536 * 70 // 4


def test_resampling_at_the_pixels_is_the_identity_and_between_them_the_mean() -> None:
    image = (Key.of(4).bits(torch.arange(2), 3 * 5 * 6) & 255).view(2, 3, 5, 6).to(torch.uint8)
    down, right = affine(torch.eye(3)[None, :2].expand(2, -1, -1), 5, 6)
    assert torch.equal(resampled(image, down, right), image)
    between = resampled(image, down[:, :, :-1], right[:, :, :-1] + ONE // 2)
    pairs = image[..., :-1].int() + image[..., 1:].int()
    assert torch.equal(between.int(), (pairs + 1) // 2)
    far = right + 100 * ONE
    assert not resampled(image, down, far).any()
    assert torch.equal(resampled(image, down, far, edge=True)[..., 0], image[..., -1])


@pytest.mark.parametrize("quality", [50, 30, 8])
def test_jpeg_is_what_a_codec_gives(quality: int) -> None:
    rows, columns = torch.arange(32)[:, None], torch.arange(40)
    grain = Key.of(6).bits(torch.arange(32), 40) & 31
    image = (60 + 60 * ((rows // 5 + columns // 7) % 2) + rows + columns + grain).to(torch.uint8)
    ours = coded(image[None, None].long(), scaled(_LUMINANCE, quality))[0, 0]
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "jpeg", quality=quality)
    theirs = torch.from_numpy(np.array(Image.open(buffer))).long()
    # their transform rounds elsewhere, so now and then a wave falls into the next step
    assert float((ours == theirs).double().mean()) > 0.6
    assert float((ours - theirs).abs().double().mean()) < 0.5
    assert float((ours - image.long()).abs().double().mean()) > 1
