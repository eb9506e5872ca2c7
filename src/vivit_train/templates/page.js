"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Plotly reads some HTML in labels, so names are escaped like in HTML.
const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const short = (text, length = 28) => escaped(text.length > length ? `${text.slice(0, length - 1)}…` : text);
const percent = (x) => { // as utils/text.py: only none is 0 %, and only all is 100 %
  if (x === null) return "-";
  const text = [0, 1].map((digits) => (100 * x).toFixed(digits)).find((text) => x === 0 || x === 1 || (text > 0 && text < 100));
  return text ? `${text} %` : x > 0.5 ? "> 99.9 %" : "< 0.1 %";
};

// Tables: a click on a heading sorts, the search box filters by the text of the first column.
function sortTable(table, column, descending) {
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const isText = table.tHead.rows[0].cells[column].classList.contains("text");
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (isText) return x.localeCompare(y, undefined, { numeric: true });
    return x === "" ? (y === "" ? 0 : 1) : y === "" ? -1 : (descending ? -1 : 1) * (x - y);
  };
  const rows = [...table.tBodies[0].rows].sort(compare);
  table.tBodies[0].append(...(isText && descending ? rows.reverse() : rows));
  for (const [i, cell] of [...table.tHead.rows[0].cells].entries()) {
    cell.setAttribute("aria-sort", i !== column ? "none" : descending ? "descending" : "ascending");
  }
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, cell] of [...table.tHead.rows[0].cells].entries()) {
    cell.querySelector("button")?.addEventListener("click", () => {
      const before = cell.getAttribute("aria-sort");
      const first = cell.classList.contains("text") ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      sortTable(table, column, (before === first ? other : first) === "descending");
    });
  }
}
for (const input of document.querySelectorAll("input[type=search]")) {
  const table = document.getElementById(input.dataset.table), count = input.parentElement.querySelector(".count");
  const filter = () => {
    const wanted = input.value.trim().toLowerCase(), rows = [...table.tBodies[0].rows];
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  input.addEventListener("input", filter);
  filter();
}

// Charts. Each has a function that returns Plotly's traces and layout in the colors of the page.
function layout(changes) {
  const axis = (more) => ({
    gridcolor: color("grid"), zerolinecolor: color("grid"), linecolor: color("line"), automargin: true, ...more,
  });
  const { xaxis, yaxis, ...rest } = changes;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("soft"), size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 48, r: 24, t: 12, b: 44 }, height: 330, hovermode: "closest",
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: axis(xaxis), yaxis: axis(yaxis), ...rest,
  };
}
const line = (x, y, name, tone, more = {}) => ({
  x, y, name, mode: "lines+markers", line: { color: color(tone), width: 2 }, marker: { size: 5 }, cliponaxis: false, ...more,
});
const dashed = (x, y, name) => line(x, y, name, "soft", {
  mode: "lines", line: { color: color("soft"), width: 1.5, dash: "dash" }, hoverinfo: "name",
});
const whiskers = (value, low, high, tone) => ({
  type: "data", symmetric: false, array: high.map((h, i) => h - value[i]), arrayminus: low.map((l, i) => value[i] - l),
  color: color(tone), thickness: 1.2, width: 3,
});
const share = { range: [0, 1], tickformat: ".0%" };

