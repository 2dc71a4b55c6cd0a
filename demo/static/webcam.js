// The viewer's own camera as live input: pictures up the socket, as many as the stream plays; and how much of
// them is made anew.
import { make } from "./element.js";

const HEADER = 12, VERSION = 1, JPEG = 1;
const QUALITY = 0.85;
// what lies unsent beyond this is not added to: an old picture is worth nothing
const MOST_UNSENT = 64 * 1024;
// chunks that the delay is told from, and that are remembered
const DELAYS = 32, REMEMBERED = 1000;
/** @type {Record<string, string>} */
const WHY = {
  NotAllowedError: "The browser or you said no to the camera.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is used by something else.",
  OverconstrainedError: "The camera has no picture of this kind.",
};

export class Webcam {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    /** @type {MediaStream | null} */
    this.camera = null;
    this.video = make("video", { muted: true, playsInline: true });
    this.canvas = make("canvas");
    /** @type {ReturnType<typeof setInterval> | undefined} */
    this.timer = undefined;
    this.busy = false;
    // chunks of the camera that are not shown yet: their first frame, and when the picture in it was taken (s)
    /** @type {{ frame: number, taken: number }[]} */
    this.coming = [];
    this.start = 0;
    // seconds from a picture of the camera to what was made of it on screen, of the last chunks
    /** @type {number[]} */
    this.delays = [];
    const { part } = live;
    part.webcam.addEventListener("click", () => (this.camera ? this.off("The camera is off.") : this.on()));
    live.on("heard", (heard) => this.heard(heard));
    live.on("place", () => { this.coming = []; });
    // a chunk is told of before what is heard in it
    live.on("chunk", (chunk) => { this.start = chunk.start; });
    live.on("shown", (frame) => this.shown(frame.frame));
  }

  async on() {
    const { hello, part } = this.live;
    if (!hello) return;
    if (!window.isSecureContext || !navigator.mediaDevices) {
      this.say("Browsers give a page its camera over https, or on localhost, alone.");
      return;
    }
    part.webcam.disabled = true;
    try {
      const video = { width: { ideal: hello.width }, height: { ideal: hello.height }, frameRate: { ideal: hello.fps } };
      this.camera = await navigator.mediaDevices.getUserMedia({ video, audio: false });
      this.camera.getVideoTracks()[0].addEventListener("ended", () => this.off("The camera is gone."));
      this.video.srcObject = this.camera;
      await this.video.play();
      Object.assign(this.canvas, { width: hello.width, height: hello.height });
      this.timer = setInterval(() => this.look(), 1000 / hello.fps);
      this.delays = [];
      this.say("The camera is on.");
    } catch (error) {
      this.off(WHY[error.name] || `No camera: ${error.message}`);
    }
    part.webcam.disabled = false;
    this.label();
  }

  /** @param {string} text */
  off(text) {
    clearInterval(this.timer);
    const was = this.camera;
    this.camera = null;
    for (const track of was?.getTracks() || []) track.stop();
    this.video.srcObject = null;
    if (was && this.live.online) this.live.connection.send({ type: "webcam_off" });
    this.say(text);
    this.label();
  }

  // one picture, cropped to the stream's shape
  look() {
    const { live, video, canvas } = this;
    const pen = canvas.getContext("2d");
    if (this.busy || !live.running || !video.videoWidth || !pen) return;
    if (live.connection.unsent() > MOST_UNSENT) return;
    const scale = Math.max(canvas.width / video.videoWidth, canvas.height / video.videoHeight);
    const [width, height] = [video.videoWidth * scale, video.videoHeight * scale];
    pen.drawImage(video, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    const seconds = performance.now() / 1000;
    this.busy = true;
    canvas.toBlob((blob) => this.send(blob, seconds), "image/jpeg", QUALITY);
  }

  /**
   * @param {Blob | null} blob
   * @param {number} seconds
   */
  async send(blob, seconds) {
    this.busy = false;
    if (!blob) return;
    const picture = new Uint8Array(await blob.arrayBuffer());
    // turned off meanwhile
    if (!this.camera) return;
    const data = new Uint8Array(HEADER + picture.length);
    const view = new DataView(data.buffer);
    view.setUint8(0, VERSION);
    view.setUint8(1, JPEG);
    view.setFloat64(4, seconds, true);
    data.set(picture, HEADER);
    this.live.connection.sendBytes(data);
  }

  /** @param {import("./types.js").Heard} heard */
  heard(heard) {
    if (!this.camera) return;
    if (heard.taken !== null) this.coming.push({ frame: this.start, taken: heard.taken });
    if (heard.held) { this.say("The camera does not keep up: its last picture is held."); return; }
    const delays = this.delays.slice(-DELAYS).sort((a, b) => a - b);
    if (!delays.length) return;
    const late = delays[Math.min(delays.length - 1, Math.floor(0.95 * delays.length))];
    const lost = heard.dropped ? ", the stream does not keep up and leaves some out" : "";
    this.say(`The camera is on, ${Math.round(1000 * late)} ms from camera to picture${lost}.`);
  }

  /** @param {number} frame that is on screen now */
  shown(frame) {
    while (this.coming.length && this.coming[0].frame <= frame) {
      const { taken } = /** @type {{ frame: number, taken: number }} */ (this.coming.shift());
      this.delays = [...this.delays, performance.now() / 1000 - taken].slice(-REMEMBERED);
    }
  }

  label() {
    const { part } = this.live;
    part.webcam.textContent = this.camera ? "Camera off" : "Use my camera";
    part.webcam.setAttribute("aria-pressed", String(Boolean(this.camera)));
  }

  /** @param {string} text */
  say(text) { this.live.part.webcamText.textContent = text; }
}
