"""Reading clips and images, and writing video, with every way in which files go wrong."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import streamgen.video.write as video_write
from streamgen.errors import InputError
from streamgen.video import decode_child, decode_worker
from streamgen.video.decode_worker import Request, cover, decode, shown_at
from streamgen.video.read import read_clip, read_image
from streamgen.video.write import FrameMemorySink, FrameSink, NullSink, VideoFileSink

REPOSITORY = Path(__file__).resolve().parents[3]
FRAMES = 40


def moving(frames: int = FRAMES, height: int = 64, width: int = 64) -> np.ndarray:
    """A picture that drifts, with the frame's number as the brightness of its left half."""
    y, x = np.mgrid[0:height, 0:width]
    t = np.arange(frames)[:, None, None]
    video = np.stack([(x * 2 + t) % 256, (y * 2 + 0 * t) % 256, (x + y + 3 * t) % 256], axis=-1)
    video[:, :, : width // 2] = np.arange(frames)[:, None, None, None] * 4 % 256
    return video.astype(np.uint8)


def write(path: Path, frames: np.ndarray, fps: int | Fraction = 16, lossless: bool = True) -> Path:
    with VideoFileSink(path, *frames.shape[1:3], fps=fps, lossless=lossless) as sink:
        for start in range(0, len(frames), 7):
            sink.write(frames[start : start + 7])
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", moving())


def readable_frames(path: Path) -> int:
    """Frames PyAV decodes before the end or the first error."""
    count = 0
    with contextlib.suppress(av.FFmpegError), av.open(str(path)) as container:
        for _ in container.decode(video=0):
            count += 1
    return count


def test_lossless_video_comes_back_exactly(clip: Path) -> None:
    np.testing.assert_array_equal(read_clip(clip, 16, 64, 64, 1000), moving())
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (FRAMES, 16)


def test_default_video_is_close_and_ordinary(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [128, 128, 128]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 32, 48, 3))
    path = write(tmp_path / "a.mp4", frames, lossless=False)
    back = read_clip(path, 16, 32, 48, 10)
    assert np.abs(back.astype(int) - frames).max() <= 4
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 1)


@pytest.mark.parametrize("lossless", [True, False])
def test_decord_and_pyav_read_the_same(tmp_path: Path, lossless: bool) -> None:
    pytest.importorskip("decord")
    path = write(tmp_path / "a.mp4", moving(), fps=24, lossless=lossless)
    request = Request(str(path), 16.0, 40, 48, 100)
    first = decode_worker._with_decord(request, decode_worker._probe(request.path))
    assert first is not None
    np.testing.assert_array_equal(first, decode(request, "pyav"))


def test_frames_are_chosen_by_their_times() -> None:
    starts = np.arange(10) / 24
    assert shown_at(starts, 10 / 24, 16, 100).tolist() == [0, 1, 3, 4, 6, 7, 9]
    assert shown_at(np.arange(4) / 8, 0.5, 16, 100).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shown_at(np.array([0.0, 0.063, 0.125]), 0.188, 16, 100).tolist() == [0, 1, 2]
    assert shown_at(np.array([0.0, 1.0, 1.1]), 1.2, 5, 100).tolist() == [0, 0, 0, 0, 0, 1]
    assert shown_at(np.zeros(1), 0.0, 16, 100).tolist() == [0]
    assert shown_at(starts, 10 / 24, 16, 3).tolist() == [0, 1, 3]


@pytest.mark.parametrize(("suffix", "rate"), [("mkv", 30), ("avi", 16), ("mp4", Fraction(24000, 1001))])
def test_resampling_of_real_files(tmp_path: Path, suffix: str, rate: int | Fraction) -> None:
    frames = moving()
    path = tmp_path / f"a.{suffix}"
    encode(path, frames, rate)
    back = read_clip(path, 16, 64, 64, 100)
    wanted = frames[shown_at(np.arange(FRAMES) / float(rate), FRAMES / float(rate), 16, 100)]
    assert len(back) == len(wanted)
    shown = back[:, :, :28].mean(axis=(1, 2, 3)) / 4
    assert np.abs(shown - wanted[:, 0, 0, 0] / 4).max() < 0.5