const charts = {
  accuracy_curve(curves) {
    const tones = ["accent", "second", "good", "bad"], epochs = curves.epoch;
    const traces = Object.entries(curves.accuracy).map(([name, y], i) => line(epochs, y, name, tones[i % 4]));
    const ends = [Math.min(...epochs), Math.max(...epochs)];
    if (curves.chance !== null) traces.push(dashed(ends, [curves.chance, curves.chance], "chance"));
    if (curves.best) {
      traces.push({ x: [curves.best.epoch], y: [curves.best.score], name: "best", mode: "markers",
        marker: { symbol: "star", size: 14, color: color("accent") } });
    }
    return [traces, { xaxis: { title: { text: "epoch" } }, yaxis: { ...share, title: { text: "validation accuracy" } } }];
  },
  loss_curve(curves) {
    const traces = Object.entries(curves.loss).map(([name, y], i) => line(curves.epoch, y, name, i ? "second" : "accent"));
    return [traces, { xaxis: { title: { text: "epoch" } }, yaxis: { rangemode: "tozero", title: { text: "loss" } } }];
  },
  views(views) {
    const x = views.accuracy.map((_, i) => i + 1);
    const y = line(x, views.accuracy, "accuracy", "accent", { error_y: whiskers(views.accuracy, views.low, views.high, "accent") });
    return [[y], { showlegend: false, xaxis: { title: { text: "views per video" }, dtick: 1 },
      yaxis: { ...share, title: { text: "accuracy" } } }];
  },
  reliability({ calibration: c }) {
    const used = c.answers.map((n, i) => i).filter((i) => c.answers[i]), pick = (values) => used.map((i) => values[i]);
    const [x, y] = [pick(c.confidence), pick(c.accuracy)], n = pick(c.answers), total = n.reduce((a, b) => a + b, 0);
    const bars = { type: "bar", x: c.answers.map((_, i) => (i + 0.5) / c.answers.length), y: c.answers.map((k) => k / total),
      width: 1 / c.answers.length, marker: { color: color("accent-soft") }, name: "share of answers", hoverinfo: "y+name" };
    const dots = line(x, y, "accuracy", "accent", { error_y: whiskers(y, pick(c.low), pick(c.high), "accent"), customdata: n,
      hovertemplate: "confidence %{x:.0%}: right %{y:.0%} of %{customdata}<extra></extra>" });
    return [[bars, dashed([0, 1], [0, 1], "perfectly calibrated"), dots],
      { xaxis: { ...share, title: { text: "confidence" } }, yaxis: { ...share, title: { text: "accuracy" } } }];
  },
  confusion({ classes, confusion: cells }, element) {
    const K = classes.length, n = classes.map(() => 0), grid = (value) => classes.map(() => Array(K).fill(value));
    // Right answers are positive, wrong ones negative. The root makes rare confusions visible.
    const z = grid(0), counts = grid(null);
    for (const [i, , count] of cells) n[i] += count;
    for (const [i, j, count] of cells) {
      if (j >= 0) [z[i][j], counts[i][j]] = [(i === j ? 1 : -1) * Math.sqrt(count / n[i]), [count, count / n[i]]];
    }
    const names = classes.map((name) => short(name)), at = classes.map((_, i) => i);
    const traces = [{ type: "heatmap", z, x: at, y: at, customdata: counts, zmin: -1, zmax: 1, showscale: false, xgap: K > 60 ? 0 : 1,
      ygap: K > 60 ? 0 : 1, colorscale: [[0, color("second")], [0.5, color("scale-low")], [1, color("scale-high")]], hoverinfo: "none" }];
    if (K <= 15) {
      traces[0].text = counts.map((row) => row.map((cell) => cell?.[0] ?? ""));
      traces[0].texttemplate = "%{text}";
    }
    const ticks = { tickvals: K > 40 ? [] : at, ticktext: K > 40 ? [] : names, showgrid: false, zeroline: false };
    const span = [-0.5, K - 0.5], side = Math.max(340, Math.min(700, element.clientWidth));
    return [traces, { height: side, xaxis: { ...ticks, range: span, tickangle: -50, title: { text: "predicted", standoff: 12 } },
      yaxis: { ...ticks, range: [span[1], span[0]], title: { text: "true", standoff: 12 } } }];
  },
};

// Where few classes are in sight, the axes name them.
function nameTicks(element, classes) {
  const { xaxis, yaxis } = element.layout, update = {};
  for (const [key, axis] of [["xaxis", xaxis], ["yaxis", yaxis]]) {
    const [low, high] = [...axis.range].sort((a, b) => a - b);
    const seen = classes.map((_, i) => i).filter((i) => i >= low && i <= high), few = seen.length <= 40 ? seen : [];
    if (String(axis.tickvals) !== String(few)) {
      update[`${key}.tickvals`] = few;
      update[`${key}.ticktext`] = few.map((i) => short(classes[i]));
    }
  }
  if (Object.keys(update).length) Plotly.relayout(element, update);
}

function draw(element) {
  const chart = element.dataset.chart, part = element.dataset.part.split(".").reduce((node, key) => node[key], data);
  const [traces, changes] = charts[chart](part, element);
  const config = { responsive: true, displayModeBar: false };
  const drawn = Plotly.react(element, traces, layout(changes), config);
  if (chart !== "confusion" || element.dataset.ready) return drawn;
  element.dataset.ready = "true";
  const label = element.parentElement.querySelector(".cell");
  element.on("plotly_hover", ({ points: [{ x, y, customdata }] }) => {
    const [count, share] = customdata ?? [0, 0];
    label.textContent = `${part.classes[y]} → ${part.classes[x]}: ${count} (${percent(share)} of the class)`;
  });
  element.on("plotly_relayout", () => nameTicks(element, part.classes));
  for (const button of element.closest("section").querySelectorAll("[data-cell]")) {
    button.addEventListener("click", () => {
      const [i, j] = button.dataset.cell.split(",").map(Number), room = 5;
      const [low, high] = [Math.min(i, j), Math.max(i, j)];
      const ranges = high - low <= 30 ? [[low - room, high + room], [high + room, low - room]] : [[j - room, j + room], [i + room, i - room]];
      Plotly.relayout(element, { "xaxis.range": ranges[0], "yaxis.range": ranges[1] });
      element.scrollIntoView({ block: "center" });
    });
  }
  return drawn;
}

const elements = [...document.querySelectorAll(".chart")];
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting) {
      watcher.unobserve(target);
      draw(target);
    }
  }
}, { rootMargin: "600px" });
// Plotly comes last in the page, so that text and tables do not wait for it.
addEventListener("load", () => elements.forEach((element) => watcher.observe(element)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => elements.filter((e) => e.data).forEach(draw));
