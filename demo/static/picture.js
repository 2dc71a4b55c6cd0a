// A picture or clip that the next stream starts from.
import { fetched } from "./fetched.js";

export class Picture {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {string | null} */
    this.url = null;
    live.part.file.addEventListener("change", () => this.upload(live.part.file.files?.[0]));
    live.part.forget.addEventListener("click", () => this.forget());
  }

  /** @param {File | undefined} file */
  async upload(file) {
    const { part, hello, connection } = this.live;
    if (!file || !hello) return;
    part.fileHint.textContent = `Reading ${file.name} …`;
    try {
      if (file.size > hello.upload_bytes) throw new Error("the file is too large: at most 32 MB are taken");
      const headers = { "content-type": file.type || "application/octet-stream" };
      const body = await (await fetched(connection.url("picture"), { method: "POST", body: file, headers })).json();
      this.url = body.picture;
      part.picture.src = body.picture;
      const what = body.frames > 1 ? `${body.frames} frames` : "This picture";
      part.fileHint.textContent = `${what} will begin the next stream: Restart. Or show it now, as it is cropped here.`;
    } catch (error) {
      this.url = null;
      part.fileHint.textContent = `Not taken: ${error.message}`;
    }
    part.picture.hidden = part.forget.hidden = !this.url;
    this.live.availability.refresh();
  }

  forget() {
    const { part } = this.live;
    this.url = null;
    part.file.value = "";
    part.picture.hidden = part.forget.hidden = true;
    part.fileHint.textContent = "The next stream starts from the words alone.";
  }
}
