// The sheet: strokes by mouse, touch, pen or keys; undo and clear.

import { ink, onChange, picture } from "./colours.js";

const SIDE = 280; // pixels of the longer side
const PER_BRUSH = 3; // pixels of a stroke's width for each step of the slider

/** Ink on a canvas. What is drawn is kept as a list of marks, so that undo is leaving out the last. */
export class Drawing {
  /** changed() is called after every change, said(text) with what a person who does not see should know. */
  constructor({ canvas, cursor, brush, changed, said }) {
    Object.assign(this, { canvas, cursor, brush, changed, said });
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.marks = [];
    this.stroke = null;
    this.pen = { x: SIDE / 2, y: SIDE / 2, down: false };
    this.setSize(28, 28);
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.end());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.showPen());
    canvas.addEventListener("blur", () => this.liftPen());
    onChange(() => this.repaint());
  }

  /** Make the sheet one for images of that height and width: a whole number of its pixels is one of theirs. */
  setSize(height, width) {
    this.zoom = Math.max(1, Math.floor(SIDE / Math.max(height, width)));
    this.canvas.width = width * this.zoom;
    this.canvas.height = height * this.zoom;
    this.pen = { x: this.canvas.width / 2, y: this.canvas.height / 2, down: false };
    this.marks = [];
    this.stroke = null;
  }

  get empty() {
    const last = this.marks.at(-1);
    return !last || last.kind === "clear";
  }

  clear() {
    if (!this.empty) this.add({ kind: "clear" });
  }

  undo() {
    if (this.marks.pop()) {
      this.stroke = null;
      this.repaint();
      this.changed();
    }
  }

  /** Put a gray sample on the sheet in the place of what is there. */
  show(sample) {
    this.add({ kind: "sample", sample });
  }

  add(mark) {
    this.marks.push(mark);
    this.repaint();
    this.changed();
  }

  /** The ink as the server takes it: one byte a pixel, light on dark. */
  image() {
    const { width, height } = this.canvas;
    const rgba = this.context.getImageData(0, 0, width, height).data;
    const pixels = new Uint8Array(width * height);
    for (let i = 0; i < pixels.length; i++) pixels[i] = rgba[4 * i + 3];
    return { pixels, width, height, channels: 1 };
  }

  // -- pointers ----------------------------------------------------------------------------------

  begin(event) {
    if (event.button !== 0 || this.stroke) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor.hidden = true;
    this.start(this.place(event));
  }

  move(event) {
    if (!this.stroke || this.pen.down) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) this.extend(this.place(one));
    this.changed();
  }

  end() {
    if (!this.pen.down) this.stroke = null;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  start(point) {
    this.stroke = { kind: "stroke", width: PER_BRUSH * this.brush.valueAsNumber, points: [point] };
    this.marks.push(this.stroke);
    this.paint(this.stroke);
    this.changed();
  }

  extend(point) {
    this.stroke.points.push(point);
    this.paint({ ...this.stroke, points: this.stroke.points.slice(-2) });
  }

  // -- keys --------------------------------------------------------------------------------------

  key(event) {
    const step = event.shiftKey ? 28 : 7;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      this.pen.x = Math.max(0, Math.min(this.canvas.width, this.pen.x + dx));
      this.pen.y = Math.max(0, Math.min(this.canvas.height, this.pen.y + dy));
      if (this.pen.down) {
        this.extend({ x: this.pen.x, y: this.pen.y });
        this.changed();
      }
      this.showPen();
    } else if (event.key === " ") {
      if (this.pen.down) {
        this.liftPen();
        this.showPen();
        this.said("pen up");
      } else {
        this.pen.down = true;
        this.start({ x: this.pen.x, y: this.pen.y });
        this.showPen();
        this.said("pen down");
      }
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.liftPen();
      this.clear();
      this.showPen();
      this.said("cleared");
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.liftPen();
      this.undo();
      this.showPen();
      this.said("undone");
    } else {
      return;
    }
    event.preventDefault();
  }

  showPen() {
    if (!this.canvas.matches(":focus-visible")) return;
    this.cursor.hidden = false;
    this.cursor.classList.toggle("down", this.pen.down);
    this.cursor.style.left = `${(100 * this.pen.x) / this.canvas.width}%`;
    this.cursor.style.top = `${(100 * this.pen.y) / this.canvas.height}%`;
  }

  liftPen() {
    this.cursor.hidden = true;
    if (this.pen.down) this.stroke = null;
    this.pen.down = false;
  }

  // -- painting ----------------------------------------------------------------------------------

  repaint() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const from = this.marks.findLastIndex((mark) => mark.kind !== "stroke");
    for (const mark of this.marks.slice(Math.max(from, 0))) this.paint(mark);
  }

  paint(mark) {
    if (mark.kind === "sample") {
      const small = document.createElement("canvas");
      picture(small, mark.sample.pixels, mark.sample.height, mark.sample.width, 1);
      this.context.imageSmoothingEnabled = false;
      this.context.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
    } else if (mark.kind === "stroke") {
      const [first, ...rest] = mark.points;
      this.context.strokeStyle = `rgb(${ink().join(",")})`;
      this.context.lineWidth = mark.width;
      this.context.lineCap = this.context.lineJoin = "round";
      this.context.beginPath();
      this.context.moveTo(first.x, first.y);
      for (const point of rest.length ? rest : [first]) this.context.lineTo(point.x, point.y);
      this.context.stroke();
    }
  }
}
