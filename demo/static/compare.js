// Two branches side by side, in step: what plays, and one that was left. Both are what was recorded, so that
// looking at them costs the engine nothing.
import { fetched } from "./fetched.js";

export class Compare {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    const { part } = live;
    /** @type {HTMLVideoElement[]} */
    this.videos = [part.videoA, part.videoB];
    this.running = false;
    this.frames = 0;
    this.frame = 0;
    // a frame asked for while another was sought
    for (const video of this.videos) video.addEventListener("seeked", () => this.seek(video));
    live.does({ compareClose: () => part.compare.close(), comparePlay: () => this.play(!this.running) });
    part.compareAt.addEventListener("input", () => { this.play(false); this.go(Number(part.compareAt.value)); });
    part.compare.addEventListener("close", () => this.close());
  }

  /** @param {import("./types.js").Take} take */
  async open(take) {
    const { live } = this;
    const { part } = live;
    part.compareText.textContent = "Preparing both branches …";
    part.compare.showModal();
    const here = live.player.shown + 1;
    try {
      const urls = await Promise.all([this.clip(here), this.clip(take.frame, take.id)]);
      if (!part.compare.open) return;
      await Promise.all(urls.map((url, i) => loaded(this.videos[i], url)));
    } catch (error) {
      part.compareText.textContent = `Not shown: ${error.message}.`;
      return;
    }
    this.frames = Math.max(here, take.frame);
    part.compareAt.max = String(this.frames - 1);
    const apart = this.apart(take);
    part.compareText.textContent = `A plays now (${live.time(here)}), B was left at ${live.time(take.frame)}: “${take.prompt}”.`;
    part.namesA.textContent = `A: ${live.prompts.holds}`;
    part.namesB.textContent = `B: ${take.prompt}`;
    this.go(apart);
    this.play(true);
  }

  // where to begin: the last seconds that both have
  /** @param {import("./types.js").Take} take */
  apart(take) {
    const { fps } = this.live;
    return Math.max(0, Math.min(this.live.player.shown, take.frame) - Math.round(4 * fps));
  }

  /**
   * @param {number} frames
   * @param {number} [take]
   */
  async clip(frames, take) {
    const { hello, connection } = this.live;
    const url = connection.url("clip.webm");
    url.searchParams.set("frames", String(frames));
    // small pictures stay sharp
    url.searchParams.set("scale", String(Math.max(1, Math.floor(512 / (hello?.width || 512)))));
    if (take !== undefined) url.searchParams.set("take", String(take));
    return URL.createObjectURL(await (await fetched(url)).blob());
  }

  /** @param {boolean} on */
  play(on) {
    const { part, fps } = this.live;
    const was = this.running;
    this.running = on;
    part.comparePlay.textContent = on ? "Pause" : "Play";
    if (!on || was) return;
    const first = Number(part.compareAt.value) >= this.frames - 1 ? 0 : Number(part.compareAt.value);
    const began = performance.now();
    // one clock for both: neither of them runs by itself
    const tick = () => {
      if (!this.running) return;
      const at = first + Math.floor(((performance.now() - began) * fps) / 1000);
      if (at >= this.frames - 1) this.play(false);
      this.go(Math.min(at, this.frames - 1));
      requestAnimationFrame(tick);
    };
    tick();
  }

  /** @param {number} frame */
  go(frame) {
    const { part } = this.live;
    this.frame = frame;
    part.compareAt.value = String(frame);
    part.compareTime.textContent = this.live.time(frame);
    for (const video of this.videos) this.seek(video);
  }

  /** @param {HTMLVideoElement} video */
  seek(video) {
    const { fps } = this.live;
    // the middle of the frame, so that no rounding shows its neighbour; while one is sought the next waits
    const wanted = Math.min((this.frame + 0.5) / fps, video.duration || Infinity);
    if (!video.seeking && Math.abs(video.currentTime - wanted) > 0.25 / fps) video.currentTime = wanted;
  }

  close() {
    this.play(false);
    for (const video of this.videos) {
      URL.revokeObjectURL(video.src);
      video.removeAttribute("src");
      video.load();
    }
    this.live.keys.back();
  }
}

/**
 * @param {HTMLVideoElement} video
 * @param {string} url
 */
function loaded(video, url) {
  return new Promise((done, fail) => {
    video.onloadeddata = () => done(undefined);
    video.onerror = () => fail(new Error("this browser does not show WebM"));
    video.src = url;
  });
}
