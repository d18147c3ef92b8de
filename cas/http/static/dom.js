// Elements and formats.  Rule: text becomes text nodes and nothing else, whoever wrote it.

export const byId = (id) => document.getElementById(id);

// el("td.number", {title: "…"}, "text", node, …); null and undefined attributes are left out.
export function el(name, attributes, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A name that a client chose: its direction of writing is its own.
export const name = (text) => el("bdi.name", null, text);

export function setText(id, ...children) {
  const at = byId(id);
  const next = children.map((child) => (child.nodeType ? child.textContent : child)).join("");
  if (at.textContent !== next) at.replaceChildren(...children);
}

// Replaces a table's rows only if what they show has changed, so that a selection survives.
const shown = new Map();
export function setRows(id, values, row, empty) {
  const text = JSON.stringify(values);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  const body = byId(id);
  const columns = body.closest("table").querySelectorAll("thead th").length;
  const nothing = () => el("tr", null, el("td.none", { colspan: columns }, empty));
  body.replaceChildren(...(values.length ? values.map(row) : [nothing()]));
}

// --- formats

const whole = new Intl.NumberFormat("en");
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const count = (value) => whole.format(Math.round(value));

// Short: 12.3k.
export function short(value) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e4]]) {
    if (Math.abs(value) >= size) return three.format(value / (unit === "k" ? 1e3 : size)) + unit;
  }
  return value >= 100 ? whole.format(Math.round(value)) : three.format(value);
}

// Between a number and its unit no line ends.
export const GAP = "\u00a0";

export function bytes(value) {
  let size = value;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (Math.abs(size) < 1000 || unit === "TiB") {
      return `${Math.abs(size) >= 100 ? Math.round(size) : three.format(size)}${GAP}${unit}`;
    }
    size /= 1024;
  }
  return "";
}

export const percent = (value) => `${(100 * value).toFixed(value > 0.9995 || value === 0 ? 0 : 1)}${GAP}%`;

export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return `${total}${GAP}s`;
  if (total < 3600) return `${Math.floor(total / 60)}${GAP}min`;
  if (total < 86400) return `${Math.floor(total / 3600)}${GAP}h ${Math.floor((total % 3600) / 60)}${GAP}min`;
  return `${Math.floor(total / 86400)}${GAP}d ${Math.floor((total % 86400) / 3600)}${GAP}h`;
}

export function clock(seconds, withSeconds) {
  const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (withSeconds) options.second = "2-digit";
  return new Date(1000 * seconds).toLocaleTimeString("en", options);
}

export function date(seconds) {
  const at = new Date(1000 * seconds);
  return `${at.toLocaleDateString("en", { year: "numeric", month: "short", day: "numeric" })}, ${clock(seconds, true)}`;
}

// --- for those who listen: said once, when it changes

let last = "";
export function say(text) {
  if (text === last) return;
  last = text;
  byId("said").textContent = text;
}

export async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  if (!answer.ok) {
    const error = new Error((await answer.text()).trim().slice(0, 400) || `status ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  return answer.json();
}
