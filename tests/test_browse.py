"""The pages: what is asked for and nothing else, nothing unescaped, nothing silently left out; a file holds the shards' own JPEG bytes."""

import base64
import html
import http.client
import json
import re
import socket
import struct
import threading
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from drawn_shards import ACCEPTED, GRIPPER, TARGET, jpeg, write_drawn_shards
from markupsafe import Markup

from cli import main
from pixel160k.errors import InputError
from pixel160k.format import shards
from pixel160k.format.episode_rows import EpisodeRow, as_table
from pixel160k.read.episodes import ShardDirectory
from pixel160k.show import browse_page, drawing
from pixel160k.show.browse_server import BrowseServer
from pixel160k.show.overview import Choice, Overview
from pixel160k.show.sample_html import sample_html, split_at_target


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


def test_a_gripper_that_closes_on_nothing_does_close(directory):
    row = Overview(table_of(0)).rows([0])[0]
    card = browse_page.make_card(replace(row, reason="failed_grasp"), lambda row, step: Markup())
    assert card.missing == "The gripper closes on nothing that it carries."
    sample = ShardDirectory(directory).sample("drawn-train-00000-00001", 0)
    for reason, closes in (("no_gripper_close", "never"), ("failed_grasp", "on nothing that it carries")):
        assert f"<span>{closes}</span>" in sample_html(replace(sample, reason=reason))


def test_says_scores_and_reasons(page):
    accepted, never_closes, *_ = cards(page)
    for text in ("0.50", "0.25", "supported, 0.75"):
        assert text in accepted
    assert "no_gripper_close" in never_closes and "the gripper never goes from open to closed" in never_closes


def test_filters_count_the_cards_that_they_leave(page):
    counted = {}
    for column, options in re.findall(r'<select name="(\w+)".*?>(.*?)</select>', page, re.DOTALL):
        for value, count in re.findall(r'<option value="(\w+)"[^>]*>\w+ \((\d+)\)', options):
            counted[value] = int(count)
            assert int(count) == sum(f'data-{column}="{value}"' in card for card in cards(page))
    assert counted == {"accepted": 1, "rejected": 3, "no_gripper_close": 2, "gripper_not_found": 1}


def test_a_page_of_what_was_asked_for_alone(directory, tmp_path):
    choice = Choice(status="rejected", reason="no_gripper_close")
    assert browse_page.write_page(directory, tmp_path / "page.html", choice=choice) == 2
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all('data-reason="no_gripper_close"' in card for card in cards(page))
    assert "Asked for: status rejected, reason no_gripper_close." in page
    with pytest.raises(InputError, match=r"has the verb 'open'; there are none$"):
        browse_page.write_page(directory, tmp_path / "page.html", choice=Choice(verb="open"))
    none = Choice(status="accepted", reason="no_gripper_close")
    assert browse_page.write_page(directory, tmp_path / "page.html", choice=none) == 0
    assert "No episode is as asked for." in (tmp_path / "page.html").read_text(encoding="utf-8")


def table_of(*scores):
    """A table of episodes with these scores of the mask (0: none), every other one accepted."""
    row = EpisodeRow("", "accepted", "", "", "", "", "cup", 4, 0, 3, -1, 0.0, 0.0, "not_applicable", 0.0)
    rows = [
        replace(row, episode_id=f"drawn-train-00000-{n:05d}", status=("accepted", "rejected")[n % 2], mask_score=score,
                verb=("open", "push")[n % 2], instruction=f"Open the {('RED', 'blue')[n % 2]} lid")
        for n, score in enumerate(scores)
    ]  # fmt: skip
    return as_table(rows)


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        (Choice(), [0, 1, 2, 3, 4]),
        (Choice(worst="mask_score"), [3, 0, 4, 1]),  # the lowest first, equal ones in their order, those without it not
        (Choice(worst="mask_score", status="accepted"), [0, 4]),
        (Choice(worst="evidence_score"), []),  # motion says nothing of any
        (Choice(verb="push"), [1, 3]),
        (Choice(text="CUP red"), [0, 2, 4]),
        (Choice(text="00003"), [3]),
        (Choice(text="% _ ( \\"), []),
        (Choice(reason="there is none"), []),
    ],
)
def test_chooses_and_sorts(choice, chosen):
    assert Overview(table_of(0.5, 0.75, 0.0, 0.25, 0.5)).choose(choice).tolist() == chosen


