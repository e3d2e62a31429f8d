// What the server answers. Numbers come as a header in JSON and raw little-endian bytes behind it.

/** An answer with an error: `message` is for people. */
export class Refusal extends Error {}

async function answered(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer: was gpucnn demo ended?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refusal(told.error ?? `The server answers ${response.status}.`);
}

async function json(address, options) {
  return (await answered(address, options)).json();
}

async function parts(response) {
  const buffer = await response.arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { header, buffer, start: 4 + length };
}

const count = (shape) => shape.reduce((product, n) => product * n, 1);

/** Networks and backends to choose from, and how far the first training is. */
export const state = () => json("api/state");

/** What images a network takes: {channels, height, width, classes, digits}. */
export const network = (chosen) => json(`api/network?${new URLSearchParams(chosen)}`);

/** {images: [{label, pixels (bytes), height, width, channels}], why}: some that the network has not learned from, or why none. */
export async function samples(chosen, seed) {
  const { header, buffer, start } = await parts(await answered(`api/samples?${new URLSearchParams({ ...chosen, seed })}`));
  const { labels, shape: [, height, width, channels] = [], why = "" } = header;
  const size = height * width * channels;
  const images = labels.map((label, n) => ({
    label, height, width, channels, pixels: new Uint8Array(buffer, start + n * size, size),
  }));
  return { images, why };
}

function asked(chosen, image, more = {}) {
  const { height, width, channels, centre } = image;
  return new URLSearchParams({ ...chosen, height, width, channels, centre: centre ? 1 : 0, ...more });
}

function posted(image, signal) {
  return { method: "POST", headers: { "content-type": "application/octet-stream" }, body: image.pixels, signal };
}

/** {input, probabilities, classes, layers, milliseconds} of an image; input and each layer have shape and values. */
export async function look(chosen, image, signal) {
  const address = `api/look?${asked(chosen, image)}`;
  const { header, buffer, start } = await parts(await answered(address, posted(image, signal)));
  let at = start;
  const floats = (shape) => {
    const values = new Float32Array(buffer, at, count(shape));
    at += values.byteLength;
    return values;
  };
  const input = { shape: header.input, values: floats(header.input) };
  const probabilities = floats([header.classes.length]);
  const layers = header.layers.map((layer) => ({ ...layer, values: floats(layer.shown) }));
  return { ...header, input, probabilities, layers };
}

/** The address of a page that explains one unit of a layer. */
export async function explain(chosen, image, layer, unit, signal) {
  return (await json(`api/explain?${asked(chosen, image, { layer, unit: unit.join(",") })}`, posted(image, signal))).address;
}
