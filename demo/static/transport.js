// Start, pause, step, restart, start pictures, downloads, and what covers the picture meanwhile.
const LIGHT = {
  loading: "loading", ready: "ready", opening: "starting", playing: "live", paused: "paused", failed: "stopped",
  ended: "ended", queue: "waiting", lost: "offline",
};

export class Transport {
  constructor(live) {
    this.live = live;
    const { part, root } = live;
    this.picture = null;
    this.startedAt = 0;
    root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button && typeof this[button.dataset.do] === "function") this[button.dataset.do](button);
    });
    part.file.addEventListener("change", () => this.upload());
    part.notice.hidden = true;
    live.on("hello", (hello) => {
      part.model.textContent = `${hello.model} · ${hello.width}×${hello.height} at ${hello.fps} fps · ${hello.device}`;
    });
    live.on("state", (state) => this.state(state));
    live.on("queue", (queue) => this.queued(queue));
    live.on("loading", (loading) => this.loading(loading));
    live.on("idle", (idle) => this.idle(idle));
    live.on("ended", (ended) => { this.ended = ended.text; });
    live.on("lost", (lost) => this.lost(lost));
    live.on("retry", () => this.show("lost", "The connection is lost. Trying again …", false));
    live.on("error", (error) => this.notice(error.text));
    live.on("shown", (frame) => { if (this.startedAt && frame.epoch !== this.before) this.firstPicture(); });
  }

  start() {
    if (this.live.state === "failed") { this.notice(""); this.live.send({ type: "resume" }); return; }
    if (this.live.state === "lost" || this.live.state === "ended") { this.live.connection.again(); return; }
    this.restart();
  }

  restart() {
    const { part } = this.live;
    const prompt = part.prompt.value.trim() || this.live.options.examples[0];
    const seed = Math.min(2147483647, Math.max(0, Math.round(Number(part.seed.value) || 0)));
    part.seed.value = seed;
    this.startedAt = performance.now();
    this.before = this.live.epoch;
    this.live.strip.cancel();
    const settings = this.live.settings.values();
    this.live.send({ type: "start", prompt, seed, settings, picture: Boolean(this.picture) });
  }

  firstPicture() {
    this.live.firstMs = performance.now() - this.startedAt;
    this.startedAt = 0;
  }

  play() {
    this.live.send({ type: this.live.state === "playing" ? "pause" : "resume" });
  }

  step() { if (this.live.state === "paused") this.live.player.step(); else this.play(); }

  dice() { this.live.part.seed.value = Math.floor(Math.random() * 10000); this.restart(); }

  theme() {
    document.body.classList.toggle("dark");
  }

  clear() { this.live.paint.clear(); }

  queue() { this.live.prompts.add(); }

  recache() { this.live.prompts.past("recache"); }

  scene() { this.live.prompts.past("clear"); }

  rewind() { this.live.strip.go(); }

  cancel() { this.live.strip.cancel(); }

  clip() { this.save("clip.mp4", "streamgen.mp4"); }

  timeline() { this.save("timeline.json", "streamgen.json"); }

  async save(name, file) {
    const url = this.live.connection.url(name);
    url.searchParams.set("frames", this.live.player.shown + 1);
    this.chip(`Preparing ${file} …`);
    try {
      const answer = await fetch(url);
      if (!answer.ok) throw new Error((await answer.json()).error);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      this.chip("");
    } catch (error) { this.chip(""); this.notice(`${file}: ${error.message}`); }
  }

  async upload() {
    const { part, hello } = this.live;
    const file = part.file.files[0];
    if (!file) return;
    part.fileHint.textContent = `Reading ${file.name} …`;
    try {
      if (file.size > hello.upload_bytes) throw new Error("the file is too large: at most 32 MB are taken");
      const headers = { "content-type": file.type || "application/octet-stream" };
      const answer = await fetch(this.live.connection.url("picture"), { method: "POST", body: file, headers });
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.error);
      this.picture = body.picture;
      part.picture.src = body.picture;
      const what = body.frames > 1 ? `${body.frames} frames` : "This picture";
      part.fileHint.textContent = `${what} will begin the next stream. Restart to use it.`;
    } catch (error) {
      this.picture = null;
      part.fileHint.textContent = `Not taken: ${error.message}`;
    }
    part.picture.hidden = part.forget.hidden = !this.picture;
  }

  forget() {
    const { part } = this.live;
    this.picture = null;
    part.file.value = "";
    part.picture.hidden = part.forget.hidden = true;
    part.fileHint.textContent = "The next stream starts from the words alone.";
  }

  state(state) {
    const { part, root } = this.live;
    const running = ["playing", "paused", "failed"].includes(state.state);
    root.dataset.state = state.state;
    part.lightText.textContent = LIGHT[state.state] || state.state;
    part.play.textContent = state.state === "playing" ? "Pause" : "Go on";
    for (const name of ["play", "clip", "timeline", "restart", "recache", "scene"]) part[name].disabled = !running;
    part.stepButton.disabled = state.state !== "paused";
    if (state.state === "ready") this.ready(state.text);
    else if (state.state === "failed") this.failed(state.text);
    else { part.cover.hidden = true; if (state.state === "playing") this.notice(""); }
    this.opening = state.text ? `Starting: ${state.text} …` : "Starting …";
    this.chip(state.state === "opening" ? this.opening : "");
  }

  // `text`: why there was no start
  ready(text) {
    const how = this.live.hello.tracks ? "Change the words or drag things at any time." : "Change the words at any time.";
    const about = text ? `Not started: ${text}.` : `Endless video from your words, made while you watch. ${how}`;
    this.show("ready", about, true);
    // whoever waited for their turn has pressed start already
    if (this.waited && !text) this.restart();
    this.waited = false;
  }

  failed(text) {
    this.live.part.cover.hidden = true;
    this.notice(`The stream has stopped: ${text}. Nothing of it is lost: go on from here, or restart.`, "Go on", () => this.start());
  }

  loading({ text, share }) {
    const percent = share === null ? "" : ` ${Math.floor(100 * share)} %`;
    this.show("loading", `The model is being loaded: ${text}${percent} …`, false);
  }

  queued(queue) {
    const ahead = queue.position - 1;
    this.waited = true;
    const text = ahead
      ? `You are number ${queue.position} in the row: ${ahead} ${ahead === 1 ? "viewer is" : "viewers are"} before you.`
      : "You are next in the row.";
    this.show("queue", `All places are taken. ${text} This page starts by itself when it is your turn.`, false);
  }

  idle(idle) {
    if (idle.seconds === null) { this.notice(""); return; }
    const text = `Nobody has touched this stream for a while. It ends in ${idle.seconds} seconds.`;
    this.notice(text, "Keep watching", () => this.live.send({ type: "awake" }));
  }

  lost(lost) {
    const text = this.ended || lost.text;
    this.ended = null;
    this.live.state = "lost";
    this.notice("");
    this.show("lost", `${text[0].toUpperCase()}${text.slice(1)}.`.replace("..", "."), true, "Connect again");
    for (const name of ["play", "stepButton", "clip", "timeline", "restart", "recache", "scene"]) this.live.part[name].disabled = true;
  }

  show(state, text, button, label = "▶ Start") {
    const { part, root } = this.live;
    root.dataset.state = state;
    part.lightText.textContent = LIGHT[state];
    part.cover.hidden = false;
    part.coverText.textContent = text;
    part.startButton.hidden = !button;
    part.startButton.textContent = label;
  }

  chip(text) {
    this.live.part.chip.textContent = text;
    this.live.part.chip.hidden = !text;
  }

  notice(text, label = "", act = null) {
    const { part } = this.live;
    part.notice.hidden = !text;
    part.noticeText.textContent = text;
    part.noticeDo.hidden = !label;
    part.noticeDo.textContent = label;
    this.onNotice = act;
      }

  act() { this.onNotice?.(); }

  dismiss() { this.notice(""); }
}
