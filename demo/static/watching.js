// A page that only watches: what the stream shows comes in, and all that goes out is how far it has come.
import { Connection } from "./connection.js";

const BUNDLE = 8, VERSION = 2;
const FULL = 4429, GONE = 4404, ENDED = 4003;
// The server sends on while what it sent in the last two seconds was acknowledged.
const ACK_MS = 400;

// the id of a link to watch, of the address that the page was opened with
export function watched() {
  const id = new URLSearchParams(location.hash.slice(1)).get("watch");
  return id && /^[\w.-]{20,90}$/.test(id) ? id : null;
}

export class Watching extends Connection {
  /**
   * @param {import("./live.js").Live} live
   * @param {string} id of the link
   */
  constructor(live, id) {
    super(live);
    this.id = id;
    this.played = false;
    this.seen = this.told = 0;
    live.root.toggleAttribute("data-watching", true);
    live.on("host", ({ here }) => live.notices.chip("host", here ? "" : "Whoever steers this has lost the connection. The stream waits."));
    setInterval(() => this.tell(), ACK_MS);
  }

  // this page has no session that another one could find
  leave() {}

  async open() {
    this.waiting = undefined;
    const url = new URL(`live/ws/watch/${this.id}`, this.live.base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.listen(new WebSocket(url));
  }

  // nothing that steers is sent, whatever asks for it
  send() { return false; }

  tell() {
    if (this.seen === this.told || this.socket?.readyState !== WebSocket.OPEN) return;
    this.told = this.seen;
    this.socket.send(JSON.stringify({ type: "ack", seq: this.seen, epoch: this.live.epoch, shown: 0, head: 0 }));
  }

  /** @param {ArrayBuffer} data */
  frame(data) {
    const view = new DataView(data);
    if (view.getUint8(0) !== VERSION) return;
    this.seen = view.getUint32(4, true);
    let at = BUNDLE;
    for (let left = view.getUint8(1); left > 0; left -= 1) {
      const size = view.getUint32(at, true);
      super.frame(data.slice(at + 4, at + 4 + size));
      at += 4 + size;
    }
  }

  /** @param {CloseEvent} event */
  lost(event) {
    this.socket = null;
    this.turn(false);
    const told = { [FULL]: `${event.reason}.`, [GONE]: "Nothing plays under this link: the stream is over, or the link was taken back.", [ENDED]: `${event.reason}.` }[event.code];
    if (told) this.live.emit("lost", { text: told[0].toUpperCase() + told.slice(1) });
    else this.again("The connection is lost.");
  }
}
