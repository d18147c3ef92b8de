// Small charts of what happened in a window.  Rule: pure drawing, from points to SVG.
//
// A point is {from, to, values}: a value for each series, null where there is none.  A chart is a
// slider to a keyboard and a screen reader: arrows move along time, and its value is told.

import { clock, el, svg } from "{dom.js}";

const ROOM = { left: 44, right: 6, top: 6, bottom: 18 };

// series: [{label, kind: "area" | "line" | "bars", style}]; format tells a value with its unit.
export function makeChart({ title, series, format, most, unit = 10 }) {
  const readout = el("span.readout");
  const plot = el("div.plot", {
    role: "slider", tabindex: "0", "aria-label": title, "aria-orientation": "horizontal",
    "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0",
  });
  const figure = el("figure", null, el("figcaption", null, el("h3", null, title), readout), plot);
  let points = [], span = [0, 1], at = null, limit = null;

  const known = (point) => point && point.values.some((value) => value !== null);
  const lastKnown = () => points.findLastIndex(known);

  function tell() {
    const index = at === null ? lastKnown() : at;
    const point = points[index];
    readout.replaceChildren();
    if (!known(point)) {
      readout.append(at === null ? "no data yet" : "nothing");
      plot.setAttribute("aria-valuetext", point ? `${clock(point.to)}: nothing` : "no data yet");
      return;
    }
    const parts = series.map((one, place) => [one, point.values[place]]).filter(([, value]) => value !== null);
    readout.append(at === null ? "" : `${clock(point.to)}  `);
    parts.forEach(([one, value], place) => {
      if (place) readout.append(" · ");
      if (series.length > 1) readout.append(el(`span.key.${one.style}`, { "aria-hidden": "true" }));
      readout.append(`${format(value)}${one.label ? ` ${one.label}` : ""}`);
    });
    const spoken = parts.map(([one, value]) => `${format(value)} ${one.label}`).join(", ");
    plot.setAttribute("aria-valuetext", `${clock(point.to)}: ${spoken}`);
    plot.setAttribute("aria-valuemax", String(Math.max(0, points.length - 1)));
    plot.setAttribute("aria-valuenow", String(Math.max(0, index)));
  }

  function draw() {
    const width = plot.clientWidth, height = plot.clientHeight;
    if (!width) return;
    const [from, to] = span;
    const highest = Math.max(most || 0, limit || 0, ...points.flatMap((point) => point.values.map((value) => value || 0)));
    const top = most || nice(highest || 1, unit);
    const x = (time) => ROOM.left + (Math.max(from, time) - from) / (to - from) * (width - ROOM.left - ROOM.right);
    const y = (value) => ROOM.top + (1 - Math.min(value, top) / top) * (height - ROOM.top - ROOM.bottom);
    const image = svg("svg", { "aria-hidden": "true", focusable: "false" });
    for (const part of [0, 0.5, 1]) {
      const line = Math.round(y(part * top)) + 0.5;
      image.append(svg("line", { class: part ? "grid" : "axis", x1: ROOM.left, x2: width - ROOM.right, y1: line, y2: line }));
      image.append(svg("text", { x: ROOM.left - 6, y: line + 4, "text-anchor": "end" }, format(part * top, true)));
    }
    const hours = (to - from) / 3600;
    const step = hours > 3 ? 6 * 3600 : 900;
    // Whole hours and quarters of where the reader is.
    const zone = new Date(1000 * to).getTimezoneOffset() * 60;
    for (let tick = Math.ceil((from - zone) / step) * step + zone; tick <= to; tick += step) {
      if (x(tick) < ROOM.left + 12 || x(tick) > width - 20) continue;
      image.append(svg("text", { x: x(tick), y: height - 3, "text-anchor": "middle" }, clock(tick)));
    }
    series.forEach((one, place) => {
      if (one.kind === "bars") {
        for (const point of points) {
          const value = point.values[place];
          if (!value) continue;
          const left = x(point.from), right = x(point.to);
          image.append(svg("rect", { class: one.style, x: left, y: y(value), width: Math.max(1, right - left - 1), height: Math.max(1, y(0) - y(value)) }));
        }
        return;
      }
      for (const run of runs(points, place)) {
        const steps = run.flatMap((point) => {
          const level = y(point.values[place]).toFixed(1);
          return one.level ? [`${x(point.to).toFixed(1)},${level}`] : [`${x(point.from).toFixed(1)},${level}`, `${x(point.to).toFixed(1)},${level}`];
        });
        const begin = one.level ? run[0].to : run[0].from;
        if (one.kind === "area") {
          image.append(svg("path", { class: "area", d: `M${x(begin)},${y(0)}L${steps.join("L")}L${x(run.at(-1).to)},${y(0)}Z` }));
        }
        image.append(svg("path", { class: `line ${one.style}`, d: `M${steps.join("L")}` }));
      }
    });
    if (limit) image.append(svg("path", { class: "limit", d: `M${ROOM.left},${y(limit)}H${width - ROOM.right}` }));
    if (at !== null && points[at]) {
      const place = Math.round(x((points[at].from + points[at].to) / 2)) + 0.5;
      image.append(svg("line", { class: "cursor", x1: place, x2: place, y1: ROOM.top, y2: height - ROOM.bottom }));
    }
    plot.replaceChildren(image);
  }

  function move(next) {
    at = next;
    tell();
    draw();
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left - ROOM.left) / (box.width - ROOM.left - ROOM.right);
    const time = span[0] + share * (span[1] - span[0]);
    const found = points.findIndex((point) => time >= point.from && time < point.to);
    move(found < 0 ? null : found);
  });
  plot.addEventListener("pointerleave", () => move(null));
  plot.addEventListener("blur", () => move(null));
  plot.addEventListener("keydown", (event) => {
    const end = points.length - 1;
    const here = at === null ? lastKnown() : at;
    const to = {
      ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + 1, ArrowUp: here + 1,
      PageUp: here + 10, PageDown: here - 10, Home: 0, End: end,
    }[event.key];
    if (event.key === "Escape") move(null);
    if (to === undefined || end < 0) return;
    event.preventDefault();
    move(Math.min(end, Math.max(0, to)));
  });
  new ResizeObserver(draw).observe(plot);

  return {
    figure,
    set(nextPoints, nextSpan, nextLimit) {
      points = nextPoints;
      span = nextSpan;
      limit = nextLimit || null;
      if (at !== null && at >= points.length) at = null;
      tell();
      draw();
    },
  };
}

// Points with a value, in runs without a gap.
function runs(points, place) {
  const found = [];
  let run = [];
  for (const point of points) {
    if (point.values[place] === null) {
      if (run.length) found.push(run);
      run = [];
    } else {
      run.push(point);
    }
  }
  if (run.length) found.push(run);
  return found;
}

// The next round number whose half is round too, in tens or in units of 1024.
function nice(value, unit) {
  if (unit === 1024) {
    const power = 1024 ** Math.max(0, Math.floor(Math.log2(value) / 10));
    return power * nice(Math.max(1, value / power), 10);
  }
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}
