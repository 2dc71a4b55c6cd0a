"""What comes with the page: its head, its files and the model card, and nothing from elsewhere."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import demo.page
from demo.app import build_app
from demo.fake_engine import FakeEngine
from demo.page import readable_card
from demo.server import Options
from tests.tiny_models import assert_needs

STATIC = Path(demo.page.__file__).parent / "static"


def serving() -> TestClient:
    return TestClient(build_app(FakeEngine()), headers={"host": "localhost:7860"})


def test_the_head_of_the_page_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        with serving() as client:
            page = client.get("/").text
            head = page[: page.index("</head>")]
            assert "{url}" not in head
            assert not re.search(r'<meta[^>]*content="[^"]*[Gg]radio', head)
            assert head.count("<title>") == 1
            assert "<title>streamgen live</title>" in head
            icon = client.get("/favicon.ico")
            assert icon.status_code == 200
            assert b"0f766e" in icon.content, "our own"
            assert client.get("/config").json()["version"], "all else is passed on"

    assert_needs(check, monkeypatch, demo.page, "own_head", lambda page: page)


def test_no_model_card_links_to_what_the_page_does_not_serve() -> None:
    cards = sorted((STATIC.parents[1] / "streamgen" / "weights").glob("*/README.md"))
    assert cards
    for card in cards:
        text = readable_card(card.read_text(encoding="utf-8"))
        targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", text)
        assert all(target.startswith(("https://", "http://", "#")) for target in targets), card
    assert readable_card("see [that](../x.md) and [this](https://a.b)") == "see that and [this](https://a.b)"


def test_the_page_is_small() -> None:
    """All of its files as they are sent; the page and its styles come with Gradio's."""
    with serving() as client:
        sent = 0
        for file in STATIC.iterdir():
            with client.stream("GET", f"/live/static/{file.name}") as answer:
                assert answer.status_code == 200
                sent += sum(len(part) for part in answer.iter_raw())
        assert 30_000 < sent <= 150_000


def test_all_scripts_are_fetched_while_gradio_starts() -> None:
    for root in ("", "/below"):
        app = build_app(FakeEngine(), Options(root_path=root))
        with TestClient(app, headers={"host": "localhost:7860"}) as client:
            page = client.get("/").text
            head = page[: page.index("</head>")]
            found = re.findall(r'<link rel="modulepreload" href="([^"]*)">', head)
            prefix = "/below/" if root else ""
            assert found == [f"{prefix}live/static/{file.name}" for file in sorted(STATIC.glob("*.js"))]


def test_the_page_comes_with_its_scripts_and_nothing_from_elsewhere() -> None:
    with serving() as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "streamgen live" in page.text
        script = client.get("/live/static/main.js")
        assert script.status_code == 200
        assert "javascript" in script.headers["content-type"]
        for file in STATIC.iterdir():
            if file.suffix == ".webp":
                continue
            text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, file.name
