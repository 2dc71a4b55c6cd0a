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
}
