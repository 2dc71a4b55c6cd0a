// Which controls can be used now. Each says in data-needs what it takes; nothing else sets `disabled`.

export class Availability {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    live.on("turned", () => this.refresh());
    live.on("online", () => this.refresh());
    live.on("mark", () => this.refresh());
    live.on("place", () => this.refresh());
    this.refresh();
  }

  refresh() {
    const { live } = this;
    const able = this.able();
    for (const node of live.root.querySelectorAll("[data-needs]")) {
      const control = /** @type {HTMLButtonElement} */ (node);
      const off = !able[control.dataset.needs || ""];
      if (off && document.activeElement === control) live.keys.back();
      control.disabled = off;
    }
    live.root.toggleAttribute("data-offline", !live.online);
  }

  /** @returns {Record<string, boolean>} */
  able() {
    const { live } = this;
    const online = live.online && !live.watching;
    const stream = online && ["playing", "paused", "failed"].includes(live.state);
    return {
      online,
      stream,
      live: live.running,
      shown: live.running && Boolean(live.picture?.url),
      paused: online && live.state === "paused",
      marks: stream && live.strip.marks.length > 0,
      saved: live.saving.possible,
    };
  }
}
