// Sliders: sent when they rest, and moved when the stream goes to a moment with other settings.
const SLIDERS = [
  ["text_guidance", "Text guidance", 0, 8, 0.1],
  ["motion_guidance", "Motion guidance", 0, 8, 0.1],
  ["steps", "Steps", 1, 16, 1],
];
const REST_MS = 150;
const SMALL_PIXELS = 128 * 128;

export class Settings {
  constructor(live) {
    this.live = live;
    this.inputs = {};
    for (const [name, label, min, max, step] of SLIDERS) {
      const row = document.createElement("label");
      row.className = "sg-slider";
      const text = document.createElement("span");
      text.textContent = label;
      const input = document.createElement("input");
      Object.assign(input, { type: "range", min, max, step });
      input.value = live.options.settings[name] ?? min;
      input.dataset.setting = name;
      const value = document.createElement("output");
      row.append(text, input, value);
      live.part.sliders.append(row);
      this.inputs[name] = { input, value };
      input.addEventListener("input", () => { this.write(name); this.changed(name); });
      this.write(name);
    }
    this.waiting = {};
    live.part.pixelated.addEventListener("change", () => this.sharp());
    this.sharp();
    live.on("hello", (hello) => this.suit(hello));
    live.on("place", (place) => this.place(place.settings));
    live.on("receipt", (receipt) => {
      // words have a line of their own
      if (receipt.kind !== "prompt" && receipt.status === "refused") live.transport.notice(`Not taken: ${receipt.reason}.`);
    });
  }

  // what a model does not have is not shown; larger pictures are enlarged smoothly
  suit(hello) {
    this.adapters(hello.loras);
    this.inputs.motion_guidance.input.closest("label").hidden = !hello.tracks;
    if (this.suited) return;
    this.suited = true;
    this.live.part.pixelated.checked = hello.width * hello.height <= SMALL_PIXELS;
    this.sharp();
  }

  // a slider for each LoRA whose strength may change, told together as one setting
  adapters(loras) {
    this.loras ||= {};
    for (const [name, strength] of Object.entries(loras)) {
      if (name in this.loras) continue;
      const row = document.createElement("label");
      row.className = "sg-slider";
      const input = document.createElement("input");
      Object.assign(input, { type: "range", min: -1, max: 2, step: 0.05, value: strength });
      input.dataset.lora = name;
      const text = document.createElement("span"), value = document.createElement("output");
      text.textContent = `LoRA ${name}`;
      row.append(text, input, value);
      this.live.part.sliders.append(row);
      this.loras[name] = { input, value };
      input.addEventListener("input", () => {
        value.textContent = Number(input.value).toFixed(2);
        this.waiting.lora = Object.entries(this.loras).map(([each, { input }]) => `${each}:${input.value}`).join(",");
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.send(), REST_MS);
      });
      value.textContent = Number(strength).toFixed(2);
    }
  }

  write(name) {
    const { input, value } = this.inputs[name];
    value.textContent = Number(input.value).toFixed(Number(input.step) < 1 ? 1 : 0);
  }

  values() {
    return Object.fromEntries(Object.entries(this.inputs).map(([name, { input }]) => [name, Number(input.value)]));
  }

  changed(name) {
    this.waiting[name] = Number(this.inputs[name].input.value);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), REST_MS);
  }

  send() {
    const { live } = this;
    const settings = this.waiting;
    this.waiting = {};
    if (!["playing", "paused"].includes(live.state)) return;
    const id = live.id();
    if (live.send({ type: "event", id, epoch: live.epoch, settings })) live.status.asked(id);
  }

  place(settings) {
    for (const [name, { input }] of Object.entries(this.inputs)) {
      if (name in settings) { input.value = settings[name]; this.write(name); }
    }
  }

  sharp() {
    this.live.part.video.classList.toggle("sharp", this.live.part.pixelated.checked);
  }
}
