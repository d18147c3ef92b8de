// The overview: asks for what there is every two seconds while somebody looks, and for the past
// once there is a new sample of it.

import { GAP, ask, byId, bytes, clock, count, duration, el, name, percent, say, setRows, setText, short } from "{dom.js}";
import { makeChart } from "{charts.js}";
import { addressOf, readAddress, showInside } from "{inside.js}";

const EVERY = 2000;
const LONGEST = 30000;
const LIVE = 12; // seconds that what is called now is the average of

const FEW = 8; // errors, until somebody wants all

let allNotes = false;
let now = null, past = null, lately = [], wait = EVERY, timer = null, paused = false, asking = false;

// --- charts

const rate = (unit) => (value, brief) => brief ? short(value) : `${short(value)}${unit}`;
const flow = (value, brief) => brief ? bytes(value) : `${bytes(value)}/s`;

const charts = [
  { title: "Requests", format: rate("/s"), series: [{ label: "", kind: "area", style: "first" }, { label: "failed", kind: "bars", style: "bad" }],
    values: (sum, seconds) => [sum("requests") / seconds, sum("errors") / seconds || null] },
  { title: "Hit rate", most: 1, format: (value, brief) => brief ? `${100 * value} %` : percent(value), series: [{ label: "", kind: "area", style: "first" }],
    values: (sum) => { const all = sum("hits") + sum("misses"); return [all > 0 ? sum("hits") / all : null]; } },
  { title: "Throughput", format: flow, unit: 1024, series: [{ label: "out", kind: "area", style: "first" }, { label: "in", kind: "line", style: "second" }],
    values: (sum, seconds) => [sum("sent") / seconds, sum("received") / seconds] },
  { title: "Stored", unit: 1024, format: (value) => bytes(value), series: [{ label: "", kind: "area", style: "first", level: true }],
    values: (sum, seconds, level) => [level("limit") > 0 ? level("used") : null] },
  { title: "Blobs", format: rate("/s"), series: [{ label: "read", kind: "area", style: "first" }, { label: "written", kind: "line", style: "second" }],
    values: (sum, seconds) => [sum("reads") / seconds, sum("writes") / seconds] },
  { title: "Evicted", format: rate("/min"), series: [{ label: "", kind: "area", style: "first" }],
    values: (sum, seconds) => [60 * sum("evicted") / seconds] },
].map((about) => ({ ...about, ...makeChart(about) }));

byId("charts").append(...charts.map((chart) => chart.figure));

const chosen = () => byId("window-day").checked ? "day" : "hour";

// What lies between each two samples, and between the last of them and now.
function points(columns, values) {
  const made = [];
  const stop = columns.at.length;
  for (let place = 1; place <= stop; place++) {
    const live = place === stop;
    const from = columns.at[place - 1];
    const to = live ? now.at : columns.at[place];
    if (to - from < 5) continue;
    const after = (key) => live ? now.totals[key] : columns[key][place];
    made.push({ from, to, values: values((key) => Math.max(0, after(key) - columns[key][place - 1]), to - from, after) });
  }
  return made;
}

function drawCharts() {
  if (!past || !now) return;
  const columns = past[chosen()];
  const span = [now.at - columns.span, now.at];
  for (const chart of charts) {
    const limit = chart.title === "Stored" ? now.totals.limit : 0;
    // A limit far above would press what is stored flat.
    chart.set(points(columns, chart.values), span, limit && now.totals.used > limit / 5 ? limit : 0);
  }
}

// --- figures

function drawTiles() {
  const { totals } = now;
  const columns = past[chosen()];
  const word = chosen() === "day" ? "day" : "hour";
  const first = columns.at.length ? (key) => columns[key][0] : (key) => totals[key];
  const grown = (key) => Math.max(0, totals[key] - first(key));
  const lookups = grown("hits") + grown("misses");
  setText("hit-rate", lookups ? percent(grown("hits") / lookups) : "–");
  setText("hit-rate-sub", lookups ? `${count(grown("hits"))} of ${count(lookups)} look-ups` : "no look-ups yet");
  const base = lately[0];
  const seconds = base ? now.at - base.at : 0;
  const pace = (key) => seconds > 0.5 ? Math.max(0, totals[key] - base[key]) / seconds : null;
  const live = (id, value, show) => value === null ? setText(id, "–") : setText(id, ...show(value));
  live("rate", pace("requests"), (value) => [short(value), el("small", null, "/s")]);
  const errors = grown("errors");
  setText("rate-sub", `${count(grown("requests"))} in this ${word}${errors ? `, ${count(errors)} failed` : ""}`);
  live("sent", pace("sent"), (value) => withUnit(value, "/s"));
  setText("sent-sub", pace("received") === null ? "" : `${bytes(pace("received"))}/s received`);
  setText("entries", count(totals.entries));
  setText("entries-sub", "blobs and action results");
  setText("stored", ...withUnit(totals.used, ""));
  setText("stored-sub", `${totals.limit ? `of ${bytes(totals.limit)}, ` : ""}disk has ${bytes(totals.free)} free`);
  const full = totals.limit ? Math.min(1, totals.used / totals.limit) : 0;
  byId("stored-bar").style.width = `${100 * full}%`;
  byId("stored-bar").toggleAttribute("data-full", now.full);
  setText("evicted", short(grown("evicted")));
  const age = medianAge(now.evicted_ages);
  setText("evicted-sub", `${bytes(grown("evicted_bytes"))} in this ${word}${age ? `, half unused for ${age}` : ""}`);
}

