"use strict";
// Draws on the pad, asks the server about its pixels, shows what it answers.
// What others wrote, such as names of classes, is only ever set as text.

const element = (id) => document.getElementById(id);
const pad = element("pad");
const context = pad.getContext("2d", { willReadFrequently: true });
const pen = { x: 0, y: 0, down: false };
let config;
let changes = 0; // of the pad: answers to older ones are not shown
let asking = false;

// ---------------------------------------------------------------- elements

function made(tag, className, ...children) {
  const one = document.createElement(tag);
  if (className) one.className = className;
  one.append(...children.map((c) => (typeof c === "number" ? String(c) : c)));
  return one;
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

function distance(value) {
  if (value === null) return "not found";
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

function picture(title, uri, text, ...caption) {
  const image = made("img");
  image.src = uri;
  image.alt = text;
  return made("figure", "", image,
    made("figcaption", "", made("b", "", title),
      ...caption.map((line) => made("span", "", line))));
}

function bar({ class: name, probability }) {
  const share = made("span", "share");
  share.style.setProperty("--share", percent(probability).replace(" ", ""));
  const label = made("span", "name", name);
  label.title = name;
  return made("li", "", label, made("span", "track", share),
    made("span", "value", percent(probability)));
}

function pictures(model, image) {
  const found = model.adversarial;
  if (!found) {
    return made("p", "muted", "No adversarial image was found, or the model's "
      + "preprocessing does not let it be shown.");
  }
  return made("div", "trio",
    picture("yours", image, "The image that was asked about",
      `${model.class}, ${percent(model.probability)}`),
    picture("change", found.perturbation, "The perturbation, amplified",
      `shown \u00d7 ${found.amplified}`,
      `up to \u00b1 ${found.largest.toFixed(0)}`),
    picture("nearest", found.image, "The nearest adversarial image found",
      `${found.class}, ${percent(found.probability)}`,
      `rho ${distance(found.rho)}`, `l\u2082 ${distance(found.l2)}`));
}

function card(model, image) {
  const list = made("dl", "");
  for (const [title, value] of [
    ["rho to the boundary, at most", distance(model.rho)],
    ["l\u2082 to the boundary, at most", distance(model.l2)],
    ["class behind it", model.nearest_class ?? "not found"],
  ]) list.append(made("dt", "", title), made("dd", "", value));
  return made("article", "card", made("h2", "", model.name),
    made("p", "answer", made("strong", "", model.class),
      made("span", "", percent(model.probability))),
    made("ol", "bars", ...model.most_probable.map(bar)),
    list, pictures(model, image));
}

function verdict(models) {
  const [first, ...others] = models;
  const agree = others.every((m) => m.class === first.class);
  if (!agree) {
    return "The models disagree: "
      + models.map((m) => `${m.name} says ${m.class}`).join(", ") + ".";
  }
  const who = others.length > 1 ? "All say" : "Both say";
  const what = `${others.length ? who : "It says"} ${first.class}. `;
  // Of the image that is shown, where all have one: it is the shorter attack's.
  const length = (m) =>
    (models.every((one) => one.adversarial) ? m.adversarial : m).rho;
  const times = others
    .filter((m) => length(m) !== null && length(first) > 0)
    .map((m) => `${m.name} takes ${(length(m) / length(first)).toFixed(2)} `
      + "times");
  if (times.length) {
    return `${what}To be fooled, ${times.join(", ")} the change that `
      + `${first.name} takes.`;
  }
  return what + (length(first) === null ? "No boundary was found."
    : `A change of ${percent(length(first))} of its norm fools it.`);
}

function tell(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

// ------------------------------------------------------------------ asking

async function fetched(path, options) {
  const answer = await fetch(path, options);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

function post(request) {
  return fetched("ask", { method: "POST", body: JSON.stringify(request),
    headers: { "Content-Type": "application/json" } });
}

function pixels() {
  const [height, width, channels] = config.shape;
  const { data } = context.getImageData(0, 0, width, height);
  return Array.from({ length: height }, (_, y) =>
    Array.from({ length: width }, (_, x) => {
      const start = 4 * (y * width + x);
      return Array.from(data.subarray(start, start + channels));
    }));
}

function isBlank() {
  const { data } = context.getImageData(0, 0, pad.width, pad.height);
  return data.every((value, place) => place % 4 === 3 || value === 0);
}

// The newest image, one request at a time.
async function ask() {
  changes += 1;
  if (asking) return;
  asking = true;
  element("cards").classList.add("waiting");
  tell("Asking the models.");
  try {
    for (let asked = -1; asked !== changes;) {
      asked = changes;
      if (isBlank()) { empty(); continue; }
      const answer = await post({ pixels: pixels() });
      if (asked === changes) show(answer);
    }
  } catch (error) {
    tell(`No answer: ${error.message}`, true);
  }
  asking = false;
  element("cards").classList.remove("waiting");
}

function show({ image, models }) {
  element("cards").replaceChildren(...models.map((m) => card(m, image)));
  element("verdict").textContent = verdict(models);
  tell("");
  document.body.dataset.answers = changes;
}

function empty() {
  element("cards").replaceChildren(...config.models.map((name) =>
    made("article", "card", made("h2", "", name),
      made("p", "muted", "Nothing is drawn yet."))));
  element("verdict").textContent = "Draw something, and see how little makes "
    + "the models take it for something else.";
  tell("");
}

async function upload(file) {
  if (!file) return;
  if (file.size > config.most_bytes) {
    const most = (config.most_bytes / 2 ** 20).toFixed(0);
    tell(`${file.name} is too large: at most ${most} MiB.`, true);
    return;
  }
  tell("Reading the file.");
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  try {
    const answer = await post({ encoded: btoa(text) });
    await draw(answer.image);
    changes += 1;
    show(answer);
  } catch (error) {
    tell(`${file.name}: ${error.message}`, true);
  }
}

// ----------------------------------------------------------------- drawing

function fill(colour) {
  context.fillStyle = colour;
  context.fillRect(0, 0, pad.width, pad.height);
}

async function draw(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  fill("#000");
  context.drawImage(image, 0, 0, pad.width, pad.height);
}

function line(from, to) {
  context.strokeStyle = element("colour").value;
  context.lineWidth = Number(element("brush").value);
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x, to.y);
  context.stroke();
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * pad.width) / box.width,
    y: ((event.clientY - box.top) * pad.height) / box.height };
}

function listenToPointers() {
  let last = null;
  pad.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || last) return;
    pad.setPointerCapture(event.pointerId);
    last = place(event);
    line(last, last);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!last || !pad.hasPointerCapture(event.pointerId)) return;
    for (const one of [...event.getCoalescedEvents(), event]) {
      const next = place(one);
      line(last, next);
      last = next;
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, () => {
      if (!last) return;
      last = null;
      ask();
    });
  }
}

