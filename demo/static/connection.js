// The WebSocket: a ticket first, then messages as JSON and frames as binary. A connection that is lost is tried
// again for as long as the page is open; a session that is over meanwhile goes on from what the server has kept.
import { fetched } from "./fetched.js";
import { keep, recall } from "./kept.js";

const HEADER = 28;
const GONE = 4404, REPLACED = 4001, ENDED = 4003;
const LONGEST_WAIT_MS = 5000;

export class Connection {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {string | null} */
    this.token = null;
    // the session before, whose stream may be gone on with, and whose recording may be saved
    /** @type {string | null} */
    this.before = null;
    this.tries = 0;
    this.closed = false;
    // Only a page that is left on purpose leaves its session behind, for the page that a reload brings; so a
    // duplicated tab, which copies this storage, finds nothing and gets a session of its own.
    window.addEventListener("pagehide", () => this.leave());
    window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
    window.addEventListener("online", () => { if (!this.socket && !this.closed && this.waiting) this.soon(0); });
    this.played = Boolean(recall("played"));
    keep("played", null);
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.waiting = undefined;
  }

  leave() {
    const token = this.token || this.before;
    if (token && !this.closed) sessionStorage.setItem("streamgen-session", token);
    if (token) keep("played", this.live.player.shown >= 0);
  }

  async open() {
    const { live } = this;
    this.waiting = undefined;
    this.token ||= sessionStorage.getItem("streamgen-session");
    sessionStorage.removeItem("streamgen-session");
    try {
      if (!this.token) await this.ticket();
    } catch (error) {
      this.again(`${capital(error.message)}.`);
      return;
    }
    const url = new URL(`live/ws/${this.token}`, live.base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.listen(new WebSocket(url));
  }

  /** @param {WebSocket} socket */
  listen(socket) {
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => {
      if (typeof event.data === "string") this.message(JSON.parse(event.data));
      else this.frame(event.data);
    };
    socket.onclose = (event) => { if (this.socket === socket) this.lost(event); };
    this.socket = socket;
  }

  // an id; one that goes on with the session before where the server has kept its stream
  async ticket() {
    const url = new URL("live/session", this.live.base);
    if (this.before) url.searchParams.set("after", this.before);
    const body = await (await fetched(url, { method: "POST" })).json();
    const lost = this.before && this.played && !body.kept;
    this.token = body.session;
    if (this.before) this.live.emit("gone", { kept: !lost });
    if (body.kept) this.before = null;
  }

  /** @param {Record<string, any>} message */
  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** @param {Uint8Array<ArrayBuffer>} data */
  sendBytes(data) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(data);
  }

  // bytes that wait to go out
  unsent() { return this.socket?.bufferedAmount || 0; }

  /** @param {string} name */
  url(name) { return new URL(`live/${this.token || this.before}/${name}`, this.live.base); }

  /** @param {any} message */
  message(message) {
    const { live } = this;
    this.tries = 0;
    if (message.type === "hello") { live.hello = message; this.turn(true); }
    if (message.type === "place" || message.type === "state") live.epoch = message.epoch;
    if (message.type === "place") this.played = true;
    live.emit(message.type, message);
    if (message.type === "state") live.turn(message.state);
  }

  /** @param {ArrayBuffer} data */
  frame(data) {
    const view = new DataView(data);
    if (view.getUint8(0) !== 1) return;
    this.live.emit("frame", {
      encoding: view.getUint8(1),
      seq: view.getUint32(4, true),
      epoch: view.getUint32(8, true),
      frame: view.getUint32(12, true),
      chunk: view.getUint32(16, true),
      made: view.getFloat64(20, true),
      picture: new Uint8Array(data, HEADER),
    });
  }

  /** @param {CloseEvent} event */
  lost(event) {
    this.socket = null;
    this.turn(false);
    if (event.code === ENDED || event.code === REPLACED) {
      this.closed = true;
      this.before = this.token;
      this.token = null;
      this.live.emit("lost", { text: `${capital(event.reason || "the session has ended")}.` });
      return;
    }
    if (event.code === GONE) {
      this.before = this.token;
      this.token = null;
      this.soon(this.tries < 2 ? 0 : undefined);
      return;
    }
    this.again("The connection is lost.");
  }

  /** @param {string} text */
  again(text) {
    const waits = this.played ? " Your stream waits." : "";
    this.live.emit("retry", { text: `${text}${waits} Trying again …` });
    this.soon();
  }

  /** @param {number} [wait] ms */
  soon(wait = Math.min(LONGEST_WAIT_MS, 250 * 2 ** this.tries)) {
    this.tries += 1;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.open(), wait);
  }

  // after an end that was told
  renew() {
    this.closed = false;
    this.tries = 0;
    this.open();
  }

  /** @param {boolean} online */
  turn(online) {
    if (this.live.online === online) return;
    this.live.online = online;
    this.live.emit("online", online);
  }
}

/** @param {string} text */
function capital(text) { return text[0].toUpperCase() + text.slice(1); }