def test_variable_rate_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    encode(path, moving(6), 10, times=[0, 1, 2, 10, 11, 12])
    for backend in ("decord", "pyav"):
        back = decode(Request(str(path), 10.0, 64, 64, 100), backend)
        shown = np.rint(back[:, :, :28].mean(axis=(1, 2, 3)) / 4).astype(int)
        assert shown.tolist() == [0, 1] + [2] * 8 + [3, 4, 5]


def test_max_frames_and_sizes(clip: Path) -> None:
    assert read_clip(clip, 16, 32, 32, 5).shape == (5, 32, 32, 3)
    # Wider than the clip: the top and the bottom are cropped.
    wide = read_clip(clip, 16, 32, 64, 1)[0]
    np.testing.assert_array_equal(wide, moving()[0, 16:48])


def test_rotation_is_applied(tmp_path: Path) -> None:
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    frames[:, :32, :32, 0] = 255
    path = write(tmp_path / "a.mp4", frames)
    content = bytearray(path.read_bytes())
    matrix = content.rindex(b"tkhd") + 4 + 4 + 20 + 8 + 8
    quarter = [0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30]
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, signed=True) for value in quarter)
    path.write_bytes(content)
    for backend in ("decord", "pyav"):
        back = decode(Request(str(path), 16.0, 64, 64, 1), backend)[0]
        assert [back[8, 8, 0], back[8, 56, 0], back[56, 8, 0]] == [0, 255, 0], backend


def test_cover_keeps_proportions() -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255
    # The filter reaches a little over the edge of the crop.
    assert cover(picture, 50, 50)[:, 2:-2].min() == 255
    # Pixels three times as wide as high: what is 100 x 300 is shown as 100 x 900.
    assert cover(picture, 50, 50, pixel_aspect=3.0)[:, 2:-2].min() == 255
    assert cover(picture, 50, 450, pixel_aspect=3.0)[:, 0].max() == 0
    assert cover(picture, 31, 17).shape == (31, 17, 3)


def encode(path: Path, frames: np.ndarray, rate: int | Fraction, times: list[int] | None = None) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "4", "preset": "veryfast"}
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index if times is None else times[index], 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for index in range(8):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("folder", "not a file"),
        ("zero", "the file is empty"),
        ("text", "not a video"),
        ("ansi", "not a video"),
        ("playlist", "not a video"),
        ("head", "not a video, or one cut off"),
        ("faststart", "cut off: only .* of 40 frames"),
        ("damaged", "damaged or cut off|none of its frames"),
        ("audio", "has no video, only audio"),
        ("no frames", "has no video|zero frames"),
    ],
)
def test_bad_clips_are_one_clear_line(tmp_path: Path, clip: Path, kind: str, message: str) -> None:
    path = tmp_path / ("a.txt" if kind == "ansi" else "a.m3u8" if kind == "playlist" else "a.mp4")
    content = clip.read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind == "zero":
        path.touch()
    elif kind in ("text", "ansi"):
        path.write_text("this is no video\n" * 100)
    elif kind == "playlist":
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n")
    elif kind == "head":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "faststart":
        index_first = {"movflags": "faststart"}
        with av.open(str(clip)) as source, av.open(str(path), "w", options=index_first) as copy:
            stream = copy.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    copy.mux(packet)
        path.write_bytes(path.read_bytes()[: len(content) // 2])
    elif kind == "damaged":
        start = content.index(b"mdat") + 4
        path.write_bytes(content[:start] + b"\xff" * 40_000 + content[start + 40_000 :])
    elif kind == "audio":
        audio_only(path)
    elif kind == "no frames":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=16)
            stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
            container.start_encoding()
    with pytest.raises(InputError, match=message) as caught:
        read_clip(path, 16, 64, 64, 100)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_clip_cut_off_behind_what_is_needed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    encode(path, moving(), 16)
    path.write_bytes(path.read_bytes()[:-2000])
    assert len(read_clip(path, 16, 64, 64, 4)) == 4


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    script = tmp_path / "worker.py"
    monkeypatch.setattr(decode_child, "WORKER", script)
    return script


@pytest.mark.timed
def test_a_decoder_that_hangs_is_left_behind(clip: Path, worker: Path) -> None:
    worker.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"decoding took longer than 0\.6 s"):
        read_clip(clip, 16, 64, 64, 4, timeout=0.6)
    # the process would sleep for a minute, and no signal but one ends it
    assert time.monotonic() - began < 40


