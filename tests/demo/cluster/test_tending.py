"""`python -m demo.cluster`: what it tells of workers, and how it renews them under their viewers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import demo.cluster.__main__ as tending
from tests.demo.cluster.test_fronts import after, closed_with, frames, front
from tests.demo.test_server import START, connect, kind, ticket, until
from tests.demo_hall import Hall


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    hall = Hall(tmp_path)
    hall.add("0")
    hall.add("1")
    monkeypatch.setattr(tending, "_fleet", lambda name: hall)
    yield hall
    for name in hall.names():
        hall.kill(name)


def call(*arguments: str) -> tuple[int, list[str]]:
    done = CliRunner().invoke(tending.app, arguments)
    # web servers that are ended in this process say so, too
    told = [line for line in done.output.splitlines() if "\t" in line or line.startswith("error: ")]
    return done.exit_code, told


def test_status_has_a_line_for_each_worker(hall: Hall) -> None:
    hall.ask("0", "POST", "/worker/drain?seconds=9")
    hall.ask("1", "POST", "/live/session")
    code, lines = call("status")
    assert code == 0
    assert [line.split("\t")[:3] for line in lines] == [
        ["0", "draining", "0 of 2 places"],
        ["1", "ready", "1 of 2 places"],
    ]


@pytest.mark.slow
def test_renewed_workers_are_others_and_streams_go_on_where_they_were(hall: Hall) -> None:
    before = {name: worker.about().address for name, worker in hall.workers.items()}
    with front(hall) as client:
        token = ticket(client)
        with connect(client, token) as socket:
            socket.send_json(START)
            until(socket, frames(20))
            demo_ = hall.demo(token[-1])
            assert call("renew", "--worker", token[-1]) == (0, [f"{token[-1]}\trenewed"])
            until(socket, kind("moved"))
            assert closed_with(socket) == 4404
        row = after(client, token)
        with connect(client, row["session"]) as socket:
            assert until(socket, kind("reopened"))["frame"] == demo_.totals.counters.generated
    assert [name for name in before if hall.workers[name].about().address != before[name]] == [token[-1]]
    assert call("renew")[1] == ["0\trenewed", "1\trenewed"]
    assert call("stop")[0] == 0
    assert hall.dismissed == ["0", "1"]


def test_what_cannot_be_is_told_in_one_line(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("renew", "--worker", "7") == (2, ["error: --worker 7: no such worker, expected one of 0, 1"])
    monkeypatch.undo()
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"})
    code, lines = call("status")
    assert code == 2
    assert lines == [
        "error: RAY_ADDRESS: not set, expected the address of the cluster (auto: this machine's)"
    ]
