// One page: what its modules share, how they hear of each other, and what may be sent.
import { Availability } from "./availability.js";
import { Blend } from "./blend.js";
import { Boxes } from "./boxes.js";
import { Camera } from "./camera.js";
import { Connection } from "./connection.js";
import { Compare } from "./compare.js";
import { Cover } from "./cover.js";
import { Drop } from "./drop.js";
import { Held } from "./held.js";
import { Keys } from "./keys.js";
import { Lane } from "./lane.js";
import { Link } from "./link.js";
import { Notices } from "./notices.js";
import { Opening } from "./opening.js";
import { Paint } from "./paint.js";
import { Picture } from "./picture.js";
import { Player } from "./player.js";
import { Prompts } from "./prompts.js";
import { Queue } from "./queue.js";
import { Saving } from "./saving.js";
import { Settings } from "./settings.js";
import { Share } from "./share.js";
import { Status } from "./status.js";
import { Strip } from "./strip.js";
import { Theme } from "./theme.js";
import { Timelines } from "./timelines.js";
import { Transport } from "./transport.js";
import { Webcam } from "./webcam.js";
import { WordList } from "./wordlist.js";
import { Watching, watched } from "./watching.js";

/** @typedef {import("./types.js").Told} Told */

export class Live {
  /**
   * @param {HTMLElement} root
   * @param {URL} base address under which the server's routes lie
   */
  constructor(root, base) {
    this.root = root;
    this.base = base;
    /** @type {import("./types.js").Parts} */
    this.part = collected(root);
    /** @type {import("./types.js").Options} */
    this.options = JSON.parse(root.dataset.options || "{}");
    /** @type {import("./types.js").Hello | null} */
    this.hello = null;
    /** @type {import("./types.js").State} */
    this.state = "loading";
    this.online = false;
    this.epoch = 0;
    this.firstMs = 0;
    this.nextId = 1;
    /** @type {Record<string, ((value: any) => void)[]>} */
    this.listeners = {};
    // what buttons do, by their data-do
    /** @type {Record<string, () => void>} */
    this.doing = {};
    root.addEventListener("click", (event) => {
      const button = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("[data-do]"));
      this.doing[button?.dataset.do || ""]?.();
    });
    this.notices = new Notices(this);
    const watch = watched();
    // whether this page sees a stream that another one steers
    this.watching = watch !== null;
    this.connection = watch === null ? new Connection(this) : new Watching(this, watch);
    this.player = new Player(this);
    this.settings = new Settings(this);
    this.prompts = new Prompts(this);
    this.wordList = new WordList(this);
    this.queue = new Queue(this);
    this.blend = new Blend(this);
    this.strip = new Strip(this);
    this.held = new Held(this);
    this.boxes = new Boxes(this);
    this.paint = new Paint(this);
    this.camera = new Camera(this);
    this.picture = new Picture(this);
    this.saving = new Saving(this);
    this.cover = new Cover(this);
    this.opening = new Opening(this);
    this.transport = new Transport(this);
    this.status = new Status(this);
    this.theme = new Theme(this);
    this.availability = new Availability(this);
    this.keys = new Keys(this);
    this.share = new Share(this);
    this.link = new Link(this);
    this.timelines = new Timelines(this);
    this.lane = new Lane(this);
    this.compare = new Compare(this);
    this.webcam = new Webcam(this);
    this.drop = new Drop(this);
  }

  /**
   * @template {keyof Told} K
   * @param {K} type
   * @param {(value: Told[K]) => void} tell
   */
  on(type, tell) { (this.listeners[type] ||= []).push(tell); }

  /**
   * @template {keyof Told} K
   * @param {K} type
   * @param {Told[K]} value
   */
  emit(type, value) { for (const tell of this.listeners[type] || []) tell(value); }

  /** @param {Record<string, () => void>} table what buttons do that say so by data-do */
  does(table) { Object.assign(this.doing, table); }

  /** @param {import("./types.js").State} state */
  turn(state) {
    this.state = state;
    this.root.dataset.state = state;
    this.emit("turned", state);
  }

  /**
   * Say something to the server; whoever asked is told when it could not be.
   * @param {Record<string, any>} message
   */
  send(message) {
    if (this.connection.send(message)) return true;
    this.notices.tell("Not sent: there is no connection to the server.", { seconds: 6 });
    return false;
  }

  id() { return this.nextId++; }

  /** Whether a stream is there that can be steered. */
  get running() { return this.online && !this.watching && ["playing", "paused"].includes(this.state); }

  get fps() { return this.hello?.fps || 16; }

  /** @param {number} frame */
  time(frame) {
    const seconds = frame / this.fps, whole = Math.floor(seconds / 60);
    return `${whole}:${(seconds - 60 * whole).toFixed(1).padStart(4, "0")}`;
  }
}

/** @param {HTMLElement} root */
function collected(root) {
  /** @type {any} */
  const part = {};
  for (const node of root.querySelectorAll("[data-part]")) {
    if (node instanceof HTMLElement && node.dataset.part) part[node.dataset.part] = node;
  }
  return part;
}
