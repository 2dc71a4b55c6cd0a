"""What comes with the page: its head, its files and the model card, and nothing from elsewhere."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import demo.page
from demo import assets
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
    """All of it as the browser reads it, unpacked; the markup and the styles come with Gradio's page."""
    files = assets.sent()
    whole = sum(map(len, files.values())) + len(assets.stage().encode()) + len(assets.styles().encode())
    assert 100_000 < whole <= 150_000
    with serving() as client:
        packed = 0
        for name, data in files.items():
            with client.stream("GET", f"/live/static/{name}") as answer:
                assert answer.status_code == 200
                packed += sum(len(part) for part in answer.iter_raw())
            again = client.get(f"/live/static/{name}", headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b""), "what a browser has is not sent again"
            assert len(data) <= (STATIC / name).stat().st_size
        assert 30_000 < packed <= 60_000
        assert client.get("/live/static/types.js").status_code == 404
        assert client.post("/live/static/main.js").status_code == 405


def test_what_is_sent_says_what_was_written() -> None:
    """The minifier parses scripts; a text with a script inside would lead it astray without a word."""
    for name, data in assets.sent().items():
        if not name.endswith(".js"):
            continue
        sent, source = data.decode(), (STATIC / name).read_text(encoding="utf-8")
        source = re.sub(r"/\*\*.*?\*/", "", source, flags=re.DOTALL)
        source = re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE)
        assert "</script" not in source, name
        assert not re.search(r"^\s*(//|\*)", sent, flags=re.MULTILINE), name
        for text in re.findall(r'"([^"\n`$\\]*)"', source):
            assert text in sent, (name, text)
        # what people read, inside templates as well
        for text in re.findall(r"\b[A-Z][a-z]+(?: [a-z]+){3,}", source):
            assert text in sent, (name, text)
        assert sent.count("export") == source.count("export"), name
    assert " on, without going back." in assets.sent()["lane.js"].decode(), "a template within another"


def test_all_scripts_are_fetched_while_gradio_starts() -> None:
    for root in ("", "/below"):
        app = build_app(FakeEngine(), Options(root_path=root))
        with TestClient(app, headers={"host": "localhost:7860"}) as client:
            page = client.get("/").text
            head = page[: page.index("</head>")]
            found = re.findall(r'<link rel="modulepreload" href="([^"]*)">', head)
            prefix = "/below/" if root else ""
            assert found == [f"{prefix}live/static/{name}" for name in assets.scripts()]
            assert len(found) > 30


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
