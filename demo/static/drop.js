// A picture that is dropped on the page, or pasted, and what becomes of one that was taken: the scene from now
// on, or what the stream is to look like.

export class Drop {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    const { part } = live;
    part.screen.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files") || !live.online) return;
      event.preventDefault();
      part.screen.dataset.drop = "";
    });
    part.screen.addEventListener("dragleave", () => { delete part.screen.dataset.drop; });
    part.screen.addEventListener("drop", (event) => {
      event.preventDefault();
      delete part.screen.dataset.drop;
      this.take(event.dataTransfer?.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
      if (!file) return;
      event.preventDefault();
      this.take(file);
    });
    live.does({ pictureScene: () => this.use("scene"), pictureReference: () => this.use("reference") });
  }

  /** @param {File | undefined} file */
  async take(file) {
    const { live } = this;
    if (!file || !live.online || live.watching) return;
    live.part.pictureBox.open = true;
    await live.picture.upload(file);
    live.availability.refresh();
    live.part.pictureBox.scrollIntoView({ block: "nearest" });
  }

  /** @param {"scene" | "reference"} use */
  use(use) {
    const { live } = this;
    const id = live.id();
    if (live.send({ type: "event", id, epoch: live.epoch, picture: use })) live.status.asked(id);
  }
}
