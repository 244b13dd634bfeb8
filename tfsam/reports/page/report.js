
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const percent = (part) => `${(100 * part).toFixed(1)} %`;
  const short = (number) => String(Number(number.toPrecision(3)));
  const interval = (point) => `${(100 * point.low).toFixed(1)}\u2013${(100 * point.high).toFixed(1)}`;

  // Elements; what a run is named goes in as text, never as markup.

  const svgNamespace = find("svg").namespaceURI;

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(svgNamespace, tag), attributes, children);

  // Selected runs: each takes a colour, a mark and a dash that are free.

  const COLOURS = 8;
  const slots = new Map();

  function select(run, isOn) {
    if (!isOn) slots.delete(run);
    else if (!slots.has(run)) {
      const taken = new Set(slots.values());
      let slot = 0;
      while (taken.has(slot)) slot += 1;
      slots.set(run, slot);
    }
  }

  const selected = () => data.runs.map((_, run) => run).filter((run) => slots.has(run));

  function runGroup(run, ...children) {
    const slot = slots.get(run);
    const look = `run colour-${slot % COLOURS} dash-${Math.floor(slot / COLOURS) % 3}`;
    return svg("g", { class: look, "data-run": run }, ...children);
  }

  const MARKS = [
    "M-3.8 0a3.8 3.8 0 1 0 7.6 0a3.8 3.8 0 1 0-7.6 0z",
    "M-3.4-3.4h6.8v6.8h-6.8z",
    "M0-4.6 4.2 3.2h-8.4z",
    "M0-4.8 4.4 0 0 4.8-4.4 0z",
  ];

  function mark(run, x, y) {
    // Every eight runs the marks shift, so that colour and mark are new.
    const slot = slots.get(run);
    const shape = MARKS[(slot + Math.floor(slot / COLOURS)) % MARKS.length];
    return svg("path", { class: "mark", d: shape, transform: `translate(${x} ${y})` });
  }

  function swatch(run, element = svg("svg", { class: "swatch", "aria-hidden": "true" })) {
    element.replaceChildren();
    if (slots.has(run)) {
      element.append(runGroup(run, svg("path", { class: "curve", d: "M0 6H24" }), mark(run, 12, 6)));
    }
    return element;
  }

  function emphasize(run) {
    document.body.classList.toggle("emphasis", run !== null && slots.has(run));
    for (const group of all(".run")) group.classList.toggle("on", Number(group.dataset.run) === run);
  }

  function emphasizesOnHover(element, run) {
    element.addEventListener("pointerenter", () => emphasize(run));
    element.addEventListener("pointerleave", () => emphasize(null));
  }

  // Scales

  function linear(low, high) {
    const rough = (high - low) / 5 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-6); i * step <= high + 1e-6 * step; i += 1) ticks.push(i * step);
    return { ticks: ticks.map((value) => ({ value, text: short(value) })), at: (value) => (value - low) / (high - low || 1) };
  }

  function logarithmic(low, high) {
    const decades = Math.log10(high / low);
    const factors = decades > 2.5 ? [1] : [1, 2, 5];
    let ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const factor of factors) ticks.push(factor * 10 ** power);
    }
    ticks = ticks.filter((value) => value >= low && value <= high).map((value) => ({ value, text: short(value) }));
    // Of a narrow range the round numbers are those of a linear one.
    if (ticks.length < 3) ({ ticks } = linear(low, high));
    return { ticks, at: (value) => Math.log10(value / low) / (decades || 1) };
  }

  /** Accuracies up to all, less a part of the points, the lowest. */
  function accuracyScale(points, part = 0) {
    const lows = points.map((point) => point.low ?? point.y).sort((a, b) => a - b);
    const low = Math.min(0.9, lows[Math.floor(part * lows.length)] ?? 0);
    const scale = linear(Math.floor(10 * low) * 10, 100);
    return { ticks: scale.ticks.map(({ value, text }) => ({ value: value / 100, text: `${text}%` })), at: (part) => scale.at(100 * part) };
  }

  // Charts

  const MARGIN = { left: 46, right: 12, top: 10, bottom: 40 };
  const drawers = [];

  /** A place for a chart; `describe` says what it holds now, or null. */
  function panel(host, title, describe) {
    const canvas = svg("svg", { class: "chart", role: "img", tabindex: "0" });
    host.append(html("figure", { class: "panel" }, html("h3", {}, title), canvas));
    listen(canvas);
    drawers.push(() => draw(canvas, title, describe()));
  }

  function draw(canvas, title, chart) {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return; // Not laid out yet; the observer will see it.
    canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    canvas.replaceChildren();
    canvas.stops = [];
    if (!chart.series.length) {
      canvas.setAttribute("aria-label", `${title}: no run is selected.`);
      canvas.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "Select runs in the table"));
      return;
    }
    const x = (value) => MARGIN.left + chart.x.at(value) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => height - MARGIN.bottom - chart.y.at(value) * (height - MARGIN.top - MARGIN.bottom);
    axes(canvas, chart, x, y, width, height);
    const box = { x: MARGIN.left - 6, y: 0, width: width - MARGIN.left - MARGIN.right + 12, height: height - MARGIN.bottom + 6 };
    // Within it, what is out of the scale is cut off.
    const plot = svg("svg", { ...box, viewBox: Object.values(box).join(" ") });
    canvas.append(plot);
    for (const { run, points } of chart.series) {
      const parts = points.filter((one) => one.low !== undefined).map((one) =>
        svg("line", { class: "interval", x1: x(one.x), x2: x(one.x), y1: y(one.low), y2: y(one.high) }));
      const path = points.map((one, i) => `${i ? "L" : "M"}${x(one.x).toFixed(1)} ${y(one.y).toFixed(1)}`);
      if (points.length > 1) parts.push(svg("path", { class: "curve", d: path.join("") }));
      // On a curve of epochs marks would hide it: the last is enough.
      const marked = points[0].low === undefined ? points.slice(-1) : points;
      parts.push(...marked.map((one) => mark(run, x(one.x), y(one.y))));
      plot.append(runGroup(run, ...parts));
    }
    if (chart.isScatter) names(canvas, chart, x, y, width);
    canvas.stops = stops(chart, x, y);
    canvas.setAttribute("aria-label", description(title, chart));
  }

  function axes(canvas, chart, x, y, width, height) {
    const bottom = height - MARGIN.bottom;
    for (const { value, text } of chart.y.ticks) {
      canvas.append(
        svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
        svg("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, text));
    }
    let end = -Infinity;
    for (const { value, text } of chart.x.ticks) {
      const half = 3.5 * text.length + 4;
      if (x(value) - half < end) continue;
      end = x(value) + half;
      canvas.append(
        svg("line", { class: "grid", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }),
        svg("text", { x: x(value), y: bottom + 17, "text-anchor": "middle" }, text));
    }
    canvas.append(svg("text", { x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 6, "text-anchor": "middle" }, chart.xLabel));
  }

  /** The runs' names beside their marks, where they find room. */
  function names(canvas, chart, x, y, width) {
    const marks = chart.series.map(({ points: [one] }) => ({ left: x(one.x) - 6, right: x(one.x) + 6, top: y(one.y) - 6, bottom: y(one.y) + 6 }));
    const taken = [...marks];
    chart.series.forEach(({ run, points: [one] }, i) => {
      const name = data.runs[run].name;
      const length = 6.8 * name.length;
      const [px, py] = [x(one.x), y(one.y)];
      const places = [[px + 9, py + 4], [px - 9 - length, py + 4], [px - length / 2, py - 10], [px - length / 2, py + 19]];
      for (const [left, base] of places) {
        const box = { left, right: left + length, top: base - 10, bottom: base + 3 };
        const isFree = left > MARGIN.left && box.right < width && taken.every((other) => other === marks[i]
          || box.right < other.left || box.left > other.right || box.bottom < other.top || box.top > other.bottom);
        if (!isFree) continue;
        taken.push(box);
        canvas.append(svg("text", { class: "direct", x: left, y: base }, name));
        break;
      }
    });
  }

  /** Where a pointer finds something: what it says, by place. */
  function stops(chart, x, y) {
    const found = new Map();
    for (const { run, points } of chart.series) {
      for (const one of points) {
        const key = chart.isScatter ? run : one.x;
        if (!found.has(key)) found.set(key, { x: x(one.x), y: chart.isScatter ? y(one.y) : null, title: chart.title(one), rows: [] });
        found.get(key).rows.push({ run, value: one.y, text: chart.text(one), detail: one.low === undefined ? "" : interval(one) });
      }
    }
    const sorted = [...found.values()].sort((a, b) => a.x - b.x);
    for (const stop of sorted) stop.rows.sort((a, b) => b.value - a.value);
    return sorted;
  }

  function description(title, chart) {
    const said = chart.series.map(({ run, points }) => {
      const last = points[points.length - 1];
      return `${data.runs[run].name} ${chart.text(last)} at ${chart.title(last)}`;
    });
    return `${title}. ${said.join("; ")}.`;
  }

  // The tooltip follows a pointer, or the arrow keys.

  const tooltip = find("#tooltip");

  function listen(canvas) {
    let current = -1;
    const show = (index) => {
      current = index;
      showStop(canvas, canvas.stops[index]);
    };
    const follow = (event) => {
      const frame = canvas.getBoundingClientRect();
      const [px, py] = [event.clientX - frame.left, event.clientY - frame.top];
      const distances = canvas.stops.map((stop) => Math.hypot(stop.x - px, stop.y === null ? 0 : stop.y - py));
      if (distances.length) show(distances.indexOf(Math.min(...distances)));
    };
    canvas.addEventListener("pointermove", follow);
    canvas.addEventListener("pointerdown", follow);
    canvas.addEventListener("pointerleave", (event) => {
      // A finger that is lifted leaves, too: what it found stays until the next.
      if (event.pointerType === "mouse") showStop(canvas);
    });
    canvas.addEventListener("blur", () => showStop(canvas));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") showStop(canvas);
      if (!step || !canvas.stops.length) return;
      event.preventDefault();
      show(Math.max(0, Math.min(canvas.stops.length - 1, current + step)));
    });
  }

  function showStop(canvas, stop) {
    find(".guide", canvas)?.remove();
    tooltip.hidden = !stop;
    if (!stop) return;
    const bottom = canvas.clientHeight - MARGIN.bottom;
    canvas.prepend(svg("line", { class: "guide", x1: stop.x, x2: stop.x, y1: MARGIN.top, y2: bottom }));
    const rows = stop.rows.map((row) => html("tr", {},
      html("td", {}, html("span", {}, swatch(row.run), data.runs[row.run].name)),
      html("td", {}, row.text), html("td", { class: "quiet" }, row.detail)));
    tooltip.replaceChildren(html("strong", {}, stop.title), html("table", {}, ...rows));
    const frame = canvas.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = tooltip;
    const room = document.documentElement;
    const right = frame.left + stop.x + 16;
    const left = right + width < room.clientWidth ? right : frame.left + stop.x - 16 - width;
    const top = frame.top + (stop.y ?? MARGIN.top + 20);
    tooltip.style.left = `${Math.max(4, Math.min(left, room.clientWidth - width - 4))}px`;
    tooltip.style.top = `${Math.max(4, Math.min(top, room.clientHeight - height - 4))}px`;
  }

  // What there is to draw

  const drawn = (pointsOf) => selected().map((run) => ({ run, points: pointsOf(run) })).filter(({ points }) => points.length);
  const asPoint = (point, x) => ({ x, y: point.accuracy, low: point.low, high: point.high, n: point.n });

  function robustness(host) {
    const points = data.curves.flatMap((curve) => curve.points.flat());
    const y = accuracyScale(points);
    for (const curve of data.curves) {
      const texts = new Map(curve.epsilons.map(({ epsilon, text }) => [epsilon, text]));
      const ticks = curve.epsilons.map(({ epsilon, text }) => ({ value: epsilon, text }));
      const largest = Math.max(...texts.keys()) || 1;
      panel(host, curve.name, () => ({
        series: drawn((run) => curve.points[run].map((point) => asPoint(point, point.epsilon))),
        x: { ticks, at: (value) => 0.03 + 0.94 * value / largest },
        y,
        xLabel: "epsilon",
        title: (one) => (one.x ? `epsilon ${texts.get(one.x)}` : "natural"),
        text: (one) => percent(one.y),
      }));
    }
  }

  function corruptions(host) {
    const points = data.corruptions.flatMap((kind) => kind.points.flat());
    const y = accuracyScale(points);
    const most = Math.max(1, ...points.map((point) => point.severity));
    const ticks = Array.from({ length: most + 1 }, (_, value) => ({ value, text: String(value) }));
    for (const kind of data.corruptions) {
      panel(host, kind.name, () => ({
        series: drawn((run) => kind.points[run].map((point) => asPoint(point, point.severity))),
        x: { ticks, at: (value) => 0.03 + 0.94 * value / most },
        y,
        xLabel: "severity",
        title: (one) => (one.x ? `severity ${one.x}` : "clean"),
        text: (one) => percent(one.y),
      }));
    }
  }

  const CURVES = {
    accuracy: "Accuracy in training",
    val_accuracy: "Validation accuracy",
    val_clean_accuracy: "Validation accuracy, clean, held out",
    val_robust_accuracy: "Validation accuracy under attack",
    loss: "Training loss",
    val_loss: "Validation loss",
  };

  function training(host) {
    for (const [key, title] of Object.entries(CURVES)) {
      const isLoss = key.endsWith("loss");
      const pointsOf = (run) => data.runs[run].history
        .filter((row) => Number.isFinite(row[key]) && (!isLoss || row[key] > 0))
        .map((row) => ({ x: row.epoch, y: row[key] }));
      const points = data.runs.flatMap((_, run) => pointsOf(run));
      if (!points.length) continue;
      const heights = points.map((point) => point.y);
      panel(host, title, () => {
        const series = drawn(pointsOf);
        const last = Math.max(2, ...series.flatMap((one) => one.points.map((point) => point.x)));
        return {
          series,
          x: linear(1, last),
          y: isLoss ? logarithmic(Math.min(...heights), Math.max(...heights)) : accuracyScale(points, 0.05), // The first epochs are low.
          xLabel: "epoch",
          title: (one) => `epoch ${one.x}`,
          text: (one) => (isLoss ? short(one.y) : percent(one.y)),
        };
      });
    }
  }

  const COSTS = { passes: "cost in epochs of standard training", minutes: "minutes of training" };

  function cost(host, controls) {
    host.classList.add("wide");
    const known = Object.keys(COSTS).filter((key) => data.runs.some((run) => run[key] !== null));
    const accuracy = choice(controls, "Accuracy", data.accuracies.map(({ name }) => name));
    const unit = choice(controls, "over", known.map((key) => COSTS[key]));
    accuracy.selectedIndex = data.accuracies.length - 1;
    panel(host, "Accuracy over cost", () => {
      const key = known[unit.selectedIndex];
      const { name, points } = data.accuracies[accuracy.selectedIndex];
      const pointsOf = (run) => (points[run] && data.runs[run][key] !== null ? [asPoint(points[run], data.runs[run][key])] : []);
      const series = drawn(pointsOf);
      const shown = series.flatMap((one) => one.points);
      return {
        series,
        x: linear(0, 1.08 * Math.max(...shown.map((one) => one.x))),
        y: accuracyScale(shown),
        xLabel: COSTS[key],
        isScatter: true,
        title: (one) => `${short(one.x)} ${COSTS[key]}`,
        text: (one) => percent(one.y),
        name,
      };
    });
  }

  function choice(host, label, options) {
    const element = html("select", { "aria-label": label }, ...options.map((text) => html("option", {}, text)));
    element.addEventListener("change", redraw);
    host.append(html("span", {}, label), element);
    return element;
  }

  function redraw() {
    for (const drawer of drawers) drawer();
    for (const legend of all(".legend")) {
      legend.replaceChildren(...selected().map((run) => {
        const item = html("li", { "data-legend": run }, swatch(run), data.runs[run].name);
        emphasizesOnHover(item, run);
        return item;
      }));
    }
    for (const card of all(".card")) card.hidden = !slots.has(Number(card.dataset.run));
    for (const box of boxes) {
      box.checked = slots.has(Number(box.value));
      swatch(Number(box.value), box.nextElementSibling);
    }
    find("#selected").textContent = `${slots.size} of ${data.runs.length} drawn`;
  }

  // Tables

  function sort(head) {
    const table = head.closest("table");
    const isAscending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of all("th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
    const position = Number(head.dataset.position);
    const value = (row) => {
      const cell = row.cells[position];
      const text = position ? cell.dataset.value : cell.textContent;
      return head.dataset.kind === "number" && text !== undefined ? Number(text) : text;
    };
    const order = (a, b) => {
      const [first, second] = [value(a), value(b)];
      if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
      const sign = typeof first === "number" ? first - second : first.localeCompare(second);
      return isAscending ? sign : -sign;
    };
    table.tBodies[0].append(...[...table.rows].filter((row) => row.dataset.run).sort(order));
  }

  for (const head of all("th[aria-sort]")) find("button", head).addEventListener("click", () => sort(head));

  // The page

  const boxes = all("input[type=checkbox]");
  for (const box of boxes) {
    box.addEventListener("change", () => {
      select(Number(box.value), box.checked);
      redraw();
    });
    emphasizesOnHover(box.closest("tr"), Number(box.value));
  }
  for (const button of all("[data-select]")) {
    button.addEventListener("click", () => {
      data.runs.forEach((_, run) => select(run, button.dataset.select === "all"));
      redraw();
    });
  }
  find("#theme").addEventListener("click", () => {
    const root = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  });

  const builders = { robustness, corruptions, training, cost };
  for (const [name, build] of Object.entries(builders)) {
    const section = document.getElementById(name);
    if (section) build(find(".panels", section), find(".controls", section));
  }
  document.documentElement.dataset.ready = "";
  for (const run of data.first.slice(0, COLOURS).sort((a, b) => a - b)) select(run, true);

  let width = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (contentRect.width === width) return;
    width = contentRect.width;
    redraw();
  }).observe(find("main"));
})();
