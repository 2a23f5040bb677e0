"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [height, width] = data.size;
const steps = data.weights.length;
const RASTER = 112, longest = Math.max(height, width);
const rows = Math.max(Math.round(height * RASTER / longest), 1);
const cols = Math.max(Math.round(width * RASTER / longest), 1);
const canvas = document.getElementById("heat"), pen = canvas.getContext("2d");
canvas.width = cols; canvas.height = rows;
const buttons = [...document.querySelectorAll(".word")];
const box = document.getElementById("box"), under = document.getElementById("under");
const same = document.getElementById("same"), frame = document.querySelector(".frame");
let chosen = -1, shown = -1;

const mean = values => values[0].map((_, i) => values.reduce((sum, row) => sum + row[i], 0) / steps);
const weightsOf = step => step < 0 ? mean(data.weights) : data.weights[step];
const sharesOf = step => {
  if (step >= 0) return data.shares[step];
  const total = {};
  for (const row of data.shares) for (const [name, value] of Object.entries(row))
    total[name] = (total[name] || 0) + value / steps;
  return total;
};

// how an interval spreads over cells, each cell's part; the parts sum to 1
function cover(first, last, length, cells) {
  const size = length / cells, parts = [];
  let total = 0;
  for (let i = Math.max(Math.floor(first / size), 0); i < Math.min(Math.ceil(last / size), cells); i++) {
    const part = Math.min(last, (i + 1) * size) - Math.max(first, i * size);
    if (part > 0) { parts.push([i, part]); total += part; }
  }
  return parts.map(([i, part]) => [i, part / total]);
}
const covers = data.boxes.map(([top, left, bottom, right]) =>
  [cover(top, bottom, height, rows), cover(left, right, width, cols)]);

function density(weights) {
  const heat = new Float64Array(rows * cols);
  weights.forEach((weight, n) => {
    if (!data.drawn[n]) return;
    for (const [y, down] of covers[n][0]) for (const [x, across] of covers[n][1])
      heat[y * cols + x] += weight * down * across;
  });
  return heat;
}
const heats = new Map();
function heatOf(step) {
  if (!heats.has(step)) heats.set(step, density(weightsOf(step)));
  return heats.get(step);
}
// an even map is shown as one, in a dark colour
const brightest = heat => Math.max(
  heat.reduce((a, b) => Math.max(a, b), 1e-12),
  data.even * heat.reduce((a, b) => a + b, 0) / heat.length);

function colour(value) {
  let i = 1;
  while (i < data.stops.length - 1 && value > data.stops[i][0]) i++;
  const [a, ...low] = data.stops[i - 1], [b, ...high] = data.stops[i];
  const t = Math.min(Math.max((value - a) / (b - a), 0), 1);
  return low.map((c, k) => Math.round(c + t * (high[k] - c)));
}

function show(step) {
  shown = step;
  const heat = heatOf(step);
  let most = brightest(heat);
  if (same.checked) for (let i = 0; i < steps; i++) most = Math.max(most, brightest(heatOf(i)));
  const pixels = pen.createImageData(cols, rows);
  heat.forEach((value, i) => pixels.data.set(colour(value / most), 4 * i));
  pen.putImageData(pixels, 0, 0);
  buttons.forEach(b => {
    const on = Number(b.dataset.step) === step;
    b.setAttribute("aria-pressed", on);
    b.tabIndex = on ? 0 : -1;
  });
  drawSpatial(weightsOf(step));
  drawShares(sharesOf(step));
  drawLayers(step);
}
function bar(value, most, name, title) {
  const element = document.createElement("div"), fill = document.createElement("i");
  element.className = "bar"; element.title = title;
  fill.style.height = `${85 * value / most}%`;
  element.append(fill, name);
  return element;
}
function drawSpatial(weights) {
  const own = data.names.map((name, n) => [name, weights[n]]).filter(([name]) => /^S\d+$/.test(name));
  const section = document.getElementById("spatial");
  section.hidden = own.length === 0;
  const most = Math.max(...own.map(([, w]) => w), 1e-12);
  section.querySelector(".bars").replaceChildren(
    ...own.map(([name, w]) => bar(w, most, name, `${name}: ${percent(w)}`)));
}
const percent = value => `${(100 * value).toFixed(value < .001 ? 3 : 1)} %`;
function drawShares(shares) {
  document.getElementById("shares").replaceChildren(...Object.entries(shares).map(([name, value]) => {
    const row = document.createElement("tr");
    for (const [text, kind] of [[name, ""], [percent(value), "number"], ["", "meter"]]) {
      const cell = row.insertCell();
      cell.textContent = text; cell.className = kind;
    }
    const fill = document.createElement("i");
    fill.style.width = `${100 * value}%`;
    row.lastChild.append(fill);
    return row;
  }));
}
function drawLayers(step) {
  const values = step < 0 ? mean(data.byLayer) : data.byLayer[step];
  document.getElementById("layers-part").hidden = values.length < 2;
  document.getElementById("layers").replaceChildren(
    ...values.map((v, i) => bar(v, 1, "", `layer ${data.layers[i]}: ${percent(v)}`)));
}

function select(step, focus) {
  chosen = Math.min(Math.max(step, -1), steps - 1);
  show(chosen);
  const button = buttons[chosen + 1];
  if (focus) button.focus();
  button.scrollIntoView({ block: "nearest" });
}
buttons.forEach(b => {
  b.addEventListener("click", () => select(Number(b.dataset.step), true));
  b.addEventListener("mouseenter", () => show(Number(b.dataset.step)));
  b.addEventListener("mouseleave", () => show(chosen));
});
document.addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const move = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: -1, End: steps - 1 }[event.key];
  if (move === undefined) return;
  event.preventDefault();
  select(move, true);
});
same.addEventListener("change", () => show(chosen));
frame.addEventListener("pointermove", event => {
  const place = frame.getBoundingClientRect();
  const y = (event.clientY - place.top) / place.height * height;
  const x = (event.clientX - place.left) / place.width * width;
  let best = -1, area = Infinity;
  data.boxes.forEach(([top, left, bottom, right], n) => {
    const size = (bottom - top) * (right - left);
    if (data.drawn[n] && y >= top && y < bottom && x >= left && x < right && size < area) { best = n; area = size; }
  });
  box.hidden = best < 0;
  if (best < 0) return;
  const [top, left, bottom, right] = data.boxes[best];
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  box.style.top = `${100 * clip(top, height) / height}%`;
  box.style.left = `${100 * clip(left, width) / width}%`;
  box.style.height = `${100 * (clip(bottom, height) - clip(top, height)) / height}%`;
  box.style.width = `${100 * (clip(right, width) - clip(left, width)) / width}%`;
  under.textContent = `${data.names[best]}: ${percent(weightsOf(shown)[best])} of the weight`;
});
frame.addEventListener("pointerleave", () => { box.hidden = true; under.textContent = "\u00a0"; });
show(-1);
// inside of another page: say how high this one is
if (parent !== window) new ResizeObserver(() => {
  parent.postMessage({ drawing: document.documentElement.getBoundingClientRect().height }, "*");
}).observe(document.documentElement);
