// The page: what is chosen, what is drawn, and asking the server about it.

import { Bars, percent } from "./bars.js";
import { onChange, picture } from "./colours.js";
import { Drawing } from "./drawing.js";
import { latest } from "./latest.js";
import { Layers } from "./maps.js";
import * as server from "./server.js";

const LARGEST_UPLOAD = 512; // pixels of the longer side that are sent
const SETTLED = 500; // milliseconds without a change, after which a person is told and an explanation is made anew

const at = (id) => document.getElementById(id);
const chosen = () => ({ network: at("network").value, backend: at("backend").value });

let network = null; // what the chosen one takes
let upload = null; // the picture in colour that is looked at: {pixels, height, width, channels}
let answer = null; // the last one
let explained = null; // {view, place}: the unit whose explanation is shown
let seed = 0; // of the samples
let questions = 0; // asked so far
let settling = 0;

const drawing = new Drawing({
  canvas: at("drawing"), cursor: at("cursor"), brush: at("brush"), changed: changed, said: announce,
});
const bars = new Bars(at("bars"));
const layers = new Layers(at("layers"), {
  picked: (view, place) => {
    if (explained && explained.view !== view) explained.view.closeExplanation();
    explained = { view, place };
    explain();
  },
  closed: () => { explained = null; },
});

function announce(text) {
  at("announcement").textContent = text;
}

/** Show what went wrong, or that nothing does any more. */
function trouble(error) {
  at("trouble").hidden = !error;
  at("trouble").textContent = error ? error.message : "";
  if (error && !(error instanceof server.Refusal)) throw error;
}

/** Whether the answer that is shown is not yet that of what is drawn and chosen. */
function busy(yes) {
  at("main").setAttribute("aria-busy", yes);
}

/** Do something that asks the server; what it refuses is shown. */
async function shown(work) {
  try {
    const result = await work();
    trouble(null);
    return result;
  } catch (error) {
    if (error.name !== "AbortError") trouble(error);
    return null;
  }
}

// -- looking at the image --------------------------------------------------------------------------

function image() {
  if (network.channels === 3) return upload && { ...upload, centre: false };
  return { ...drawing.image(), centre: at("centre").checked };
}

const ask = latest(async (asked, signal) => {
  const slow = setTimeout(() => { at("time").textContent = `computing on ${asked.chosen.backend} …`; }, 400);
  try {
    const found = await shown(() => server.look(asked.chosen, asked.image, signal));
    if (found && !signal.aborted) show(found, asked);
  } finally {
    clearTimeout(slow);
    if (asked.number === questions) busy(false);
  }
});

/** The image is another one: ask about it, or once the chosen network is known. */
function changed() {
  at("hint").hidden = !drawing.empty;
  at("undo").disabled = drawing.marks.length === 0;
  at("clear").disabled = drawing.empty;
  const choosing = network?.id !== at("network").value;
  const asked = !choosing && image();
  questions += 1;
  busy(choosing || Boolean(asked));
  if (!asked) return;
  ask({ image: asked, chosen: chosen(), empty: network.channels === 1 && drawing.empty, number: questions });
}

function show(found, asked) {
  answer = found;
  const [height, width, channels] = found.input.shape;
  picture(at("input"), found.input.values, height, width, channels);
  at("input-size").textContent = `${height}×${width}${channels === 3 ? ", in colour" : ""}`;
  const first = bars.update(found.classes, asked.empty ? null : found.probabilities);
  at("verdict").textContent = asked.empty ? "–" : first.name;
  at("time").textContent = time(found.milliseconds, asked.chosen.backend);
  layers.update(found.layers);
  at("layers").classList.toggle("resting", asked.empty);
  clearTimeout(settling);
  settling = setTimeout(() => {
    if (!asked.empty) announce(`${first.name}, ${percent(first.share)}`);
    if (explained) explain();
  }, SETTLED);
}

