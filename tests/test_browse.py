"""The page: one file, the shards' own JPEG bytes, one card per episode, nothing unescaped, nothing silently left out."""

import base64
import html
import re

import numpy as np
import pytest
from drawn_shards import ACCEPTED, GRIPPER, TARGET, jpeg, write_drawn_shards

from pixel160k.errors import InputError
from pixel160k.format import shards
from pixel160k.show import browse_page, drawing
from pixel160k.show.sample_html import split_at_target


@pytest.fixture
def directory(tmp_path):
    return write_drawn_shards(tmp_path / "shards")


@pytest.fixture
def page(directory, tmp_path):
    assert browse_page.write_page(directory, tmp_path / "new" / "page.html") == 4
    return (tmp_path / "new" / "page.html").read_text(encoding="utf-8")


def cards(page):
    return re.findall(r'<article class="card".*?</article>', page, re.DOTALL)


def test_is_one_file(page):
    assert not re.search(r"https?:|//[a-z]+\.", page)
    sources = re.findall(r"""(?:src|href|url|srcset|data)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "@import" not in page and "<link" not in page


def test_embeds_the_first_and_the_close_frame_as_they_are(page):
    embedded = [[base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", card)] for card in cards(page)]
    assert embedded == [[jpeg(0), jpeg(2)], [jpeg(10)], [jpeg(20)], [jpeg(30)]]


def test_escapes_what_the_data_says(page):
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; go" in page
    assert "&lt;none&gt;" in page  # a setting


def test_marks_the_target_in_the_instruction(page):
    assert "pick up the  <mark>Red_Cup</mark> " in cards(page)[0]
    assert "<mark>" not in cards(page)[1]
    assert "(no instruction)" in cards(page)[3]


def test_draws_masks_prompts_and_region(page):
    first, second = re.findall(r"<figure>.*?</figure>", cards(page)[0])
    assert f'class="mask target" fill-rule="evenodd" d="{drawing.outline(TARGET)}"' in first
    assert f'class="mask gripper" fill-rule="evenodd" d="{drawing.outline(GRIPPER)}"' in second
    assert first.count('class="region" d="M2 3H28V30H2Z"') == second.count('class="region"') == 1
    assert 'class="prompt" d="M7 15H18V26H7Z"' in first  # the target's half-open box
    x, y = ACCEPTED.prompts.points[0]
    assert f'class="prompt point" d="M{x} {y}h0' in first
    assert "prompt" not in second
    assert not re.search(r'class="(mask|prompt|region)', cards(page)[1])


def test_says_why_there_is_no_close_frame(page):
    assert "The gripper never closes." in cards(page)[1]
    assert "The close step 3 is not in the shard, which holds the valid steps 0–2." in cards(page)[2]


def test_says_scores_and_reasons(page):
    accepted, never_closes, *_ = cards(page)
    for text in ("0.50", "0.25", "supported, 0.75"):
        assert text in accepted
    assert "no_gripper_close" in never_closes and "the gripper never goes from open to closed" in never_closes


def test_buttons_count_the_cards_they_filter(page):
    buttons = re.findall(r'data-kind="(\w*)" data-value="(\w*)".*?<span class="faint">(\d+)</span>', page)
    assert ("", "", "4") in buttons
    for kind, value, count in buttons:
        assert int(count) == sum(not kind or f'data-{kind}="{value}"' in card for card in cards(page))
    assert {value for _, value, _ in buttons} == {"", "accepted", "rejected", "no_gripper_close", "gripper_not_found"}


def test_a_limit_is_said(directory, tmp_path):
    assert browse_page.write_page(directory, tmp_path / "page.html", title="A <title>", limit=3) == 3
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "This page shows the first 3 of 4 episodes." in page
    assert len(cards(page)) == 3
    assert f"<h1>{html.escape('A <title>')}</h1>" in page


def test_no_limit_is_said_where_all_are_shown(page):
    assert "This page shows" not in page


def test_shards_without_an_episode_give_a_page_that_says_so(directory, tmp_path):
    shards.write_index(directory / "index.parquet", [])
    assert browse_page.write_page(directory, tmp_path / "page.html") == 0
    assert "The shards hold no episode." in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_damaged_shards_say_what_to_do(directory, tmp_path):
    tar = directory / "drawn-train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(InputError, match="pixelcli verify"):
        browse_page.write_page(directory, tmp_path / "page.html")
    (directory / "index.parquet").unlink()
    with pytest.raises(InputError, match="build these shards again"):
        browse_page.write_page(directory, tmp_path / "page.html")
    with pytest.raises(InputError, match="pixelcli build-shards"):
        browse_page.write_page(tmp_path / "nowhere", tmp_path / "page.html")


@pytest.mark.parametrize(
    ("instruction", "target", "parts"),
    [
        ("put the Black  bowl down", "black bowl", ("put the ", "Black  bowl", " down")),
        ("pick_up_the_mug_now", "mug", ("pick_up_the_", "mug", "_now")),
        ("the cupboard and the cup", "cup", ("the cupboard and the ", "cup", "")),
        ("lift c++ (book)", "c++ (book)", ("lift ", "c++ (book)", "")),
        ("lift the pan", "pot", ("lift the pan", "", "")),
        ("lift the pan", "", ("lift the pan", "", "")),
    ],
)
def test_finds_the_target_whatever_case_and_spaces(instruction, target, parts):
    assert split_at_target(instruction, target) == parts


def test_an_outline_runs_along_pixel_edges():
    box = np.zeros((6, 8), bool)
    box[1:4, 2:5] = True
    assert drawing.outline(box) == "M2 1L5 1L5 4L2 4Z"
    box[2, 3] = False
    assert drawing.outline(box) == "M2 1L5 1L5 4L2 4ZM3 3L4 3L4 2L3 2Z"
    assert drawing.outline(np.zeros((3, 3), bool)) == ""


@pytest.mark.parametrize("seed", range(5))
def test_an_outline_encloses_the_mask_and_nothing_else(seed):
    """Outer loops run clockwise and holes the other way, so their areas add up to the number of pixels."""
    mask = np.random.default_rng(seed).random((9, 13)) < 0.6  # touches the image's rim, has holes and corners
    area = 0
    for loop in drawing.outline(mask).removesuffix("Z").split("Z"):
        corners = np.array([[int(value) for value in corner.split()] for corner in loop[1:].split("L")])
        x, y = corners.T
        area += (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
    assert area == mask.sum()
