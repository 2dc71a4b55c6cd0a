// Makes elements, so that what a module says of one stands in one place.

/**
 * An element with its properties and what is inside it; buttons submit nothing.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any> & { text?: string, label?: string, data?: Record<string, string>, click?: () => void }} about
 *   `text` inside it, `label` for those who hear it, `data` attributes, what a `click` does, and other properties
 * @param {(Node | string)[]} inside
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, { text, label, data, click, ...properties } = {}, ...inside) {
  const made = document.createElement(tag);
  Object.assign(made, tag === "button" ? { type: "button" } : {}, properties);
  Object.assign(made.dataset, data);
  if (text !== undefined) made.textContent = text;
  if (label) made.setAttribute("aria-label", label);
  if (click) made.addEventListener("click", click);
  made.append(...inside);
  return made;
}