@pytest.mark.slow
@pytest.mark.timed
def test_pyav_reads_where_decord_hangs_or_crashes(clip: Path, worker: Path) -> None:
    pytest.importorskip("decord")
    for fate in ("time.sleep(60)", "os.abort()", "sys.exit(7)"):
        worker.write_text(
            "import json, os, runpy, sys, time\n"
            f"if json.loads(sys.argv[1])['backend'] == 'decord': {fate}\n"
            f"runpy.run_path({decode_worker.__file__!r}, run_name='__main__')\n"
        )
        frames = read_clip(clip, 16, 64, 64, 100, timeout=6.0 if "sleep" in fate else 60.0)
        np.testing.assert_array_equal(frames, moving())


def test_a_decoder_that_crashes_is_one_clear_line(clip: Path, worker: Path) -> None:
    worker.write_text("import os\nos.abort()\n")
    with pytest.raises(InputError, match=r"cannot be decoded \(the decoder crashed"):
        read_clip(clip, 16, 64, 64, 4)


def test_decord_is_imported_by_no_module() -> None:
    code = "import sys, streamgen.video.read, streamgen.video.write; sys.exit('decord' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_images_of_many_kinds(tmp_path: Path) -> None:
    picture = moving(1)[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 64, 64), picture)
    Image.fromarray(moving(1, 33, 65)[0]).save(tmp_path / "odd.png")
    assert read_image(tmp_path / "odd.png", 64, 64).shape == (64, 64, 3)
    clear = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", 8, 8).min() == 255
    Image.fromarray(np.full((8, 8), 257 * 90, np.uint16)).save(tmp_path / "deep.png")
    assert np.unique(read_image(tmp_path / "deep.png", 8, 8)).tolist() == [90]
    exif = Image.Exif()
    exif[0x0112] = 6
    tall = np.zeros((8, 8, 3), np.uint8)
    tall[:4] = 255
    Image.fromarray(tall).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 8, 8)[:, 4:].min() == 255


def test_bad_images_are_one_clear_line(tmp_path: Path, clip: Path) -> None:
    Image.fromarray(moving(1)[0]).save(tmp_path / "cut.png")
    cut = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "text.png").write_text("text")
    for path in (tmp_path / "cut.png", tmp_path / "text.png", clip):
        with pytest.raises(InputError, match="cannot be read as an image"):
            read_image(path, 64, 64)
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "missing.png", 64, 64)


def test_sinks_count_and_digest_alike(tmp_path: Path) -> None:
    frames = moving(9)
    sinks: list[FrameSink] = [NullSink(), FrameMemorySink(), VideoFileSink(tmp_path / "a.mp4", 64, 64, 16)]
    for sink, step in zip(sinks, (1, 4, 9), strict=True):
        with sink:
            for start in range(0, 9, step):
                sink.write(frames[start : start + step])
    assert {sink.frames_written for sink in sinks} == {9}
    assert len({sink.sha256 for sink in sinks}) == 1
    assert isinstance(sinks[1], FrameMemorySink)
    np.testing.assert_array_equal(sinks[1].frames, frames)


