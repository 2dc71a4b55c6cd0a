// Entry: the page's modules come to life on the markup.
import { Live } from "./live.js";

/**
 * @param {HTMLElement} root
 * @param {URL} base
 */
export function mount(root, base) {
  const live = new Live(root, base);
  // for whoever looks from outside: tests, and people with the console open
  Object.assign(window, { streamgen: live });
  if ("streamgenEarly" in window) live.transport.start();
  live.connection.open();
}
