"""Pictures for people: what is painted lies where the prompt says, and nothing else changes."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixel160k.format.prompts import line, mask_prompt, point, region
from pixel160k.show.painting import paint

HEIGHT, WIDTH, SCALE = 96, 128, 4  # 128 pixels are shown as 512


def changed(masks=(), prompts=()):
    """Where painting changed a grey image, bool (height, width) of the picture."""
    grey = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    return (paint(grey, masks, prompts) != 120).any(2)


@given(st.floats(6, WIDTH - 6), st.floats(6, HEIGHT - 6))
def test_a_point_is_centred_where_it_is_marked(x, y):
    rows, columns = np.nonzero(changed(prompts=[point(x, y)]))
    assert (columns.mean() + 0.5) / SCALE == pytest.approx(x, abs=0.5)
    assert (rows.mean() + 0.5) / SCALE == pytest.approx(y, abs=0.5)


def test_lines_and_regions_run_through_their_points():
    along = changed(prompts=[line([(10, 10), (60, 10), (60, 80)])])
    assert along[40, 40:240].all() and along[40:320, 240].all() and not along[60:, :230].any()
    border = changed(prompts=[region((20, 30, 50, 70))])
    assert border[120, 80:200].all() and border[280, 80:200].all() and border[120:280, 80].all()
    assert not border[130:270, 90:190].any() and not border[:110].any()


@pytest.mark.parametrize("as_prompt", [False, True])
def test_a_mask_is_tinted_all_over(as_prompt):
    mask = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (40, 50), 12, 1, -1).astype(bool)
    seen = changed(prompts=[mask_prompt(mask)]) if as_prompt else changed(masks=[mask])
    inside = np.kron(mask, np.ones((SCALE, SCALE), bool))
    assert seen[inside].all()
    assert not seen[~cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))).astype(bool)].any()


def test_the_gripper_lies_over_the_masks_in_its_own_colour():
    mask, gripper = np.zeros((2, HEIGHT, WIDTH), bool)
    mask[20:60, 20:60], gripper[40:80, 40:80] = True, True
    image = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    both, only_mask, only_gripper = (
        paint(image, **marked).astype(int)
        for marked in ({"masks": [mask], "gripper": gripper}, {"masks": [mask]}, {"gripper": gripper})
    )
    inside = SCALE * 50
    assert (
        both[inside, inside, 2] - both[inside, inside, 0] > only_mask[inside, inside, 2] - only_mask[inside, inside, 0]
    )
    assert (both[SCALE * 70, SCALE * 70] == only_gripper[SCALE * 70, SCALE * 70]).all()
    assert (both[SCALE * 30, SCALE * 30] == only_mask[SCALE * 30, SCALE * 30]).all()
    assert (both[SCALE * 40, SCALE * 50] == only_gripper[SCALE * 40, SCALE * 50]).all()  # its outline


def test_the_image_given_stays_as_it_is():
    image = np.full((600, 800, 3), 120, np.uint8)
    painted = paint(image, prompts=[point(400, 300)])
    assert painted.shape == image.shape and (image == 120).all() and (painted != 120).any()