def test_sinks_refuse_other_frames(tmp_path: Path) -> None:
    sink = FrameMemorySink()
    with pytest.raises(ValueError, match="frames must be uint8"):
        sink.write(np.zeros((1, 4, 4, 3), np.float32))
    sink.write(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="frames must stay"):
        sink.write(np.zeros((1, 4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="must be even"):
        VideoFileSink(tmp_path / "a.mp4", 63, 64, 16)
    with pytest.raises(RuntimeError, match="not open"):
        VideoFileSink(tmp_path / "a.mp4", 4, 4, 16).write(np.zeros((1, 4, 4, 3), np.uint8))


def test_an_exception_leaves_a_playable_part_and_no_final_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    sink = VideoFileSink(path, 64, 64, 16)

    def interrupted() -> None:
        with sink:
            sink.write(moving(20))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4.part"]
    assert readable_frames(sink.part_path) == 20


def test_nothing_written_leaves_nothing(tmp_path: Path) -> None:
    with VideoFileSink(tmp_path / "a.mp4", 64, 64, 16):
        pass
    with contextlib.suppress(RuntimeError), VideoFileSink(tmp_path / "a.mp4", 64, 64, 16):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("movflags", "least", "most"), [("hybrid_fragmented", 112, 160), ("faststart", 0, 0)]
)
def test_a_killed_writer_leaves_a_readable_part(tmp_path: Path, movflags: str, least: int, most: int) -> None:
    path = tmp_path / "a.mp4"
    code = """
        import sys, time
        import numpy as np
        import streamgen.video.write as video_write
        from streamgen.video.write import VideoFileSink
        video_write._MOVFLAGS = sys.argv[2]
        noise = np.random.default_rng(0).integers(0, 255, (160, 64, 64, 3), np.uint8)
        with VideoFileSink(sys.argv[1], 64, 64, 16) as sink:
            for start in range(0, 160, 4):
                sink.write(noise[start : start + 4])
            print("written", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), movflags]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        os.kill(child.pid, signal.SIGKILL)
    assert not path.exists()
    # 160 frames are ten groups of 16; the encoder looks ahead, and the last fragment is not complete. An MP4
    # whose index is written at the end is the counter-example.
    assert least <= readable_frames(tmp_path / "a.mp4.part") <= most


ENCODING = """
import sys
import av, numpy as np
from streamgen.video.write import VideoFileSink

frames = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)
made = set()
for _ in range(400):
    with VideoFileSink(sys.argv[1], 32, 32, 16) as sink:
        for part in (frames[:4], frames[4:8], frames[8:]):
            sink.write(part)
    with av.open(sys.argv[1]) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    made.add(np.stack(pictures).tobytes())
print(len(made))
"""


@pytest.mark.slow
def test_the_same_frames_make_the_same_video(tmp_path: Path) -> None:
    """x264 left to itself made 39 different ones of 400, in a process without torch; else seldom any."""
    command = [sys.executable, "-c", ENCODING, str(tmp_path / "a.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    code = """
        import resource, sys
        import numpy as np
        from streamgen.errors import InputError
        from streamgen.video.write import VideoFileSink
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 64, 3), np.uint8)
        for limit in (10, 20_000, 60_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                with VideoFileSink(sys.argv[1], 64, 64, 16) as sink:
                    sink.write(noise)
            except InputError as error:
                print(error)
    """
    path = tmp_path / "a.mp4"
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{path}: cannot be written (file too large)"] * 3
    assert not path.exists()


@pytest.mark.parametrize("stage", ["open", "write", "close"])
def test_no_space_is_reported_at_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "a.mp4"

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def render() -> None:
        if stage == "open":
            monkeypatch.setattr(Path, "open", full)
        with VideoFileSink(path, 64, 64, 16) as sink:
            sink.write(moving(8))
            if stage == "write":
                monkeypatch.setattr(video_write._CarefulFile, "_put", full)
                sink.write(moving(200))
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(InputError, match=r"cannot be written \(the disk is full\)") as caught:
        render()
    assert str(caught.value).count("\n") == 0
    assert not path.exists()


def test_unwritable_places_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"), VideoFileSink(tmp_path / "no/a.mp4", 64, 64, 16):
        pass
    with pytest.raises(InputError, match="is a folder"), VideoFileSink(tmp_path, 64, 64, 16):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), VideoFileSink(tmp_path / "file/a", 64, 64, 16):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
