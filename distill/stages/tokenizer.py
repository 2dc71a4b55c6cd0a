"""Stage 1: the causal video tokenizer, from a PCA of the world's patches to the shipped autoencoder."""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.tensor_file import write_tensors
from models.video_tokenizer import VideoTokenizer, VideoTokenizerConfig
from streamgen.checkpoints.digest import tensor_digest
from streamgen.checkpoints.directory import TOKENIZER, load_into, read_tensors

from ..clips.config import ClipFolderConfig
from ..clips.pixels import open_pixels
from ..clips.training import open_folder, without_objects
from ..command import say
from ..config import Checked, Count, RunConfig, Several, Share, write_yaml
from ..evaluation.features import ReaderFeatures
from ..mixture import GOLDEN, PLASTIC, SILVER, Turns
from ..photographs import PhotographClips, PhotographConfig, photograph_paths, read_photographs
from ..pixels import moving_cells, to_float, to_pixels
from ..scenes import SceneBatch, SceneConfig, SceneGenerator
from ..scenes.sheet import contact_sheet, enlarged
from ..scoring import without_gradients
from ..stage import Stage, Tick
from ..tokenizer_loss import Clips, LossConfig, PatchCritic, TokenizerLoss
from ..widen import begin_as_pca, fit_added_channels, widen_tokenizer

# Seeds of clips that no update ever sees: those of updates are 63-bit hashes.
PCA_SEED, HELD_OUT_SEED, STATISTICS_SEED = 11, 12, 13


@dataclass(frozen=True)
class DataConfig(Checked, section="data"):
    """Batches of one process.

    The first `image_phase` of the budget sees images alone, of the world's own size; later `image_share` of
    the updates do, and all take the `sizes` by turns (none given: the world's own), with batches scaled to
    about the same number of pixels: progressive training as OmniTokenizer's (arXiv 2406.09399, section 3.2).
    """

    frames: Several = 17
    image_batch: Count = 48
    video_batch: Count = 8
    image_phase: Share = 0.2
    image_share: Share = 0.25
    pca_clips: Count = 256
    statistics_clips: Count = 512
    held_out_clips: Count = 64
    sheet_clips: Count = 8
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenizerRun(RunConfig):
    """Config of the tokenizer stage.

    `init` is an export of this stage or a checkpoint directory whose tokenizer training goes on from, one
    with fewer latent channels, too; null starts from a PCA of patches. `photographs` makes part of the
    updates draw clips of moving photographs (`pip install "streamgen[photographs]"`), null none.
    """

    init: str | None = None
    model: VideoTokenizerConfig = field(default_factory=VideoTokenizerConfig)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    clips: ClipFolderConfig | None = None
    photographs: PhotographConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)


