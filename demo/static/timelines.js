// Timelines from elsewhere: a file, or a link that has one packed behind its #. They are played when somebody says so.
import { fetched } from "./fetched.js";
import { address } from "./link.js";

// Chat programs cut off longer links, and browsers take longer ones only some of the time.
const MOST_LINK = 8000, MOST_BYTES = 2 ** 20;

export class Timelines {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    // a timeline that came with the address, until it is played
    /** @type {string | null} */
    this.waiting = null;
    const { part } = live;
    live.does({ linkTimeline: () => this.link() });
    part.timelineFile.addEventListener("change", () => this.file());
    window.addEventListener("hashchange", () => this.read());
    this.read();
  }

  async read() {
    const packed = new URLSearchParams(location.hash.slice(1)).get("timeline");
    if (!packed) return;
    const { live } = this;
    try {
      this.waiting = await unpacked(packed);
      const { seed, events } = JSON.parse(this.waiting).timeline;
      const first = String(events[0].prompt || "several prompts at once").slice(0, live.options.limit);
      live.part.prompt.value = live.prompts.said = first;
      live.part.seed.value = String(Number(seed) || 0);
      live.notices.tell(`A timeline came with this link: “${first.slice(0, 80)}” and ${events.length - 1} changes. Start plays it.`, { key: "timeline" });
    } catch {
      this.waiting = null;
      live.notices.tell("The timeline of this link is damaged or cut off: ask for the file instead.", { key: "timeline", seconds: 30 });
    }
  }

  // play what came with the address; false where nothing did
  start() {
    const { waiting } = this;
    if (!waiting) return false;
    this.waiting = null;
    this.live.notices.takeBack("timeline");
    this.open(waiting);
    return true;
  }

  async file() {
    const { timelineFile, share } = this.live.part;
    const file = timelineFile.files?.[0];
    timelineFile.value = "";
    if (!file) return;
    if (await this.open(file)) share.close();
  }

  /** @param {BodyInit} body */
  async open(body) {
    const { live } = this;
    try {
      const told = await (await fetched(live.connection.url("open"), { method: "POST", body })).json();
      const notes = told.notes.length ? ` Not as it was: ${told.notes.join("; ")}.` : "";
      live.notices.tell(`The timeline plays: ${told.changes} changes until ${live.time(told.frames)}.${notes}`, { key: "timeline", seconds: notes ? 30 : 8 });
      return true;
    } catch (error) {
      const why = `Not opened: ${error.message}.`;
      live.share.say(why);
      live.notices.tell(why, { key: "timeline", seconds: 30 });
      return false;
    }
  }

  async link() {
    const { live } = this;
    try {
      const url = live.connection.url("timeline.json");
      url.searchParams.set("frames", String(live.player.shown + 1));
      const { format, version, model, timeline } = await (await fetched(url)).json();
      const packed = await packedText(JSON.stringify({ format, version, model, timeline }));
      const link = address(live, new URLSearchParams({ timeline: packed }));
      if (link.length > MOST_LINK) throw new Error(`the timeline is too long for a link (${link.length} characters, ${MOST_LINK} get through everywhere): save it as a file`);
      live.share.hand(link, "Link copied: it plays this timeline again in another page.");
    } catch (error) {
      live.share.say(`No link: ${error.message}.`);
    }
  }
}

/** @param {string} text */
async function packedText(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/**
 * The text of a link; an error for what is none, or unpacks to more than a timeline of a link has.
 * @param {string} packed
 */
async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  /** @type {Uint8Array<ArrayBuffer>[]} */
  const parts = [];
  let size = 0;
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    size += next.value.length;
    if (size > MOST_BYTES) { reader.cancel(); throw new Error("too large"); }
    parts.push(next.value);
  }
  return new Blob(parts).text();
}
