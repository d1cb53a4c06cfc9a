"use strict";
// Hover, touch and arrow keys show the step and the values of a chart. All text enters through textContent.
const charts = JSON.parse(document.getElementById("charts").textContent);

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

function format(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size < 1e-3) return value.toExponential(2);
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

function element(parent, name, className, text) {
  const child = parent.appendChild(document.createElement(name));
  if (className) child.className = className;
  if (text !== undefined) child.textContent = text;
  return child;
}

for (const plot of document.querySelectorAll("[data-chart]")) {
  const chart = charts[Number(plot.dataset.chart)];
  const [x0, x1, y0, y1] = chart.box;
  const many = chart.series.length > 6;
  const all = [...new Set(chart.series.flatMap((s) => s.x).concat(chart.markers.map((m) => m.x)))].sort((a, b) => a - b);
  if (!all.length) continue;
  let drawn = [], at = -1;

  function clear() {
    drawn.forEach((node) => node.remove());
    drawn = [];
  }

  function show(index, height) {
    clear();
    at = index;
    const step = all[index], left = (step - x0) / (x1 - x0), rows = [];
    for (const line of chart.series) {
      const i = line.x.length ? nearest(line.x, step) : -1;
      if (i >= 0 && line.y[i] !== null && line.x[i] === step) rows.push({ ...line, value: line.y[i], text: format(line.y[i]) });
    }
    if (many && height !== null) {
      rows.sort((a, b) => Math.abs(a.value - height) - Math.abs(b.value - height));
      rows.length = Math.min(rows.length, 4);
      rows.sort((a, b) => b.value - a.value);
    }
    for (const mark of chart.markers) if (mark.x === step) rows.push({ ...mark, value: mark.y });
    const rule = element(plot, "div", "rule");
    rule.style.left = `${left * 100}%`;
    drawn.push(rule);
    const tip = element(plot, "div", "tip");
    drawn.push(tip);
    const head = element(tip, "div");
    element(head, "span", "", chart.label);
    element(head, "b", "", step.toLocaleString("en"));
    for (const row of rows) {
      const spot = element(plot, "div", "spot");
      spot.style.left = `${left * 100}%`;
      spot.style.top = `${((y1 - row.value) / (y1 - y0)) * 100}%`;
      const path = plot.querySelector(`path.line.${row.style}, path.dot.${row.style}`);
      if (path) spot.style.color = getComputedStyle(path).stroke;
      drawn.push(spot);
      const entry = element(tip, "div");
      element(entry, "span", "", row.name);
      element(entry, "b", "", row.text);
    }
    const room = plot.clientWidth, width = tip.offsetWidth;
    const wanted = left * room + (left < 0.5 ? 14 : -14 - width);
    tip.style.left = `${Math.max(-36, Math.min(wanted, room - width))}px`;
  }

  function follow(event) {
    const box = plot.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left) / box.width) * (x1 - x0);
    show(nearest(all, x), y1 - ((event.clientY - box.top) / box.height) * (y1 - y0));
  }
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", clear);
  plot.addEventListener("blur", clear);
  plot.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") clear();
    if (!way) return;
    event.preventDefault();
    show(Math.max(0, Math.min(all.length - 1, at < 0 ? all.length - 1 : at + way)), null);
  });
}
