"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const shown = new Set(data.combinations);
const SVG = "http://www.w3.org/2000/svg";

function node(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function look(combination) {
  const rest = combination.split("+").filter((method) => method !== "int8" && method !== "dense").join("-");
  return { colour: `var(--${rest || "none"})`, filled: combination.includes("int8") };
}

function told(element, text) {
  element.setAttribute("tabindex", "0");
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", text.replaceAll("\n", ", "));
  const show = () => {
    const box = element.getBoundingClientRect();
    tip.textContent = text;
    tip.hidden = false;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 8}px`;
  };
  const hide = () => { tip.hidden = true; };
  element.addEventListener("pointerenter", show);
  element.addEventListener("pointerleave", hide);
  element.addEventListener("click", show);
  element.addEventListener("focus", show);
  element.addEventListener("blur", hide);
}

// 1, 2 and 5 times the powers of ten between two numbers.
function decades(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const digit of [1, 2, 5]) {
      const value = digit * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  return found;
}

function steps(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) found.push(Number(value.toFixed(9)));
  return found;
}

function scatter(holder) {
  const paper = holder.dataset.chart === "paper";
  const size = paper ? "analytic" : document.querySelector("input[name=size]:checked").value;
  const all = data[holder.dataset.chart].filter((point) => point[size] > 0 && point.score !== null);
  const points = all.filter((point) => shown.has(point.combination));
  holder.replaceChildren();
  if (!all.length) return;
  const width = holder.clientWidth, height = Math.max(300, Math.min(420, 0.8 * width));
  const edge = { left: 38, right: 10, top: 8, bottom: 36 };
  const svg = node(holder, "svg", { viewBox: `0 0 ${width} ${height}`, height });
  const sizes = all.map((point) => point[size]), scores = all.map((point) => point.score);
  const low = Math.min(...sizes) / 1.15, high = Math.max(...sizes) * 1.15;
  const span = Math.max(...scores) - Math.min(...scores) || 1;
  const bottom = Math.min(...scores) - 0.05 * span, top = Math.max(...scores) + 0.05 * span;
  const x = (value) => edge.left + (Math.log(value / low) / Math.log(high / low)) * (width - edge.left - edge.right);
  const y = (value) => height - edge.bottom - ((value - bottom) / (top - bottom)) * (height - edge.top - edge.bottom);
  let last = -Infinity;
  for (const value of decades(low, high)) {
    node(svg, "line", { class: "grid", x1: x(value), x2: x(value), y1: edge.top, y2: height - edge.bottom });
    if (x(value) - last > 30) {
      node(svg, "text", { x: x(value), y: height - edge.bottom + 14, "text-anchor": "middle" }, value);
      last = x(value);
    }
  }
  for (const value of steps(bottom, top, 7)) {
    node(svg, "line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) });
    node(svg, "text", { x: edge.left - 6, y: y(value) + 4, "text-anchor": "end" }, value);
  }
  const label = size === "disk" ? "MB on disk" : "analytic MB";
  node(svg, "text", { x: (width + edge.left) / 2, y: height - 4, "text-anchor": "middle" }, label);
  const ordered = [...points].sort((a, b) => a[size] - b[size] || b.score - a.score);
  if (document.getElementById("show-front").checked) {
    let path = "", best = -Infinity;
    for (const point of ordered)
      if (point.score > best) {
        path += path ? `H${x(point[size])}V${y(point.score)}` : `M${x(point[size])},${y(point.score)}`;
        best = point.score;
      }
    if (path) node(svg, "path", { d: `${path}H${width - edge.right}`, fill: "none", stroke: "var(--front)", "stroke-width": 5, opacity: 0.6 });
  }
  for (const combination of data.combinations) {
    const mine = ordered.filter((point) => point.combination === combination);
    const { colour, filled } = look(combination);
    const path = mine.map((point, place) => `${place ? "L" : "M"}${x(point[size])},${y(point.score)}`).join("");
    node(svg, "path", { d: path, fill: "none", stroke: colour, "stroke-width": 1.4, "stroke-dasharray": filled ? "" : "4 3" });
  }
  for (const point of ordered) {
    const { colour, filled } = look(point.combination);
    const dot = node(svg, "circle", {
      cx: x(point[size]), cy: y(point.score), r: 4.5, stroke: colour, "stroke-width": 1.8, fill: filled ? colour : "var(--ground)",
    });
    told(dot, point.text);
  }
}

function forest(holder) {
  const { rows, line, logarithmic } = data.forests[holder.dataset.forest];
  holder.replaceChildren();
  const width = holder.clientWidth, height = 26 * rows.length + 46;
  const edge = { left: Math.min(150, 0.34 * width), right: 14, top: 6, bottom: 40 };
  const svg = node(holder, "svg", { viewBox: `0 0 ${width} ${height}`, height });
  const turn = logarithmic ? Math.log : (value) => value;
  const ends = rows.flatMap((row) => [row.value, row.paper, ...(row.interval || [])]).filter((value) => value !== null);
  const low = Math.min(line, ...ends), high = Math.max(line, ...ends), room = 0.04 * (turn(high) - turn(low) || 1);
  const from = turn(low) - room, to = turn(high) + room;
  const x = (value) => edge.left + ((turn(value) - from) / (to - from)) * (width - edge.left - edge.right);
  const back = logarithmic ? Math.exp : (value) => value;
  let last = -Infinity;
  for (const value of steps(back(from), back(to), Math.max(3, width / 90))) {
    node(svg, "line", { class: "grid", x1: x(value), x2: x(value), y1: edge.top, y2: height - edge.bottom });
    if (x(value) - last > 26) {
      node(svg, "text", { x: x(value), y: height - edge.bottom + 14, "text-anchor": "middle" }, value);
      last = x(value);
    }
  }
  node(svg, "line", { class: "zero", x1: x(line), x2: x(line), y1: edge.top, y2: height - edge.bottom });
  rows.forEach((row, place) => {
    const y = edge.top + 26 * place + 13;
    node(svg, "text", { class: "name", x: edge.left - 8, y: y + 4, "text-anchor": "end" }, row.name);
    if (row.interval) node(svg, "line", { x1: x(row.interval[0]), x2: x(row.interval[1]), y1: y, y2: y, stroke: "var(--kd)", "stroke-width": 2.5 });
    if (row.value !== null) told(node(svg, "circle", { cx: x(row.value), cy: y, r: 5, fill: "var(--kd)" }), row.text);
    if (row.paper !== null) {
      const at = x(row.paper);
      const mark = node(svg, "path", { class: "paper", d: `M${at - 5.5},${y}l5.5,-5.5l5.5,5.5l-5.5,5.5z`, fill: "var(--ground)", stroke: "var(--mp)", "stroke-width": 1.8 });
      told(mark, `${row.name}\npaper: ${row.paper.toFixed(2)}`);
    }
  });
  node(svg, "circle", { cx: edge.left + 5, cy: height - 8, r: 5, fill: "var(--kd)" });
  node(svg, "text", { x: edge.left + 14, y: height - 4 }, rows.some((row) => row.interval) ? "ours, 95 % interval" : "ours");
  const start = edge.left + 142;
  node(svg, "path", { d: `M${start},${height - 8}l5.5,-5.5l5.5,5.5l-5.5,5.5z`, fill: "var(--ground)", stroke: "var(--mp)", "stroke-width": 1.8 });
  node(svg, "text", { x: start + 16, y: height - 4 }, "paper");
}

function drawAll() {
  document.querySelectorAll("[data-chart]").forEach(scatter);
  document.querySelectorAll("[data-forest]").forEach(forest);
}

const legend = document.getElementById("legend");
for (const combination of data.combinations) {
  const { colour, filled } = look(combination);
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  const mark = document.createElementNS(SVG, "svg");
  mark.setAttribute("width", 26);
  mark.setAttribute("height", 12);
  node(mark, "line", { x1: 0, x2: 26, y1: 6, y2: 6, stroke: colour, "stroke-width": 1.4, "stroke-dasharray": filled ? "" : "4 3" });
  node(mark, "circle", { cx: 13, cy: 6, r: 4, stroke: colour, "stroke-width": 1.8, fill: filled ? colour : "var(--raised)" });
  button.append(mark, combination);
  button.addEventListener("click", () => {
    const on = !shown.has(combination);
    if (on) shown.add(combination); else shown.delete(combination);
    button.setAttribute("aria-pressed", on);
    drawAll();
  });
  legend.append(button);
}
document.querySelectorAll("input").forEach((input) => input.addEventListener("change", drawAll));

document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  const heading = button.parentElement, row = heading.parentElement, body = row.closest("table").tBodies[0];
  const place = [...row.children].indexOf(heading);
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of row.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (line) => line.children[place].dataset.sort;
  const numbers = [...body.rows].every((line) => key(line) === "" || !Number.isNaN(Number(key(line))));
  const compare = (a, b) => {
    // Missing values stay last in both directions.
    if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
    return (up ? 1 : -1) * (numbers ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b)));
  };
  body.append(...[...body.rows].sort(compare));
}));

// Watch the width only: drawing and unfolding change the height. The first call is ours, because an observer hears of a
// size only with a frame, which a page that nobody looks at may never have.
const main = document.querySelector("main");
let width = 0;
function fit() {
  if (main.clientWidth === width) return;
  width = main.clientWidth;
  drawAll();
}
fit();
new ResizeObserver(fit).observe(main);
