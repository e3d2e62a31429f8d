// The page's colours as bytes, light or dark as the reader's system is.

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Call `then` whenever the system changes between light and dark. */
export const onChange = (then) => dark.addEventListener("change", then);

function named(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).split(",").map(Number);
}

/** The colour of ink: [red, green, blue]. */
export const ink = () => named("--ink-rgb");

/** 511 colours (ABGR, as a little-endian pixel is read): −255 is fully below, 0 the ground, 255 fully above. */
export function signed() {
  const [below, ground, above] = ["--down-rgb", "--ground-rgb", "--up-rgb"].map(named);
  const table = new Uint32Array(511);
  for (let i = -255; i <= 255; i++) {
    const end = i < 0 ? below : above;
    const share = (Math.abs(i) / 255) ** 0.8;
    const [r, g, b] = ground.map((from, c) => Math.round(from + share * (end[c] - from)));
    table[i + 255] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return table;
}

/** Draw values on a canvas of one pixel a value; `limit` is the value of full colour. What lies behind the end is clear. */
export function paint(canvas, values, width, height, limit, table) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const scale = limit > 0 ? 255 / limit : 0;
  for (let i = 0; i < values.length; i++) {
    pixels[i] = table[Math.max(-255, Math.min(255, Math.round(values[i] * scale) || 0)) + 255];
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Draw an image [H, W, C] of values 0 to 255: gray as ink on paper, colour as it is. */
export function picture(canvas, values, height, width, channels) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  const [r, g, b] = ink();
  for (let i = 0; i < width * height; i++) {
    image.data.set(channels === 1 ? [r, g, b, values[i]] : [values[3 * i], values[3 * i + 1], values[3 * i + 2], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
