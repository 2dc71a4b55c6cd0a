// Wires the page together: one connection, one player, and a module for each kind of control.
import { Connection } from "./connection.js";
import { Player } from "./player.js";
import { Paint } from "./paint.js";
import { Prompts } from "./prompts.js";
import { Strip } from "./strip.js";
import { Settings } from "./settings.js";
import { Status } from "./status.js";
import { Keys } from "./keys.js";
import { Transport } from "./transport.js";
import { Camera } from "./camera.js";

export function mount(root, base) {
  const part = {};
  for (const node of root.querySelectorAll("[data-part]")) part[node.dataset.part] = node;
  const live = {
    root, base, part,
    options: JSON.parse(root.dataset.options),
    hello: null,
    state: "loading",
    epoch: 0,
    nextId: 1,
    listeners: {},
    on(type, tell) { (this.listeners[type] ||= []).push(tell); },
    emit(type, value) { for (const tell of this.listeners[type] || []) tell(value); },
    send(message) { return this.connection.send(message); },
    id() { return this.nextId++; },
  };
  live.connection = new Connection(live);
  live.player = new Player(live);
  live.settings = new Settings(live);
  live.prompts = new Prompts(live);
  live.strip = new Strip(live);
  live.paint = new Paint(live);
  live.camera = new Camera(live);
  live.transport = new Transport(live);
  live.status = new Status(live);
  live.keys = new Keys(live);
  // for whoever looks from outside: tests, and people with the console open
  window.streamgen = live;
  live.connection.open();
}
