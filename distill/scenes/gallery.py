"""Pictures of the procedural world for ``docs/world.md``.

``python -m distill.scenes.gallery -o docs/media/world`` draws all of them anew.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .camera import CAMERA_KINDS
from .config import SceneConfig
from .generator import SceneBatch, SceneGenerator
from .render import Renderer, RenderInput
from .sheet import contact_sheet
from .vocabulary import BACKGROUNDS, COLOURS, HELD_OUT, MOTIONS, SHAPES, SIZES

_ZOOM = 2
_FRAMES = 65
_COLUMNS = 8
_SEED = 3
_GAP = 4
_LINE = 13
_INK = (235, 235, 235)
_GROUND = (24, 24, 24)
#: Frames of a track that its tail shows.
_TAIL = 9


def write_gallery(folder: Path) -> list[Path]:
    """Draws all sheets as PNGs into ``folder``, which is made if need be; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sheets = {
        "shapes": _shapes,
        "backgrounds": _backgrounds,
        "motions": _motions,
        "objects": _objects,
        "changes": _changes,
        "drags": _drags,
        "camera": _camera,
    }
    paths = []
    for name, draw in sheets.items():
        path = folder / f"{name}.png"
        draw(path)
        with Image.open(path) as picture:
            picture.load()
            picture.save(path, optimize=True)
        paths.append(path)
    return paths


def _still(
    renderer: Renderer, shape: Sequence[int], colour: Sequence[int], size: Sequence[int], background: int
) -> Tensor:
    """One object in the middle of each of B pictures, uint8 (B, H, W, 3)."""
    batch = len(shape)
    pair = torch.tensor([shape, colour]).view(2, batch, 1, 1).expand(-1, -1, 2, -1)
    middle = torch.full((batch, 1, 1, 2), 32.0)
    scene = RenderInput(
        background=torch.full((batch, 2), background),
        texture=torch.randint(0, 1 << 20, (batch, 2, 4), generator=torch.Generator().manual_seed(_SEED)),
        fade=torch.zeros(batch, 1),
        count=torch.ones(batch, dtype=torch.long),
        shape=pair[0],
        colour=pair[1],
        size=torch.tensor(size)[:, None],
        jitter=torch.ones(batch, 1, dtype=torch.long),
        positions=middle,
        turn=torch.tensor([1.0, 0.0]).expand(batch, 1, 2),
        shift=torch.zeros(batch, 1, 2),
        scale=torch.ones(batch, 1),
    )
    return renderer.draw(scene)[:, 0]


def _shapes(path: Path) -> None:
    """Shapes by colours in sizes that take turns; pairs that no stage trains on are framed."""
    pairs = [(shape, colour) for shape in range(len(SHAPES)) for colour in range(len(COLOURS))]
    sizes = [(shape + colour) % len(SIZES) for shape, colour in pairs]
    renderer = Renderer(SceneConfig(texture_period=1), torch.device("cpu"))
    pictures = _still(
        renderer, [s for s, _ in pairs], [c for _, c in pairs], sizes, BACKGROUNDS.index("sand")
    )
    images, titles = [], []
    for picture, (shape, colour) in zip(pictures, pairs, strict=True):
        image = _image(picture, 1)
        if (COLOURS[colour], SHAPES[shape]) in HELD_OUT:
            ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=(255, 0, 0))
        images.append(image)
        titles.append(f"{COLOURS[colour]}\n{SHAPES[shape]}")
    _panels(images, titles, len(COLOURS)).save(path)


def _backgrounds(path: Path) -> None:
    """Two textures of each background."""
    scenes = _sample(SceneConfig(object_weights=(1.0,), change_probability=0), 48, 1)
    images, titles = [], []
    for index, name in enumerate(BACKGROUNDS):
        for clip in torch.nonzero(scenes.labels["background"][:, 0] == index).squeeze(1)[:2].tolist():
            images.append(_image(scenes.video[clip, 0], _ZOOM))
            titles.append(name)
    _panels(images, titles, 6).save(path)


def _motions(path: Path) -> None:
    """Each motion as the trail of one object, a dot every other frame, in its last picture."""
    scenes = _sample(SceneConfig().alone(), 72, _FRAMES)
    images, titles = [], []
    for index, name in enumerate(MOTIONS):
        others = scenes.labels["motion"][:, 0, 0] != index
        clip = int((scenes.labels["size"][:, 0, 0] + len(SIZES) * others).argmin())
        image = _image(scenes.video[clip, -1], _ZOOM)
        pen = ImageDraw.Draw(image)
        for x, y in (scenes.centres[clip, 0, ::2] * image.width).tolist():
            _dot(pen, x, y, 1.5, (0, 0, 0))
            _dot(pen, x, y, 1.0, (255, 255, 255))
        images.append(image)
        titles.append(name)
    _panels(images, titles, 6).save(path)


def _objects(path: Path) -> None:
    """Three objects that pass in front of each other: the clips in which most points are hidden."""
    config = SceneConfig(
        object_weights=(0, 0, 1), change_probability=0, drag_probability=0, camera_probability=0
    )
    scenes = _sample(config, 48, _FRAMES)
    hidden = (~scenes.visible & (scenes.track_object >= 0)[..., None]).sum((1, 2))
    _rows(scenes, hidden.argsort(descending=True)[:4].tolist(), path)


