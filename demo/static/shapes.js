// Paths that need no drawing: from where one taps, towards the side with more room.

/** @typedef {import("./types.js").Point} Point */
/** @type {Record<string, { seconds: number, at: (share: number) => [number, number] }>} */
const SHAPES = {
  across: { seconds: 2.5, at: (share) => [0.6 * share, 0] },
  fro: { seconds: 3, at: (share) => [0.4 * Math.sin(Math.PI * share), 0] },
  circle: { seconds: 3, at: (share) => [0.18 * (1 - Math.cos(2 * Math.PI * share)), 0.18 * Math.sin(2 * Math.PI * share)] },
  wave: { seconds: 3, at: (share) => [0.6 * share, 0.12 * Math.sin(4 * Math.PI * share)] },
};
const POINTS = 36;

/**
 * A path of that shape, as rows of milliseconds, x and y.
 * @param {string} name
 * @param {Point} from
 * @returns {[number, number, number][]}
 */
export function shaped(name, from) {
  const { seconds, at } = SHAPES[name];
  const [right, down] = [from.x <= 0.5 ? 1 : -1, from.y <= 0.5 ? 1 : -1];
  return Array.from({ length: POINTS + 1 }, (_, i) => {
    const [dx, dy] = at(i / POINTS);
    return [(1000 * seconds * i) / POINTS, unit(from.x + right * dx), unit(from.y + down * dy)];
  });
}

/** @param {number} value */
export function unit(value) { return Math.min(1, Math.max(0, value)); }
