// Downloads: what was shown so far as a video, and the file that makes it again.
import { make } from "./element.js";
import { fetched } from "./fetched.js";

export class Saving {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    for (const [what, name, file] of [["clip", "clip.mp4", "streamgen.mp4"], ["timeline", "timeline.json", "streamgen.json"]]) {
      live.root.querySelector(`[data-do=${what}]`)?.addEventListener("click", () => this.save(name, file));
    }
  }

  // also when the session is over and the server still has what was recorded
  get possible() {
    const { live } = this;
    if (live.watching) return false;
    if (live.state === "lost") return live.connection.played;
    return live.online && ["playing", "paused", "failed"].includes(live.state);
  }

  /**
   * @param {string} name
   * @param {string} file
   * @param {Record<string, string>} [options]
   */
  async save(name, file, options = {}) {
    const { live } = this;
    const url = live.connection.url(name);
    url.searchParams.set("frames", String(live.player.shown + 1));
    for (const [key, value] of Object.entries(options)) url.searchParams.set(key, value);
    live.notices.chip("save", `Preparing ${file} …`);
    try {
      const answer = await fetched(url);
      const link = make("a", { href: URL.createObjectURL(await answer.blob()), download: file });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    } catch (error) {
      live.notices.tell(`${file}: ${error.message}`, { seconds: 12 });
    }
    live.notices.chip("save", "");
  }
}
