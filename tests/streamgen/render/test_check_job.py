"""Checking a job does none of its work: no prompt is encoded and no cache allocated."""

from pathlib import Path

import pytest

from models.kv_cache import CacheRing
from streamgen import InputError, load_pipeline
from streamgen.render.job_file import parse_jobs
from streamgen.render.sources import check_job
from streamgen.tiny.text import WordPrompts
from tests.tiny_checkpoints import write_checkpoint


def test_a_job_is_checked_without_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_pipeline(write_checkpoint(tmp_path / "model"))
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(
        '{"prompt": "a red circle", "seconds": 1, "set": {"rope": "absolute"}}\n'
        '{"prompt": "a red circle", "seconds": 300, "set": {"rope": "absolute"}}\n',
        encoding="utf-8",
    )
    worked: list[str] = []
    monkeypatch.setattr(CacheRing, "__init__", lambda self, *rest, **more: worked.append("cache"))
    monkeypatch.setattr(WordPrompts, "embed", lambda self, prompt: worked.append("prompt"))
    short, long = parse_jobs(str(jobs))
    check_job(pipeline, short)
    with pytest.raises(InputError, match="with rope=absolute a stream ends after 255"):
        check_job(pipeline, long)
    assert worked == []
