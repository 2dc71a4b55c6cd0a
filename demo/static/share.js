// The dialog to hand on what one has: links, files, and how large they are.
import { fetched } from "./fetched.js";
import { address, settingsLink } from "./link.js";

export class Share {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    const { share } = live.part;
    live.does({
      share: () => this.open(), shareClose: () => share.close(), linkSettings: () => this.settings(),
      linkWatch: () => this.watch(), unwatch: () => this.unwatch(), export: () => this.export(), full: () => this.full(),
    });
    // a click beside the dialog closes it
    share.addEventListener("click", (event) => { if (event.target === share) share.close(); });
    share.addEventListener("close", () => live.keys.back());
    live.on("stats", (stats) => {
      const text = stats.watchers ? `${stats.watchers} watch` : "";
      if (live.part.watchers.textContent !== text) live.part.watchers.textContent = text;
    });
    live.on("hello", (hello) => this.sizes(hello));
    document.addEventListener("fullscreenchange", () => {
      const is = document.fullscreenElement === live.part.screen;
      live.part.full.setAttribute("aria-pressed", String(is));
      live.paint.changed();
    });
  }

  open() {
    this.live.part.shareText.textContent = "";
    this.live.part.share.showModal();
  }

  settings() { this.hand(settingsLink(this.live), "Link copied: words, seed and settings."); }

  async watch() {
    const { live } = this;
    try {
      const body = await (await fetched(live.connection.url("watch"), { method: "POST" })).json();
      this.hand(address(live, new URLSearchParams({ watch: body.watch })), "Link copied: whoever has it sees this stream and steers nothing.");
    } catch (error) { this.say(`Not shared: ${error.message}.`); }
  }

  async unwatch() {
    try {
      await fetch(this.live.connection.url("watch"), { method: "DELETE" });
      this.say("Links to watch this stream are taken back.");
    } catch { this.say("The server does not answer."); }
  }

  /**
   * Into the clipboard, and into the field where there is none.
   * @param {string} link
   * @param {string} told
   */
  async hand(link, told) {
    const { shareLink } = this.live.part;
    shareLink.value = link;
    shareLink.select();
    try {
      await navigator.clipboard.writeText(link);
      this.say(told);
    } catch { this.say("Copy the link from the field above."); }
  }

  /** @param {string} text */
  say(text) { this.live.part.shareText.textContent = text; }

  /**
   * Sizes that an export may have: the picture's own, and whole multiples up to full HD.
   * @param {import("./types.js").Hello} hello
   */
  sizes(hello) {
    const { scale } = this.live.part;
    if (scale.options.length) return;
    for (let times = 1; times === 1 || (times * hello.width <= 1920 && times <= 16); times *= 2) {
      scale.add(new Option(`${times * hello.width}×${times * hello.height}`, String(times)));
    }
    // small pictures would be a stamp in other programs
    const wanted = [...scale.options].find((option) => Number(option.value) * hello.height >= 480);
    scale.value = (wanted || scale.options[scale.options.length - 1]).value;
  }

  export() {
    const { live } = this;
    const { format, scale, pixelated } = live.part;
    const way = pixelated.checked ? "pixels" : "smooth";
    live.saving.save(`clip.${format.value}`, `streamgen.${format.value}`, { scale: scale.value, way });
  }

  full() {
    const { screen } = this.live.part;
    if (document.fullscreenElement) document.exitFullscreen();
    else screen.requestFullscreen?.().catch(() => this.live.notices.chip("full", "This browser shows no full screen here.", 4));
  }
}