@pytest.fixture
def server(directory):
    with BrowseServer(directory, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path, host=""):
    """The status and the content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_served_pages_hold_no_frame_and_ask_for_those_in_view(server):
    status, page = ask(server, "/")
    assert status == 200 and len(cards(page)) == 4 and "base64" not in page
    wanted = [html.unescape(path) for path in re.findall(r'data-picture="([^"]+)"', page)]
    assert len(wanted) == 5  # one closes its gripper in the shards
    pictures = [ask(server, path)[1] for path in wanted]
    assert f'd="{drawing.outline(TARGET)}"' in pictures[0] and f'd="{drawing.outline(GRIPPER)}"' in pictures[1]
    assert all(picture.startswith("<figure>") and "base64" in picture for picture in pictures)


def test_served_pages_show_what_the_address_asks_for(server):
    assert len(cards(ask(server, "/?status=rejected&reason=no_gripper_close")[1])) == 2
    assert len(cards(ask(server, "/?text=red+cup&worst=score")[1])) == 1
    assert "No episode is as asked for." in ask(server, "/?status=none")[1]
    for odd in ("/?page=999999999999999", "/?page=-1", "/?page=x&worst=detail", "/?status=%00%ff&unknown=1"):
        assert ask(server, odd)[0] == 200


def test_pages_are_turned(directory, monkeypatch):
    monkeypatch.setattr("pixel160k.show.browse_server.PER_PAGE", 1)
    with BrowseServer(directory, port=0) as server:
        seen = [cards(server.page({"status": "rejected", "page": str(number)}))[0] for number in (1, 2, 3)]
        assert [re.search("0000[0-9]</a>", card)[0][:5] for card in seen] == ["00001", "00002", "00003"]
        page = server.page({"status": "rejected", "page": "2"})
        assert (
            'href="/?status=rejected" rel="prev"' in page and 'href="/?status=rejected&amp;page=3" rel="next"' in page
        )


def test_an_episode_is_shown_with_all_its_steps(server):
    page = ask(server, "/episode?episode=drawn-train-00000-00002")[1]
    wanted = [html.unescape(path) for path in re.findall(r'data-picture="([^"]+)"', page)]
    assert [parse_qs(urlsplit(path).query)["step"] for path in wanted] == [["0"], ["1"], ["2"]]
    (data,) = re.findall(r'base64,([^"]+)', ask(server, wanted[1])[1])
    assert base64.b64decode(data) == jpeg(21)  # whole, as it is


def test_the_server_answers_for_this_machine_and_these_shards_alone(server):
    assert ask(server, "/", host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, "/", host=f"somewhere.else:{server.server_port}")[0] == 403
    assert ask(server, "/", host="[")[0] == 400
    assert "holds no episode 'x&lt;y'" in ask(server, "/episode?episode=x%3Cy")[1]
    for path in ("/manifest.json", "/../../etc/passwd", "/picture?episode=x", "/episode?episode=x", "/picture?step=x"):
        assert ask(server, path)[0] == 404 or "nothing bad" in ask(server, path)[1]
    with pytest.raises(InputError, match="--port"):
        BrowseServer(server.directory.directory, port=server.server_port)


def test_pictures_of_other_shards_have_other_addresses(directory, server):
    """A browser keeps pictures by their addresses, and the next shards are often shown at the same port."""
    before = ask(server, "/")[1]
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"software": "1"}))
    with BrowseServer(directory, port=0) as other:
        found = [set(re.findall(r'data-picture="([^"]+)"', page)) for page in (before, server.page({}), other.page({}))]
    assert found[0] == found[1] and found[0].isdisjoint(found[2])
    old = html.unescape(found[0].pop()).replace("of=", "of=0")
    assert "this page is of other shards" in ask(server, old)[1]


def test_nothing_is_said_of_a_browser_that_leaves(server, monkeypatch, capfd):
    answered = threading.Event()
    monkeypatch.setattr(server, "shutdown_request", lambda request: (request.close(), answered.set()))
    with socket.create_connection(("127.0.0.1", server.server_port)) as left:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets the connection
        left.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answered.wait(30) and not capfd.readouterr().err


def test_the_command_says_where_its_pages_are_and_ends_by_a_key(directory, monkeypatch):
    def interrupted(server):
        assert "worst=score" in server.address and len(cards(server.page({"worst": "score"}))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(BrowseServer, "serve_forever", interrupted)
    result = CliRunner().invoke(main, ["browse", "--shards", str(directory), "--worst", "score", "--port", "0"])
    assert result.exit_code == 0, result.output
    assert re.search(r"^4 episodes: open http://127\.0\.0\.1:\d+/\?worst=score in a browser", result.output)


def test_damage_is_shown_in_its_place(directory, server):
    tar = directory / "drawn-train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    assert len(cards(ask(server, "/")[1])) == 4
    assert "pixelcli verify" in ask(server, "/picture?episode=drawn-train-00000-00003&step=0")[1]


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
