// What lies over the picture while nothing plays: how to begin, the place in the row, a lost connection.
const LIGHT = {
  loading: "loading", ready: "ready", opening: "starting", playing: "live", paused: "paused", failed: "stopped",
  queue: "waiting", lost: "ended", retry: "offline",
};
const WELCOME = "Endless video from your words.";
const STEERING = "Change the words or drag things at any time.", WORDS_ALONE = "Change the words at any time.";

export class Cover {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    this.ended = "";
    this.forgotten = false;
    this.moved = "";
    /** @type {ReturnType<typeof setInterval> | undefined} */
    this.counting = undefined;
    live.on("state", (state) => this.state(state));
    live.on("loading", (loading) => this.loading(loading));
    live.on("queue", (queue) => this.queued(queue));
    live.on("idle", (idle) => this.idle(idle.seconds));
    live.on("ended", (ended) => { this.ended = ended.text; });
    live.on("lost", (lost) => this.lost(lost.text));
    live.on("retry", (retry) => { this.show("retry", retry.text, ""); live.turn("retry"); });
    live.on("moved", ({ text }) => { this.moved = text; live.notices.tell(text, { key: "moved", seconds: 20 }); });
    live.on("gone", ({ kept }) => { this.forgotten = !kept; });
    live.on("reopened", ({ frame }) => this.reopened(frame));
    live.part.draws.textContent = live.options.draws;
    live.on("turned", (state) => { live.part.lightText.textContent = LIGHT[state]; });
  }

  /** @param {import("./types.js").StateMessage} message */
  state({ state, text }) {
    const { live } = this;
    this.idle(null);
    const opening = text ? `Starting: ${text} …` : "Starting …";
    live.notices.chip("opening", state === "opening" ? opening : "");
    if (state === "ready" && live.watching) this.show("ready", "You watch. Nothing plays yet; it begins here by itself.", "");
    else if (state === "ready") {
      const lost = "The server has not kept your stream; it ended while the connection was lost. Start begins a new one.";
      const welcome = `${WELCOME} ${live.hello?.tracks ? STEERING : WORDS_ALONE}`;
      const about = text ? `Not started: ${text}.` : this.forgotten ? lost : welcome;
      // who is told why there was no start presses again when they want to
      if (text) live.transport.wanted = false;
      this.show("ready", about, "▶ Start");
    } else live.part.cover.hidden = true;
    if (state === "failed") {
      const said = `The stream has stopped: ${text}. Nothing of it is lost: go on from here, or restart.`;
      live.notices.tell(said, { key: "failed", label: "Go on", act: () => live.transport.start() });
    } else live.notices.takeBack("failed");
  }

  /** @param {{ text: string, share: number | null }} loading */
  loading({ text, share }) {
    const percent = share === null ? "" : ` ${Math.floor(100 * share)} %`;
    this.show("loading", `The model is being loaded: ${text}${percent} …`, "");
    this.live.turn("loading");
  }

  /** @param {{ position: number }} queue */
  queued({ position }) {
    const ahead = position - 1;
    const text = ahead
      ? `You are number ${position} in the row: ${ahead} ${ahead === 1 ? "viewer is" : "viewers are"} before you.`
      : "You are next in the row.";
    this.show("queue", `All places are taken. ${text} This page starts by itself when it is your turn.`, "");
    this.live.transport.wanted = true;
    this.live.turn("queue");
  }

  /** @param {number | null} seconds until the session ends; null: it does not */
  idle(seconds) {
    const { live } = this;
    clearInterval(this.counting);
    if (seconds === null) { live.notices.takeBack("idle"); return; }
    const end = performance.now() + 1000 * seconds;
    const say = () => {
      const left = Math.max(0, Math.round((end - performance.now()) / 1000));
      const text = `Nobody has touched this stream for a while. It ends in ${left} seconds.`;
      if (live.notices.key === "idle") live.part.noticeText.textContent = text;
      else live.notices.tell(text, { key: "idle", label: "Keep watching", act: () => live.send({ type: "awake" }) });
    };
    say();
    this.counting = setInterval(say, 1000);
  }

  /** @param {string} text */
  lost(text) {
    const said = this.ended ? `${this.ended[0].toUpperCase()}${this.ended.slice(1)}.` : text;
    this.ended = "";
    this.idle(null);
    if (this.live.watching) { this.show("lost", said, "Try again"); this.live.turn("lost"); return; }
    const more = this.live.connection.played ? " What was made can still be saved, and gone on with for an hour." : "";
    this.show("lost", said + more, "Connect again");
    this.live.turn("lost");
  }

  /** @param {number} frame */
  reopened(frame) {
    const why = this.moved || "The connection was lost for long, or the server began anew.";
    this.moved = "";
    const text = `${why} Your stream goes on from ${this.live.time(frame)}, where it was kept last. Branches are gone.`;
    this.live.notices.tell(text, { key: "reopened", seconds: 20 });
  }

  /**
   * @param {string} state
   * @param {string} text
   * @param {string} button its label, "" for none
   */
  show(state, text, button) {
    const { part } = this.live;
    part.cover.hidden = false;
    part.cover.dataset.kind = state;
    part.coverText.textContent = text;
    part.startButton.hidden = !button;
    part.startButton.textContent = button || "▶ Start";
  }
}
