// Small things that outlive the page: of the tab (until it is closed) or of the browser. Storage may be refused.

/** @param {string} name */
export function recall(name, storage = "sessionStorage") {
  try {
    const text = storageOf(storage).getItem(`streamgen-${name}`);
    return text === null ? null : JSON.parse(text);
  } catch { return null; }
}

/**
 * @param {string} name
 * @param {any} value null forgets it
 */
export function keep(name, value, storage = "sessionStorage") {
  try {
    if (value === null) storageOf(storage).removeItem(`streamgen-${name}`);
    else storageOf(storage).setItem(`streamgen-${name}`, JSON.stringify(value));
  } catch { /* a page that may keep nothing works without */ }
}

/** @param {string} name */
function storageOf(name) { return name === "localStorage" ? localStorage : sessionStorage; }
