// The WebSocket: a ticket first, then messages as JSON and frames as binary, and again after a lost connection.
const HEADER = 28;
const GONE = 4404, REPLACED = 4001, ENDED = 4003;
const KEPT = "streamgen-session";

export class Connection {
  constructor(live) {
    this.live = live;
    this.socket = null;
    this.token = null;
    this.tries = 0;
    this.closed = false;
    // Only a page that is left on purpose leaves its session behind, for the page that a reload brings; so a
    // duplicated tab, which copies this storage, finds nothing and gets a session of its own.
    window.addEventListener("pagehide", () => {
      if (this.token && !this.closed) sessionStorage.setItem(KEPT, this.token);
    });
    window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }

  async open() {
    const { live } = this;
    this.token ||= sessionStorage.getItem(KEPT);
    sessionStorage.removeItem(KEPT);
    try {
      if (!this.token) this.token = await this.ticket();
    } catch (error) {
      live.emit("lost", { text: error.message, again: true });
      return;
    }
    const url = new URL(`live/ws/${this.token}`, live.base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => {
      if (typeof event.data === "string") this.message(JSON.parse(event.data));
      else this.frame(event.data);
    };
    socket.onclose = (event) => { if (this.socket === socket) this.lost(event); };
    this.socket = socket;
  }

  async ticket() {
    const answer = await fetch(new URL("live/session", this.live.base), { method: "POST" });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error || `the server answers ${answer.status}`);
    return body.session;
  }

  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  url(name) { return new URL(`live/${this.token}/${name}`, this.live.base); }

  message(message) {
    const { live } = this;
    this.tries = 0;
    if (message.type === "hello") live.hello = message;
    if (message.type === "place" || message.type === "state") live.epoch = message.epoch;
    if (message.type === "state") live.state = message.state;
    live.emit(message.type, message);
  }

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
      bytes: data.byteLength,
      picture: new Uint8Array(data, HEADER),
    });
  }

  lost(event) {
    this.socket = null;
    if (event.code === ENDED || event.code === REPLACED) {
      this.closed = true;
      this.token = null;
      this.live.emit("lost", { text: event.reason || "The session has ended.", again: true });
      return;
    }
    if (event.code === GONE || this.tries > 4) this.token = null;
    this.tries += 1;
    this.live.emit("retry", { tries: this.tries });
    const wait = event.code === GONE && this.tries < 3 ? 0 : Math.min(4000, 250 * 2 ** this.tries);
    setTimeout(() => this.open(), wait);
  }

  again() {
    this.closed = false;
    this.tries = 0;
    this.token = null;
    this.open();
  }
}
