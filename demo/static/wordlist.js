// Words of a model that knows only so many: chips by kind, and what it does not know marked while it is typed.
import { make } from "./element.js";

// Tokens as the model reads them.
const WORD = /[\p{L}\p{N}]+/gu;
const MOST_TOLD = 3;

export class WordList {
  /** @param {import("./live.js").Live} live */
  constructor(live) {
    this.live = live;
    const { options, part } = live;
    this.words = new Set(options.words);
    this.kinds = Object.entries(options.kinds);
    part.unknown.hidden = part.inputUnknown.hidden = !this.words.size;
    part.chips.hidden = !this.kinds.length;
    part.exampleBox.toggleAttribute("open", !this.kinds.length);
    /** @type {[string, string, HTMLButtonElement][]} */
    this.buttons = [];
    for (const [kind, phrases] of this.kinds) this.row(kind, phrases);
    for (const field of [part.prompt, part.inputPrompt]) field.addEventListener("input", () => this.changed());
    part.prompt.addEventListener("scroll", () => { part.mirror.scrollTop = part.prompt.scrollTop; });
    this.offers(part.unknown, part.prompt);
    this.offers(part.inputUnknown, part.inputPrompt);
    this.changed();
  }

  /**
   * @param {string} kind
   * @param {string[]} phrases
   */
  row(kind, phrases) {
    const row = make("div", { role: "group", label: kind }, make("span", { text: kind }));
    for (const phrase of phrases) {
      const text = phrase.replace(/^(moves|over the) /, ""), click = () => this.choose(kind, phrase);
      const button = make("button", { text, data: { needs: "online" }, click });
      row.append(button);
      this.buttons.push([kind, phrase, button]);
    }
    this.live.part.chips.append(row);
  }

  /**
   * The prompt with another word of a kind; it is applied unless somebody is at it.
   * @param {string} kind
   * @param {string} phrase
   */
  choose(kind, phrase) {
    const { live } = this;
    const { prompt } = live.part, mine = live.prompts.typing;
    const said = Object.fromEntries(this.kinds.map(([name, phrases]) => [name, found(prompt.value, phrases)]));
    const old = said[kind];
    const words = old ? prompt.value.replace(whole(old), phrase) : sentence(this.kinds, { ...said, [kind]: phrase });
    prompt.value = words;
    this.changed();
    if (!mine) { live.prompts.said = words; if (live.running) live.prompts.apply(words, true); }
  }

  // marks what is unknown, with the nearest word that is known, and the chips that are said
  changed() {
    const { part } = this.live;
    const text = part.prompt.value;
    for (const [kind, phrase, button] of this.buttons) {
      const [, phrases] = this.kinds.find(([name]) => name === kind) || ["", []];
      button.setAttribute("aria-pressed", String(found(text, phrases) === phrase));
    }
    if (!this.words.size) return;
    /** @type {(Node | string)[]} */
    const mirror = [];
    let end = 0;
    const unknown = this.unknown(part.prompt);
    for (const match of unknown) {
      mirror.push(text.slice(end, match.index), make("mark", { text: match[0] }));
      end = match.index + match[0].length;
    }
    part.mirror.replaceChildren(...mirror, `${text.slice(end)}\n`);
    this.tell(unknown, part.unknown);
    this.tell(this.unknown(part.inputPrompt), part.inputUnknown);
  }

  /** @param {HTMLInputElement | HTMLTextAreaElement} field */
  unknown(field) {
    const typed = document.activeElement === field ? field.selectionEnd : -1;
    return [...field.value.matchAll(WORD)].filter((match) => {
      const word = match[0].toLowerCase();
      // a word that is being typed may still become one
      const growing = match.index + match[0].length === typed && [...this.words].some((known) => known.startsWith(word));
      return !this.words.has(word) && !growing;
    });
  }