function showPen() {
  element("pen").style.left = `${(100 * pen.x) / pad.width}%`;
  element("pen").style.top = `${(100 * pen.y) / pad.height}%`;
  element("pen").classList.toggle("down", pen.down);
}

function listenToKeys() {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
    ArrowDown: [0, 1] };
  pad.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step && event.key !== " ") return;
    event.preventDefault();
    element("pen").hidden = false;
    const before = { ...pen };
    if (step) {
      const size = Math.max(1, pad.width / 28);
      pen.x = Math.min(Math.max(pen.x + size * step[0], 0), pad.width);
      pen.y = Math.min(Math.max(pen.y + size * step[1], 0), pad.height);
    } else {
      pen.down = !pen.down;
    }
    if (pen.down) {
      line(before, pen);
      ask();
    }
    showPen();
  });
  pad.addEventListener("blur", () => {
    pen.down = false;
    element("pen").hidden = true;
  });
}

function listenToTools() {
  element("clear").addEventListener("click", () => {
    fill("#000");
    ask();
  });
  element("invert").addEventListener("click", () => {
    context.globalCompositeOperation = "difference";
    fill("#fff");
    context.globalCompositeOperation = "source-over";
    ask();
  });
  element("upload").addEventListener("change", async (event) => {
    await upload(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  pad.addEventListener("dragover", (event) => {
    event.preventDefault();
    pad.classList.add("over");
  });
  pad.addEventListener("dragleave", () => pad.classList.remove("over"));
  pad.addEventListener("drop", (event) => {
    event.preventDefault();
    pad.classList.remove("over");
    upload(event.dataTransfer.files[0]);
  });
}

function sampleButton({ name, image }) {
  const shown = made("img");
  shown.src = image;
  shown.alt = name;
  const button = made("button", "", shown);
  button.type = "button";
  button.title = name;
  button.addEventListener("click", async () => {
    await draw(image);
    ask();
  });
  return button;
}

// ------------------------------------------------------------------- start

async function start() {
  config = await fetched("config");
  const [height, width, channels] = config.shape;
  Object.assign(pad, { width, height });
  pad.setAttribute("aria-label", `Drawing pad, ${width} by ${height} pixels`);
  Object.assign(pen, { x: width / 2, y: height / 2 });
  const brush = element("brush");
  Object.assign(brush, { min: width / 28, max: width / 5, step: width / 280 });
  brush.value = width / 12; // about the strokes of MNIST
  element("colour-label").hidden = channels === 1;
  element("attack").textContent = config.attack;
  element("samples").replaceChildren(...config.samples.map(sampleButton));
  element("samples-box").hidden = config.samples.length === 0;
  fill("#000");
  listenToPointers();
  listenToKeys();
  listenToTools();
  const wanted = new URLSearchParams(location.hash.slice(1)).get("sample");
  const first = config.samples.find((s) => s.name === wanted)
    ?? config.samples[0];
  if (first && wanted !== "") await draw(first.image);
  await ask();
}

start().catch((error) => tell(`The page failed: ${error.message}`, true));
