// The layers: every map on a canvas of one pixel a unit, a mark for the unit that is pointed at, explanations.

import { onChange, paint, signed } from "./colours.js";

const SIDE = 84; // of a map as it is shown, at most
const LARGEST = 16; // of a unit of a map
const CELL = 13; // of a unit of a layer without maps
const ACROSS = 24; // such units in a row, at most

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const written = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))) : String(value)).replace("-", "−");

/** One layer: its title, its maps, what is pointed at, and the explanation of a unit. */
class LayerView {
  constructor(layer, { picked, closed }) {
    this.picked = picked;
    this.vector = layer.shown.length === 1;
    [this.maps, this.rows, this.columns] = this.vector ? grid(layer.shown[0]) : layer.shown;
    this.count = layer.values.length;
    this.at = null;
    this.title = `${layer.name} ${layer.kind}`.trim();
    const shown = this.vector ? this.count : this.maps;
    const all = this.vector ? layer.shape.reduce((product, n) => product * n, 1) : layer.shape[0];
    const shape = this.vector ? `${all} units` : `${all} maps of ${layer.shape[1]}×${layer.shape[2]}`;
    this.reading = element("output", { className: "reading" });
    this.box = element("div", { className: "maps", tabIndex: 0 });
    this.box.setAttribute("role", "application");
    this.box.setAttribute("aria-label", `${this.title}, ${shape}: arrows choose a unit, Enter explains it`);
    this.mark = element("span", { className: "mark", hidden: true });
    this.chosen = element("span", { className: "mark chosen", hidden: true });
    const zoom = this.vector ? CELL : Math.max(1, Math.min(LARGEST, Math.floor(SIDE / Math.max(this.rows, this.columns))));
    this.canvases = Array.from({ length: this.maps }, () => {
      const canvas = element("canvas");
      const holder = element("span", { className: "map" }, canvas);
      holder.style.width = `${zoom * this.columns}px`;
      holder.style.aspectRatio = `${this.columns} / ${this.rows}`;
      this.box.append(holder);
      return canvas;
    });
    this.below = element("div");
    new ResizeObserver(() => this.fit()).observe(this.below);
    const some = shown < all ? `, ${shown} of them` : "";
    const heading = element("h3", {}, this.title, " ", element("small", { textContent: `${shape}${some}` }));
    this.root = element("section", { className: "layer" }, element("div", { className: "row" }, heading, this.reading), this.box, this.below);
    this.box.addEventListener("pointermove", (event) => this.point(this.unitUnder(event)));
    this.box.addEventListener("pointerleave", () => this.point(null));
    this.box.addEventListener("click", (event) => this.pick(this.unitUnder(event)));
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.addEventListener("blur", () => this.point(null));
    this.close = () => {
      this.closeExplanation();
      closed();
    };
  }

  /** Draw new values of the same layer. */
  update(layer, table) {
    this.layer = layer;
    const { values } = layer;
    let limit = 0;
    for (const value of values) limit = Math.max(limit, Math.abs(value));
    const size = this.rows * this.columns;
    this.canvases.forEach((canvas, n) => {
      paint(canvas, values.subarray(n * size, (n + 1) * size), this.columns, this.rows, limit, table);
    });
    if (this.at) this.read();
  }

  // -- which unit --------------------------------------------------------------------------------

  unitUnder(event) {
    const holder = event.target.closest(".map");
    if (!holder) return null;
    const box = holder.getBoundingClientRect();
    const share = (at, length, n) => Math.max(0, Math.min(n - 1, Math.floor((at / length) * n)));
    const map = this.canvases.indexOf(holder.firstElementChild);
    const row = share(event.clientY - box.top, box.height, this.rows);
    const column = share(event.clientX - box.left, box.width, this.columns);
    return this.exists(row, column) ? { map, row, column } : null;
  }

  exists(row, column) {
    return !this.vector || row * this.columns + column < this.count;
  }

  /** The unit's place in the layer's output, of which the page may show every second, third, … row and column only. */
  place({ map, row, column }) {
    const { shape, step } = this.layer;
    if (!this.vector) return [map, row * step, column * step];
    let flat = row * this.columns + column;
    return shape.map((_, axis) => {
      const behind = shape.slice(axis + 1).reduce((product, n) => product * n, 1);
      const at = Math.floor(flat / behind);
      flat %= behind;
      return at;
    });
  }

