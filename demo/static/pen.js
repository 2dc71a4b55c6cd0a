// Draws lines and dots on the canvas over the picture, each with a dark edge that shows on any picture.

export class Pen {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.scale = 1;
  }

  // a clean sheet in the size that is shown; false while nothing is
  clear() {
    const { canvas, context } = this;
    this.scale = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * this.scale), height = Math.round(canvas.clientHeight * this.scale);
    if (!width) return false;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    context.clearRect(0, 0, width, height);
    context.lineCap = context.lineJoin = "round";
    return true;
  }

  /**
   * @param {import("./types.js").Point[]} points
   * @param {string} colour
   */
  line(points, colour, alpha = 1) {
    const { canvas, context } = this;
    context.globalAlpha = alpha;
    for (const [style, thick] of /** @type {[string, number][]} */ ([["rgba(0,0,0,.55)", 6], [colour, 3]])) {
      context.strokeStyle = style;
      context.lineWidth = thick * this.scale;
      context.beginPath();
      points.forEach((point, i) => context[i ? "lineTo" : "moveTo"](point.x * canvas.width, point.y * canvas.height));
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /**
   * @param {import("./types.js").Point} point
   * @param {string} colour
   * @param {number} size radius in CSS pixels
   */
  dot(point, colour, size) {
    const { canvas, context } = this;
    context.beginPath();
    context.arc(point.x * canvas.width, point.y * canvas.height, size * this.scale, 0, 7);
    context.fillStyle = colour;
    context.fill();
    context.strokeStyle = "rgba(0,0,0,.6)";
    context.lineWidth = 2 * this.scale;
    context.stroke();
  }

  /**
   * A box of left, top, right, bottom.
   * @param {number[]} edges
   * @param {string} colour
   * @param {boolean} [dashed]
   */
  frame([left, top, right, bottom], colour, dashed = false) {
    const { canvas, context, scale } = this;
    const [x, y, w, h] = [left * canvas.width, top * canvas.height, (right - left) * canvas.width, (bottom - top) * canvas.height];
    context.globalAlpha = dashed ? 0.75 : 1;
    context.setLineDash(dashed ? [6 * scale, 6 * scale] : []);
    for (const [style, thick] of /** @type {[string, number][]} */ ([["rgba(0,0,0,.55)", 5], [colour, 2.5]])) {
      context.strokeStyle = style;
      context.lineWidth = thick * scale;
      context.strokeRect(x, y, w, h);
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  /**
   * The tracks of a grid of width, height and spacing about a point, as small dots.
   * @param {import("./types.js").Point} middle
   * @param {number[] | null | undefined} grid
   * @param {string} colour
   */
  patch(middle, grid, colour) {
    if (!grid) return;
    const [width, height, spacing] = grid, down = (spacing * this.canvas.width) / this.canvas.height;
    const columns = Math.floor(width / spacing + 1e-6) + 1, rows = Math.floor(height / down + 1e-6) + 1;
    for (let i = 0; i < columns; i += 1) {
      for (let j = 0; j < rows; j += 1) {
        this.dot({ x: middle.x + (i - (columns - 1) / 2) * spacing, y: middle.y + (j - (rows - 1) / 2) * down }, colour, 3);
      }
    }
  }

  /**
   * A few letters on a ground of their own.
   * @param {string} text
   * @param {import("./types.js").Point} at
   * @param {string} colour
   */
  badge(text, at, colour) {
    const { canvas, context, scale } = this;
    context.font = `600 ${12 * scale}px system-ui, sans-serif`;
    const width = context.measureText(text).width + 10 * scale, height = 17 * scale;
    const x = Math.min(canvas.width - width, Math.max(0, at.x * canvas.width - width / 2));
    const y = Math.min(canvas.height - height, Math.max(0, at.y * canvas.height - height - 9 * scale));
    context.fillStyle = colour;
    context.beginPath();
    context.roundRect(x, y, width, height, 8 * scale);
    context.fill();
    context.fillStyle = "#0b0d10";
    context.textBaseline = "middle";
    context.fillText(text, x + 5 * scale, y + height / 2 + scale / 2);
  }
}