// What half of all that was evicted since the start had not been used for.
function medianAge({ bounds, entries }) {
  let half = entries.reduce((sum, some) => sum + some, 0) / 2;
  if (!half) return "";
  const place = entries.findIndex((some) => (half -= some) <= 0);
  return place < bounds.length ? `up to ${duration(bounds[place]).replace(/ 0\u00a0(min|h)$/, "")}` : `over ${duration(bounds.at(-1))}`;
}

function withUnit(value, per) {
  const [size, unit] = bytes(value).split(GAP);
  return [size, el("small", null, `${unit}${per}`)];
}

function drawHealth() {
  const state = now.ready ? "ready" : "bad";
  const text = now.ready ? "Ready" : `Not ready: ${now.reason}`;
  byId("health").dataset.state = state;
  setText("health-text", text);
  if (drawHealth.last !== undefined && drawHealth.last !== text) say(text);
  drawHealth.last = text;
  setText("meta", `${now.version}${now.started_at ? ` · up ${duration(now.at - now.started_at)}` : ""}`);
}

// --- tables

function share(part, whole) {
  const filled = el("span", { "aria-hidden": "true" });
  filled.style.width = `${100 * part / whole}%`;
  filled.hidden = !part;
  return el("td.share", null, filled);
}

function drawNames(id, listed, label, empty) {
  const whole = Math.max(1, ...listed.map(([, requests]) => requests));
  setRows(id, listed, ([text, requests]) => el("tr", null,
    el("th.name", { scope: "row" }, label(text)), el("td.number", null, count(requests)), share(requests, whole)), empty);
}

const ROLES = { grpc: "gRPC worker", http: "HTTP front", janitor: "Janitor", supervisor: "Supervisor" };

function drawTables() {
  const { tools, instances } = now.windows[chosen()];
  drawNames("tools", tools, name, "No requests in this window.");
  drawNames("instances", instances, (text) => text ? name(text) : el("span.none", null, "default"), "No requests in this window.");

  const { bounds, written, read } = now.sizes;
  const sizes = written.map((number, place) => [bounds[place] ?? null, number, read[place]]);
  while (sizes.length > 3 && !sizes.at(-1)[1] && !sizes.at(-1)[2]) sizes.pop();
  const most = Math.max(1, ...written);
  setRows("sizes", sizes, ([bound, number, reads]) => el("tr", null,
    el("th", { scope: "row" }, bound === null ? "more" : bytes(bound)), el("td.number", null, count(number)), el("td.number", null, count(reads)), share(number, most)), "");

  const before = new Map((lately[0]?.processes || []).map(([, , pid, cpu]) => [pid, cpu]));
  const seconds = lately.length ? now.at - lately[0].at : 0;
  const processes = now.processes.map(([role, number, pid, cpu, memory, files]) => {
    const busy = before.has(pid) && seconds > 0.5 ? (cpu - before.get(pid)) / seconds : null;
    const label = ROLES[role] || role;
    return [role === "grpc" ? `${label} ${number}` : label, pid, busy === null ? "–" : `${Math.round(100 * busy)} %`, bytes(memory), files];
  });
  setRows("processes", processes, ([label, pid, busy, memory, files]) => el("tr", null,
    el("th", { scope: "row" }, label), ...[pid, busy, memory, files].map((text) => el("td.number", null, String(text)))), "");
  const [up, wanted] = Object.values(now.roles).reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
  setText("workers", `${up} of ${wanted} serve${now.ended ? `, ${count(now.ended)} ended since start` : ""}`);

  const notes = allNotes ? now.notes : now.notes.slice(0, FEW);
  byId("all-notes").hidden = now.notes.length <= FEW;
  setText("all-notes", allNotes ? "Show fewer" : `Show all ${now.notes.length}`);
  setRows("notes", notes, ([at, times, source, what, code, instance, message]) => el("tr", null,
    el("td.when", null, now.at - at > 86400 ? `${duration(now.at - at)} ago` : clock(at, true)), el("td.number", null, times > 1 ? `${count(times)} ×` : "1"),
    el("td.code", null, source === "log" ? "server log" : what), el("td.code", null, el(`span.badge${source === "log" && code === "warning" ? "" : ".bad"}`, null, code)),
    el("td.name.instance", null, name(instance)), el("td", null, withLinks(message))), "None since the server started.");
  setText("notes-aside", now.notes.length ? "misses and clients that went away are left out" : "");
}