  point(unit) {
    this.at = unit;
    this.putMark(this.mark, unit);
    this.reading.textContent = "";
    if (unit) this.read();
  }

  read() {
    const { map, row, column } = this.at;
    const value = this.layer.values[(map * this.rows + row) * this.columns + column];
    this.reading.textContent = `(${this.place(this.at).join(", ")}) = ${written(value)}`;
  }

  putMark(mark, unit) {
    mark.hidden = !unit;
    if (!unit) return;
    mark.style.left = `${(100 * unit.column) / this.columns}%`;
    mark.style.top = `${(100 * unit.row) / this.rows}%`;
    mark.style.width = `${100 / this.columns}%`;
    mark.style.height = `${100 / this.rows}%`;
    this.canvases[unit.map].parentElement.append(mark);
  }

  key(event) {
    const at = this.at ?? { map: 0, row: Math.floor((this.rows - 1) / 2), column: Math.floor((this.columns - 1) / 2) };
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key in moves) {
      const [down, right] = moves[event.key];
      this.point(this.at ? this.moved(at, down, right) : at);
    } else if (event.key === "Enter" || event.key === " ") {
      this.point(at);
      this.pick(at);
    } else if (event.key === "Escape" && this.frame) {
      this.close();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** The next unit in a direction; from the left or right edge of a map on to the next one. */
  moved({ map, row, column }, down, right) {
    let next = { map, row: row + down, column: column + right };
    if (next.column < 0) next = { map: map - 1, row, column: this.columns - 1 };
    if (next.column >= this.columns) next = { map: map + 1, row, column: 0 };
    const inside = next.map >= 0 && next.map < this.maps && next.row >= 0 && next.row < this.rows;
    return inside && this.exists(next.row, next.column) ? next : { map, row, column };
  }

  pick(unit) {
    if (unit) {
      this.putMark(this.chosen, unit);
      this.picked(this, this.place(unit));
    }
  }

  // -- explanation -------------------------------------------------------------------------------

  /** Show the page at an address below the maps; the one before stays until this one is there. */
  explain(address, place) {
    const frame = element("iframe", { title: `Explanation of unit (${place.join(", ")}) of ${this.title}`, src: address });
    frame.addEventListener("load", () => {
      if (frame !== this.frame) return;
      this.below.querySelectorAll("iframe").forEach((other) => other === frame || other.remove());
      frame.classList.add("ready");
      this.fit();
    });
    if (!this.frame) {
      const close = element("button", { type: "button", className: "slight", textContent: "Close" });
      close.addEventListener("click", () => {
        this.close();
        this.box.focus({ preventScroll: true });
      });
      this.below.append(element("div", { className: "row explained" }, element("span"), close));
    }
    this.below.querySelector("span").textContent = `Unit (${place.join(", ")})`;
    this.frame = frame;
    this.below.append(frame);
  }

  /** Give the frame the height of the page in it. */
  fit() {
    const page = this.frame?.contentDocument?.documentElement;
    if (page) this.frame.style.height = `${page.offsetHeight}px`;
  }

  closeExplanation() {
    this.frame = null;
    this.below.replaceChildren();
    this.chosen.hidden = true;
  }
}

/** [maps, rows, columns] of units in one line, folded. */
function grid(count) {
  const columns = Math.min(count, ACROSS);
  return [1, Math.ceil(count / columns), columns];
}

/** All layers. `picked(view, place)` is called for a unit that is clicked, `closed()` when an explanation is closed. */
export class Layers {
  constructor(root, on) {
    this.root = root;
    this.on = on;
    this.views = [];
    this.shapes = "";
    this.table = signed();
    onChange(() => {
      this.table = signed();
      if (this.shown) this.update(this.shown);
    });
  }

  /** Draw what the layers made of an image. The elements are made anew only if the layers are others. */
  update(layers) {
    this.shown = layers;
    const shapes = JSON.stringify(layers.map(({ name, kind, shape }) => [name, kind, shape]));
    if (shapes !== this.shapes) {
      this.shapes = shapes;
      this.views = layers.map((layer) => new LayerView(layer, this.on));
      this.root.replaceChildren(...this.views.map((view) => view.root));
      this.on.closed();
    }
    layers.forEach((layer, n) => this.views[n].update(layer, this.table));
  }

  clear() {
    this.update([]);
  }
}