def _changes(path: Path) -> None:
    """One change of each kind."""
    config = SceneConfig(
        object_weights=(1.0,), change_probability=1, double_change_probability=0, camera_probability=0
    )
    scenes = _sample(config, 48, _FRAMES)
    late = (scenes.segment_start[:, 1] - _FRAMES // 2).abs()
    still = ~scenes.dragged.flatten(1).any(1)
    clips = [
        int(torch.where((changed > 0) & still, late, 1 << 20).argmin())
        for changed in scenes.labels["changed"].unbind(1)
    ]
    _rows(scenes, clips, path)


def _drags(path: Path) -> None:
    """Drags, with the tracks of the object."""
    config = SceneConfig(change_probability=0, drag_probability=1, camera_probability=0)
    scenes = _sample(config, 8, _FRAMES)
    _rows(scenes, torch.nonzero(scenes.labels["count"] < 3).squeeze(1)[:4].tolist(), path, scenes.dragged)


def _camera(path: Path) -> None:
    """Camera moves of each kind and a mixture, with the tracks of the background, over bricks and waves."""
    config = SceneConfig(
        object_weights=(0.5, 0.5), change_probability=0, drag_probability=0, camera_probability=1
    )
    scenes = _sample(config, 72, _FRAMES)
    kinds, move = scenes.labels["camera"], scenes.camera_move
    background = scenes.labels["background"][:, 0]
    clear = 2 * (background == BACKGROUNDS.index("bricks")) + (background == BACKGROUNDS.index("sea"))
    size = (
        move[:, :2].norm(dim=1) * kinds[:, 0]
        + 3 * move[:, 2].log().abs() * kinds[:, 1]
        + move[:, 3].abs() / 45 * kinds[:, 2]
        + clear
    )
    clips = []
    for kind in range(len(CAMERA_KINDS)):
        alone = (kinds[:, kind] > 0) & (kinds.sum(1) == 1)
        clips.append(int(torch.where(alone, size, -1).argmax()))
    clips.append(int(torch.where(kinds.sum(1) > 1, size, -1).argmax()))
    carried = (scenes.track_object < 0)[..., None] & scenes.camera[:, None]
    _rows(scenes, clips, path, carried, with_move=True)


def _sample(config: SceneConfig, batch: int, frames: int) -> SceneBatch:
    return SceneGenerator(config).sample(batch, frames, _SEED)


def _rows(
    scenes: SceneBatch,
    clips: Sequence[int],
    path: Path,
    tracks: Tensor | None = None,
    with_move: bool = False,
) -> None:
    """A contact sheet of some clips with their captions; ``tracks`` (B, N, T): which tracks to draw when."""
    videos, captions = [], []
    for clip in clips:
        times = torch.linspace(0, scenes.video.shape[1] - 1, _COLUMNS).round().long().tolist()
        frames = [_image(scenes.video[clip, time], _ZOOM) for time in times]
        if tracks is not None:
            for time, frame in zip(times, frames, strict=True):
                _draw_tracks(frame, scenes, clip, time, tracks[clip])
        videos.append(torch.stack([_pixels(frame) for frame in frames]))
        text = "  ->  ".join(scenes.captions[clip])
        if with_move:
            x, y, zoom, rotate = scenes.camera_move[clip].tolist()
            text += f"     [pan {x:+.2f} {y:+.2f}, zoom {zoom:.2f}, rotate {rotate:+.0f}]"
        captions.append(text)
    contact_sheet(videos, captions, path, frames=_COLUMNS)


def _draw_tracks(image: Image.Image, scenes: SceneBatch, clip: int, time: int, shown: Tensor) -> None:
    """Tracks with a tail of the frames in which they are shown; black where a point is hidden."""
    pen = ImageDraw.Draw(image)
    points = scenes.points[clip] * image.width
    inside = ((scenes.points[clip] >= 0) & (scenes.points[clip] <= 1)).all(-1) & shown
    for track in torch.nonzero(inside[:, time]).squeeze(1).tolist():
        start = max(0, time - _TAIL)
        tail = points[track, start : time + 1][inside[track, start : time + 1]]
        if len(tail) > 1 and float(tail.diff(dim=0).abs().max()) < image.width / 2:
            pen.line([tuple(point) for point in tail.tolist()], fill=(0, 0, 0), width=1)
        x, y = points[track, time].tolist()
        _dot(pen, x, y, 2.0, (0, 0, 0))
        if scenes.visible[clip, track, time]:
            _dot(pen, x, y, 1.0, (255, 255, 255))


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _image(frame: Tensor, zoom: int) -> Image.Image:
    picture = Image.fromarray(frame.contiguous().numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _pixels(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3)


def _panels(images: Sequence[Image.Image], titles: Sequence[str], columns: int) -> Image.Image:
    """Images in a grid, each under its title."""
    lines = max(title.count("\n") for title in titles) + 1
    width, height = images[0].width + _GAP, images[0].height + lines * _LINE + _GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _GROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        left, top = index % columns * width + _GAP, index // columns * height + _GAP
        pen.multiline_text((left, top), title, fill=_INK, font=font, spacing=2)
        sheet.paste(image, (left, top + lines * _LINE))
    return sheet


def main() -> None:
    """Command line: ``-o`` is the folder."""
    parser = argparse.ArgumentParser(prog="python -m distill.scenes.gallery", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the PNGs")
    write_gallery(parser.parse_args().out)


if __name__ == "__main__":
    main()