function time(milliseconds, backend) {
  const taken = milliseconds < 1000 ? `${milliseconds.toFixed(1)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
  if (backend === "ptx") return `${taken} in the PTX machine, which interprets the compiled CUDA kernels on the CPU: it tells nothing about the speed of a GPU.`;
  if (backend !== "emulator") return `${taken} on ${backend}`;
  return `${taken} in the emulator, which runs the CUDA kernels on the CPU and checks every memory access: it tells nothing about the speed of a GPU.`;
}

const askWhy = latest(async ({ view, place, layer, image, chosen }, signal) => {
  const address = await shown(() => server.explain(chosen, image, layer, place, signal));
  if (address && explained?.view === view) view.explain(address, place);
});

function explain() {
  const { view, place } = explained;
  askWhy({ view, place, layer: view.layer.name, image: image(), chosen: chosen() });
}

// -- choosing --------------------------------------------------------------------------------------

function fill(select, entries, value) {
  select.replaceChildren(...entries.map(({ id, name }) => new Option(name, id)));
  select.value = value;
}

/** Another network or backend: what was asked of the old one counts no more. */
async function choose() {
  ask.drop();
  askWhy.drop();
  busy(true);
  const wanted = chosen(), before = upload;
  at("time").textContent = "";
  const found = await shown(() => server.network(wanted));
  if (wanted.network !== chosen().network) return;
  if (!found) {
    busy(false);
    return;
  }
  const other = !network || wanted.network !== network.id;
  const sizes = (one) => one && [one.channels, one.height, one.width].join();
  const resized = sizes(network) !== sizes(found);
  network = { ...found, id: wanted.network };
  if (other) showSamples();
  if (resized) prepareEasel(before);
  if (other) at("centre").checked = network.digits;
  changed();
}

/** For an image of the network's size; a picture that is not the one before it was chosen stays. */
function prepareEasel(before) {
  const colour = network.channels === 3;
  at("easel").hidden = colour;
  at("upload").hidden = !colour;
  at("easel-title").textContent = colour ? "Choose a picture" : network.digits ? "Draw a digit" : "Draw";
  at("input-size").textContent = `${network.height}×${network.width}`;
  if (upload === before) upload = null;
  if (!colour) drawing.setSize(network.height, network.width);
  drawing.repaint();
  if (colour) {
    bars.update(network.classes, null);
    at("verdict").textContent = "–";
    layers.clear();
    const { width, height } = at("input");
    at("input").getContext("2d").clearRect(0, 0, width, height);
  }
}

// -- samples and pictures --------------------------------------------------------------------------

async function showSamples() {
  const wanted = chosen();
  const found = await shown(() => server.samples(wanted, seed));
  if (!found || wanted.network !== chosen().network) return;
  at("samples").replaceChildren(...found.images.map(sampleButton));
  at("no-samples").textContent = found.why;
  at("no-samples").hidden = !found.why;
  at("others").hidden = Boolean(found.why);
}

function sampleButton(sample) {
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  button.type = "button";
  button.title = sample.label;
  button.setAttribute("aria-label", `sample of ${sample.label}`);
  picture(canvas, sample.pixels, sample.height, sample.width, sample.channels);
  onChange(() => picture(canvas, sample.pixels, sample.height, sample.width, sample.channels));
  button.append(canvas);
  button.addEventListener("click", () => {
    if (sample.channels === 1) {
      drawing.show(sample);
    } else {
      upload = sample;
      changed();
    }
  });
  return button;
}

async function take(file) {
  busy(true);
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) {
    busy(false);
    trouble(new server.Refusal(`${file.name} is not a picture that the browser can read`));
    return;
  }
  const zoom = Math.min(1, LARGEST_UPLOAD / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(zoom * bitmap.width));
  canvas.height = Math.max(1, Math.round(zoom * bitmap.height));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // what is transparent is as on paper
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  upload = {
    height: canvas.height, width: canvas.width, channels: 3, pixels: rgba.filter((_, n) => n % 4 !== 3),
  };
  changed();
}

// -- the start -------------------------------------------------------------------------------------

/** Show how the first network learns, until it has. Resolves with the state then. */
async function ready() {
  for (;;) {
    const state = await server.state();
    at("training").hidden = !state.training || Boolean(state.failed);
    document.body.classList.toggle("waiting", Boolean(state.training));
    if (state.failed) throw new server.Refusal(`The first network could not be trained: ${state.failed}`);
    if (!state.training) return state;
    const { epoch, epochs, share = 0, accuracy } = state.training;
    at("training-bar").value = share;
    if (epoch) {
      at("training-text").textContent = `pass ${epoch} of ${epochs}, ${percent(accuracy)} right on what it learns from`;
    }
    await new Promise((next) => setTimeout(next, 300));
  }
}

async function start() {
  const state = await shown(ready);
  if (!state) return;
  fill(at("network"), state.networks, state.networks[0].id);
  fill(at("backend"), state.backends, state.backend);
  const about = new Map(state.networks.map((one) => [one.id, one.about]));
  const lead = at("about").textContent;
  const tell = () => { at("about").textContent = about.get(at("network").value) || lead; };
  tell();
  at("network").addEventListener("change", () => { tell(); choose(); });
  at("backend").addEventListener("change", choose);
  at("undo").addEventListener("click", () => drawing.undo());
  at("clear").addEventListener("click", () => drawing.clear());
  at("centre").addEventListener("change", changed);
  at("others").addEventListener("click", () => { seed += 1; showSamples(); });
  at("file").addEventListener("change", () => { if (at("file").files[0]) take(at("file").files[0]); });
  at("upload").addEventListener("dragover", (event) => { event.preventDefault(); at("upload").classList.add("over"); });
  at("upload").addEventListener("dragleave", () => at("upload").classList.remove("over"));
  at("upload").addEventListener("drop", (event) => {
    event.preventDefault();
    at("upload").classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  onChange(() => {
    if (answer) picture(at("input"), answer.input.values, ...answer.input.shape);
  });
  await choose();
}

start();