class TokenizerStage(Stage):
    """Trains a `VideoTokenizer` on the procedural world, on own clips and on moving photographs."""

    # inputs, outputs and tables
    edges = ("embed", "skip", "head", "refine", "moments", "change", "codebook", "_bias", "position")

    def __init__(self, config: TokenizerRun, device: torch.device) -> None:
        self.config = config
        self.device = device
        folder = open_folder(config.clips, config.scenes.size)
        self.own = None if folder is None else open_pixels(folder, config.data.frames)
        self.size = config.scenes.size if config.clips is None else config.clips.height
        shares = _shares(config)
        self.sources = Turns(shares, PLASTIC)
        self.photographs = None
        if config.photographs is not None:
            self.photographs = PhotographClips(read_photographs(photograph_paths()), config.photographs)
        self.sizes = config.data.sizes or (self.size,)
        self.generators = {
            size: SceneGenerator(replace(config.scenes, size=size), device)
            for size in dict.fromkeys((config.scenes.size, *self.sizes) if shares["world"] > 0 else ())
        }
        perceptual = ReaderFeatures(config.scenes, device) if config.loss.perceptual else None
        self.module = TokenizerLoss(self._initial(), config.loss, perceptual).to(device)
        self.critic = PatchCritic(config.seed).to(device) if config.loss.adversarial else None

    @classmethod
    def networks(cls, config: TokenizerRun) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        trained: dict[str, nn.Module] = {
            "tokenizer": TokenizerLoss(VideoTokenizer(config.model), config.loss)
        }
        return trained | ({"critic": PatchCritic(config.seed)} if config.loss.adversarial else {}), {}

    @property
    def tokenizer(self) -> VideoTokenizer:
        """The network in training."""
        return self.module.tokenizer

    def modules(self) -> dict[str, nn.Module]:
        """The tokenizer with its loss, and the critic where there is one."""
        trained: dict[str, nn.Module] = {"tokenizer": self.module}
        return trained if self.critic is None else trained | {"critic": self.critic}

    def target(self, step: int) -> str:
        """The tokenizer; with a critic they take turns."""
        return "critic" if self.critic is not None and step % 2 else "tokenizer"

    def batch(self, tick: Tick) -> Clips:
        """Images first, later images and clips of all sizes by turns; the same kind on every process."""
        data = self.config.data
        # not the stride by which kinds take turns: all sources are to get all kinds
        seed, source = tick.generator_seed("scenes"), self.sources.at(tick.step)
        if tick.progress < data.image_phase:
            return self._clips(data.image_batch, 1, seed, source)
        # by other strides: sizes and kinds change independently of each other
        size = self.sizes[int(tick.step * GOLDEN % 1 * len(self.sizes))]
        scale = (self.size / size) ** 2
        kinds = Turns({"images": data.image_share, "clips": 1 - data.image_share}, SILVER)
        if kinds.at(tick.step) == "images":
            return self._clips(max(1, round(data.image_batch * scale)), 1, seed, source, size)
        return self._clips(max(1, round(data.video_batch * scale)), data.frames, seed, source, size)

    def loss(self, module: nn.Module, batch: Clips) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of a batch: the tokenizer's, or through its critic in its prepared form the critic's."""
        inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
        result: tuple[Tensor, dict[str, Tensor | float]]
        if self.critic is None:
            result = module(batch)
        elif inner is self.critic:
            with torch.no_grad():
                decoded = self.module.reconstruction(batch.video)[0]
            result = module(batch.video, decoded)
        else:
            with without_gradients(self.critic):
                result = module(batch, self.critic.logits)
        return result

    def evaluate(self, step: int, out_dir: Path) -> dict[str, float]:
        """PSNR in dB on held-out clips and its gain over PCA; a sheet of originals over reconstructions."""
        psnr = self._psnr(self.tokenizer, out_dir / "reconstructions.png")
        if step == 0:
            start = self.tokenizer if self.config.init is None else self._from_pca()
            self.module.baseline.copy_(self._psnr(start).float())
        names = ("psnr", "psnr_moving", "psnr_object")
        metrics = {name: float(value) for name, value in zip(names, psnr, strict=True)}
        gains = psnr.float() - self.module.baseline.cpu()
        metrics |= {f"{name}_over_pca": float(gain) for name, gain in zip(names, gains, strict=True)}
        return without_objects(metrics, self.config.clips)

    def export(self, directory: Path) -> None:
        """Write `tokenizer.safetensors` (bf16 parameters, float32 statistics) and `tokenizer.yaml`."""
        tokenizer = copy.deepcopy(self.tokenizer).eval()
        for parameter in tokenizer.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).float()
        clips = self._fixed(STATISTICS_SEED, self.config.data.statistics_clips)
        mean, std = latent_statistics(tokenizer, (item.video for item in clips))
        tokenizer.set_latent_statistics(mean, std)
        state = {name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()}
        parameters = {name for name, _ in tokenizer.named_parameters()}
        state = {
            name: value.to(torch.bfloat16) if name in parameters else value for name, value in state.items()
        }
        digest = tensor_digest(state)
        write_tensors(state, directory / "tokenizer.safetensors", metadata={"format": "pt", "digest": digest})
        write_yaml(asdict(self.config.model), directory / "tokenizer.yaml")
        say(f"tokenizer digest {digest}, latent std {[round(float(v), 4) for v in std[:, 0]]}")

    def _clips(
        self, batch: int, frames: int, seed: int, source: str, size: int | None = None, held: bool = False
    ) -> Clips:
        """Clips of one `source`, a name of `sources`."""
        patch = self.config.model.patch
        if source == "world":
            scene = self.generators[size or self.config.scenes.size].sample(batch, frames, seed)
            video = to_float(scene.video)
            return Clips(video, object_cells(scene, patch), moving_cells(video, patch))
        if source == "own":
            assert self.own is not None
            video = self.own.sample(batch, frames, seed, size, held).to(self.device)
        else:
            assert self.photographs is not None
            video = self.photographs.sample(batch, frames, size or self.size, seed).to(self.device)
        # nobody has marked objects in these: what moves has to do
        return Clips(video, torch.zeros_like(video[:, :, :1]), moving_cells(video, patch))

    def _fixed(self, seed: int, count: int, size: int = 16) -> Iterator[Clips]:
        """`count` clips in batches, the same ones for the same seed."""
        for index, start in enumerate(range(0, count, size)):
            part, frames, held = min(size, count - start), self.config.data.frames, seed == HELD_OUT_SEED
            yield self._clips(part, frames, seed + 1000 * index, self.sources.at(index), held=held)

    def _psnr(self, tokenizer: VideoTokenizer, sheet: Path | None = None) -> Tensor:
        """PSNR in dB of the held-out clips over all pixels, moving cells and cells with objects."""
        data = self.config.data
        errors = torch.zeros(3, dtype=torch.float64)
        weights = torch.zeros(3, dtype=torch.float64)
        for index, clips in enumerate(self._fixed(HELD_OUT_SEED, data.held_out_clips)):
            latents = tokenizer.encode(clips.video).mean
            decoded = tokenizer.decode(latents, clips.video.shape[1]).float().clamp(-1.0, 1.0)
            square = (decoded - clips.video).square().mean(2, keepdim=True)
            for row, mask in enumerate((torch.ones_like(square), clips.moving, clips.objects)):
                errors[row] += (square * mask).sum().double().cpu()
                weights[row] += mask.sum().double().cpu()
            if index == 0 and sheet is not None:
                pairs = torch.stack([clips.video, decoded], 1)[: data.sheet_clips].flatten(0, 1)
                videos = [enlarged(video) for video in to_pixels(pairs).cpu()]
                contact_sheet(videos, ["as it is", "as it comes back"] * (len(videos) // 2), sheet, frames=6)
        # clips in which there is nothing of a kind tell nothing of it
        found = 10.0 * torch.log10(4.0 * weights / errors.clamp_min(1e-12))
        return torch.where(weights > 0, found, torch.nan)

    def _initial(self) -> VideoTokenizer:
        """The tokenizer that training starts from.

        Raises:
            CheckpointError: `init` has no tokenizer, a damaged one, or one of other sizes.
        """
        if self.config.init is None:
            return self._from_pca()
        path = Path(self.config.init) / TOKENIZER
        tensors, tokenizer = read_tensors(path), self._from_pca()
        load_into(tokenizer, widen_tokenizer(tensors, tokenizer), str(path))
        narrow = tensors["latent_mean"].shape[1]
        if narrow < self.config.model.latent_channels:
            clips = self._fixed(PCA_SEED, self.config.data.pca_clips)
            fit_added_channels(tokenizer, narrow, (item.video for item in clips))
        return tokenizer

    def _from_pca(self) -> VideoTokenizer:
        tokenizer = VideoTokenizer(self.config.model).to(self.device)
        begin_as_pca(tokenizer, (clips.video for clips in self._fixed(PCA_SEED, self.config.data.pca_clips)))
        return tokenizer


def _shares(config: TokenizerRun) -> dict[str, float]:
    """Of all updates, by source; they add up to 1."""
    own = 0.0 if config.clips is None else config.clips.share
    photographs = 0.0 if config.photographs is None else config.photographs.share
    return {"own": own, "photographs": (1 - own) * photographs, "world": (1 - own) * (1 - photographs)}


@torch.no_grad()
def latent_statistics(tokenizer: VideoTokenizer, videos: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (2, C) of raw latents of clips (B, T, C, H, W): row 0 image latents, row 1 later.

    The deviation is one number per row, repeated: the relative size of channels is information that the
    diffusion model should see, since the first channels carry most of the picture.
    """
    means: list[Tensor] = []
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for video in videos:
        latents = tokenizer.encode(video).mean.float().cpu()
        rows[0].append(latents[:, :1].movedim(2, -1).flatten(0, -2))
        rows[1].append(latents[:, 1:].movedim(2, -1).flatten(0, -2))
    deviations = []
    for row in rows:
        values = torch.cat(row).double()
        means.append(values.mean(0))
        deviations.append((values - means[-1]).square().mean().sqrt().expand(values.shape[1]))
    return torch.stack(means).float(), torch.stack(deviations).float()


def object_cells(scene: SceneBatch, cell: int) -> Tensor:
    """Float (B, T, 1, H, W): 1 in cells of `cell` pixels that an object's bounding square touches."""
    side = scene.video.shape[2]
    grid = (torch.arange(side // cell, device=scene.video.device) + 0.5) * cell / side
    reach = (scene.radii + 0.5 * cell / side)[..., None]
    # Objects wrap around the borders, so distances do as well; unused slots reach nowhere.
    apart = (scene.centres[..., None, :] - grid[:, None] + 0.5).remainder(1.0).sub(0.5).abs()
    near = (apart < reach[..., None]) & (scene.radii > 0)[..., None, None]
    cells = (near[..., 1][..., :, None] & near[..., 0][..., None, :]).any(1)
    return cells.float().repeat_interleave(cell, -1).repeat_interleave(cell, -2)[:, :, None]