  /**
   * @param {RegExpExecArray[]} matches
   * @param {HTMLElement} place
   */
  tell(matches, place) {
    const unknown = [...new Set(matches.map(([word]) => word.toLowerCase()))];
    const parts = unknown.slice(0, MOST_TOLD).flatMap((word) => {
      const near = nearest(word, this.words);
      const short = word.length > 18 ? `${word.slice(0, 16)}…` : word;
      if (!near) return [`“${short}” `];
      const button = make("button", { text: near, data: { word }, label: `Write ${near} in place of ${short}` });
      return [`“${short}” nearest: `, button, " "];
    });
    if (parts.length) parts.unshift("Unknown: ");
    if (unknown.length > MOST_TOLD) parts.push(`and ${unknown.length - MOST_TOLD} more`);
    const told = unknown.join(" ");
    if (told === place.dataset.told) return;
    place.dataset.told = told;
    place.replaceChildren(...parts);
  }

  /**
   * Known words in place of those of a field that are not, at a press.
   * @param {HTMLElement} place
   * @param {HTMLInputElement | HTMLTextAreaElement} field
   */
  offers(place, field) {
    place.addEventListener("click", (event) => {
      const button = /** @type {HTMLElement} */ (event.target).closest("button");
      if (!button) return;
      field.value = field.value.replace(whole(button.dataset.word || ""), button.textContent || "");
      this.changed();
      field.dispatchEvent(new Event("change"));
      field.focus();
    });
  }
}

/**
 * The word of a list that is nearest to one, if any is near.
 * @param {string} word
 * @param {Iterable<string>} words
 */
export function nearest(word, words) {
  let best = "", least = Math.max(2, Math.min(4, word.length / 2)) + 0.6;
  for (const known of words) {
    if (known.length < 2 || Math.abs(known.length - word.length) >= least) continue;
    // of words as near as each other, the one that begins alike for longest
    let alike = 0;
    while (alike < 5 && known[alike] && known[alike] === word[alike]) alike += 1;
    const away = distance(word, known) + 0.5 - alike / 10;
    if (away < least) { least = away; best = known; }
  }
  return best;
}

/**
 * Letters to change, add, leave out or swap with their neighbour (Damerau and Levenshtein).
 * @param {string} one
 * @param {string} other
 */
function distance(one, other) {
  let [before, last] = [/** @type {number[]} */ ([]), Array.from({ length: other.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= one.length; i += 1) {
    const now = [i];
    for (let j = 1; j <= other.length; j += 1) {
      const same = one[i - 1] === other[j - 1] ? 0 : 1;
      now[j] = Math.min(now[j - 1] + 1, last[j] + 1, last[j - 1] + same);
      const swapped = i > 1 && j > 1 && one[i - 1] === other[j - 2] && one[i - 2] === other[j - 1];
      if (swapped) now[j] = Math.min(now[j], before[j - 2] + 1);
    }
    [before, last] = [last, now];
  }
  return last[other.length];
}

/**
 * The longest of some phrases that a text has.
 * @param {string} text
 * @param {string[]} phrases
 */
function found(text, phrases) {
  return [...phrases].sort((a, b) => b.length - a.length).find((phrase) => whole(phrase).test(text)) || "";
}

/** @param {string} phrase */
function whole(phrase) {
  const plain = phrase.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`(?<![\\p{L}\\p{N}])${plain}(?![\\p{L}\\p{N}])`, "iu");
}

/**
 * A prompt of one word or phrase of each kind that is said, and a thing in any case.
 * @param {[string, string[]][]} kinds
 * @param {Record<string, string>} said
 */
function sentence(kinds, said) {
  const shape = said.shape || kinds.find(([kind]) => kind === "shape")?.[1][0] || "";
  const words = kinds.map(([kind]) => (kind === "shape" ? shape : said[kind])).filter(Boolean).join(" ");
  return `${/^[aeiou]/.test(words) ? "an" : "a"} ${words}`;
}