// Digests are links to what they name, and short.
function withLinks(message) {
  const made = el("bdi", null);
  let end = 0;
  for (const found of message.matchAll(/\b[0-9a-f]{64,128}(?:\/\d{1,19})?\b/g)) {
    const [hash, size] = found[0].split("/");
    const text = `${hash.slice(0, 12)}…${size ? `/${size}` : ""}`;
    made.append(message.slice(end, found.index), el("a.mono", { href: addressOf({ digest: found[0] }), title: found[0] }, text));
    end = found.index + found[0].length;
  }
  made.append(message.slice(end));
  return made;
}

function drawInstances() {
  const names = now.windows.day.instances.map(([text]) => text).sort();
  const choice = byId("instance");
  const known = [...choice.options].slice(1).map((option) => option.value);
  if (JSON.stringify(known) === JSON.stringify(names) || document.activeElement === choice) return;
  const kept = choice.value;
  choice.replaceChildren(choice.options[0], ...names.map((text) => el("option", { value: text }, text || "default")));
  choice.value = names.includes(kept) ? kept : "*";
}

function draw() {
  if (!now || !past) return;
  drawHealth();
  drawInstances();
  if (readAddress()) return;
  drawTiles();
  drawTables();
  drawCharts();
}

// --- the loop

async function turn() {
  clearTimeout(timer);
  if (asking || document.hidden || paused) return;
  asking = true;
  try {
    const next = await ask("/-/now");
    if (!past || next.sampled_at !== (now && now.sampled_at)) past = await ask("/-/past");
    lately = lately.filter((one) => next.at - one.at <= LIVE);
    now = next;
    if (!lately.length && past.hour.at.length) {
      // Until there is more: since the last sample.
      const place = past.hour.at.length - 1;
      const sums = Object.fromEntries(Object.keys(now.totals).map((key) => [key, past.hour[key][place]]));
      lately = [{ ...sums, at: past.hour.at[place], processes: [] }];
    }
    draw();
    if (lately[0] && !lately[0].processes.length) lately = [];
    lately.push({ ...now.totals, at: now.at, processes: now.processes });
    wait = EVERY;
    lost("");
  } catch (error) {
    wait = Math.min(LONGEST, 2 * wait);
    byId("health").dataset.state = "unknown";
    lost(error.status === 401 || error.status === 403 ? `Not allowed: ${error.message}` : "The server does not answer; trying again.");
  } finally {
    asking = false;
    timer = setTimeout(turn, wait);
  }
}

function lost(text) {
  const notice = byId("lost");
  if (notice.textContent === text) return;
  notice.textContent = text;
  notice.hidden = !text;
  say(text || "The server answers again");
}

// --- what people do

function route() {
  const asked = readAddress();
  byId("overview").hidden = Boolean(asked);
  byId("inside").hidden = !asked;
  if (asked) {
    byId("digest").value = asked.digest || "";
    const known = [...byId("instance").options].some((option) => option.value === asked.instance);
    byId("instance").value = known ? asked.instance : "*";
    showInside(asked);
  } else {
    document.title = "cas";
    draw();
  }
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const digest = byId("digest").value.trim();
  if (!digest) return byId("digest").focus();
  const instance = byId("instance").value;
  const next = `#look?${new URLSearchParams(instance === "*" ? { digest } : { digest, instance })}`;
  if (location.hash === next) route();
  else location.hash = next;
});
for (const id of ["window-hour", "window-day"]) {
  byId(id).addEventListener("change", () => { draw(); say(`Shows the last ${chosen()}`); });
}
byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.currentTarget.setAttribute("aria-pressed", String(paused));
  event.currentTarget.textContent = paused ? "Paused" : "Pause";
  lately = [];
  turn();
});
byId("all-notes").addEventListener("click", (event) => {
  allNotes = !allNotes;
  event.currentTarget.setAttribute("aria-expanded", String(allNotes));
  draw();
});
addEventListener("hashchange", () => {
  if (location.hash === "#main") return;
  route();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) { lately = []; turn(); } });

route();
turn();
