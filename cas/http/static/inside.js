// What is inside a digest: a blob, and the action results under it.
//
// Its address is the fragment: #look?digest=…&instance=…&as=…&path=…&via=…, where `via` is how one
// came here, for people.

import { ask, byId, bytes, count, date, duration, el, name, say } from "{dom.js}";

const KINDS = {
  directory: "Directory", tree: "Tree", action: "Action", command: "Command", text: "Text", bytes: "Bytes",
};

export function addressOf(fields) {
  const said = Object.entries(fields).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return `#look?${new URLSearchParams(said)}`;
}

export function readAddress() {
  if (!location.hash.startsWith("#look?")) return null;
  return Object.fromEntries(new URLSearchParams(location.hash.slice(6)));
}

let latest = 0;

export async function showInside(asked) {
  const mine = ++latest;
  const place = byId("inside");
  const fields = { digest: asked.digest || "" };
  for (const key of ["as", "path"]) if (asked[key]) fields[key] = asked[key];
  if (asked.instance !== undefined && asked.instance !== "*") fields.instance = asked.instance;
  place.setAttribute("aria-busy", "true");
  let parts, told;
  try {
    const found = await ask(`/-/look?${new URLSearchParams(fields)}`);
    told = found.blob || found.results.length ? "" : "Nothing has this digest";
    parts = drawn(found, asked);
  } catch (error) {
    told = `Cannot look it up: ${error.message}`;
    parts = [heading("Look up", asked), el("p.notice", null, told)];
  }
  // Somebody has gone on meanwhile.
  if (mine !== latest || !readAddress()) return;
  place.replaceChildren(...parts);
  place.removeAttribute("aria-busy");
  const title = place.querySelector("h1");
  document.title = `${title.textContent} – cas`;
  say(told || title.textContent);
  title.focus({ preventScroll: true });
  scrollTo(0, 0);
}

function heading(title, asked) {
  return el("div", null,
    el("nav.crumbs", { "aria-label": "Where this is" }, el("a", { href: "#" }, "Overview"), asked.via ? " / " : "", asked.via ? name(asked.via) : ""),
    el("div.head", null, el("h1", { tabindex: "-1" }, title)));
}

function drawn(found, asked) {
  const { blob, results } = found;
  if (!blob && !results.length) {
    return [heading("Nothing here", asked), el("div.panel", null,
      el("p", null, "No blob has this digest, and no action result is kept under it", asked.instance !== undefined && asked.instance !== "*" ? " in that instance" : "", "."),
      el("dl.facts", null, ...fact("Asked for", el("div", null, ...found.asked.flatMap((text, place) => place ? [el("br"), hash(text)] : [hash(text)])), true)))];
  }
  const title = blob ? KINDS[blob.kind] : "Action result";
  const parts = [heading(title, asked)];
  if (blob) parts.push(drawnBlob(blob, asked));
  for (const result of results) parts.push(drawnResult(result, asked, blob ? null : result.action));
  return parts;
}

// --- a blob

function drawnBlob(blob, asked) {
  const here = { ...asked, digest: blob.digest };
  const facts = [
    ...fact("Digest", hash(blob.digest), true),
    ...fact("Size", `${bytes(blob.size)}${blob.size >= 1000 ? ` (${count(blob.size)} bytes)` : ""}`),
  ];
  if (blob.kinds.length > 1) facts.push(...fact("Read as", kinds(blob, here)));
  const raw = `/-/raw?${new URLSearchParams({ digest: blob.digest })}`;
  facts.push(...fact("Content", el("a", { href: raw, download: fileName(asked.via, blob.digest) }, "Download")));
  return el("section.panel", { "aria-label": KINDS[blob.kind] }, el("dl.facts", null, ...facts), ...content(blob, here));
}

function kinds(blob, here) {
  const choice = el("select", { "aria-label": "Read the blob as" },
    ...blob.kinds.map((kind) => el("option", { value: kind, selected: kind === blob.kind ? "" : null }, KINDS[kind])));
  choice.addEventListener("change", () => { location.hash = addressOf({ ...here, as: choice.value, path: "" }); });
  return choice;
}

function content(blob, here) {
  if (blob.kind === "tree") {
    const path = blob.path.length ? el("nav.crumbs", { "aria-label": "Path in the tree" }, el("a", { href: addressOf({ ...here, path: "" }) }, "root"),
      ...blob.path.flatMap((part, place) => [" / ", el("a", { href: addressOf({ ...here, path: blob.path.slice(0, place + 1).join("/") }) }, name(part))])) : null;
    return [el("p.more", null, `${count(blob.directories)} ${blob.directories === 1 ? "directory" : "directories"} in this tree`), ...(path ? [el("p", null, path)] : []), entries(blob, here)];
  }
  if (blob.kind === "directory") return [entries(blob, here)];
  if (blob.kind === "action") {
    return [el("dl.facts", null,
      ...fact("Command", link(blob.command, { ...here, via: "command", as: "command" })),
      ...fact("Input root", link(blob.input_root, { ...here, via: "inputs", as: "directory" })),
      ...fact("Timeout", blob.timeout ? duration(blob.timeout) : "none"),
      ...fact("Cached", blob.do_not_cache ? "no: do_not_cache is set" : "yes")), pairs("Platform", blob.platform)];
  }
  if (blob.kind === "command") {
    return [
      el("h2", null, "Arguments"), words(blob.arguments),
      ...(blob.left_out ? [el("p.more", null, `${count(blob.left_out)} more are not shown`)] : []),
      el("h2", null, "Outputs"), words(blob.outputs),
      el("dl.facts", null, ...fact("Working directory", blob.working_directory ? name(blob.working_directory) : "the input root")),
      pairs("Environment", blob.environment), pairs("Platform", blob.platform),
    ];
  }
  return preview(blob);
}

function preview(told) {
  if (told.hex) {
    const lines = told.hex.map((row, place) => `${(16 * place).toString(16).padStart(6, "0")}  ${row}`);
    return [el("pre.hex", { tabindex: "0", "aria-label": "Bytes in hexadecimal" }, lines.join("\n")), cut(told)];
  }
  return [el("pre", { tabindex: "0", "aria-label": "Text" }, el("bdi", null, told.text || "(empty)")), cut(told)];
}

const cut = (told) => el("p.more", { hidden: told.cut ? null : "" }, "Only the beginning is shown.");

// --- an action result

function drawnResult(result, asked, digest) {
  const instance = result.instance ? name(result.instance) : "the default instance";
  const complete = result.missing
    ? el("span.badge.bad", null, `lacks ${count(result.missing)} of ${count(result.references)} blobs`)
    : el("span.badge.good", null, `all ${count(result.references)} blobs are here`);
  const here = { instance: asked.instance };
  return el("section.panel", { "aria-label": "Action result" },
    el("h2", null, "Action result ", el("span.aside", null, "in ", instance)),
    el("dl.facts", null,
      ...(digest ? fact("Action", hash(digest), true) : []),
      ...fact("Exit code", result.exit_code ? el("span.badge.bad", null, result.exit_code) : "0"),
      ...fact("Complete", complete),
      ...fact("Written", date(result.written_at)),
      ...(result.began && result.ended ? fact("Took", took(result.ended - result.began)) : []),
      ...(result.worker ? fact("Ran on", name(result.worker)) : []),
      ...fact("Standard output", output(result.stdout, { ...here, via: "stdout" }), result.stdout?.text !== undefined),
      ...fact("Standard error", output(result.stderr, { ...here, via: "stderr" }), result.stderr?.text !== undefined)),
    entries(result, { ...here, via: "" }));
}

const took = (milliseconds) => milliseconds < 10000 ? `${(milliseconds / 1000).toFixed(2)} s` : duration(milliseconds / 1000);

function output(told, here) {
  if (!told) return el("span.none", null, "none");
  if (told.text !== undefined) return el("div", null, ...preview(told));
  return told.size === 0 ? el("span.none", null, "empty") : link(told, { ...here, as: "text" });
}

// --- parts

function entries(told, here) {
  const rows = told.entries.map((entry) => {
    const via = here.via ? `${here.via}/${entry.name}` : entry.name;
    const target = entry.within !== undefined
      ? { ...here, path: entry.within }
      : { digest: entry.digest, instance: here.instance, via, as: entry.type === "directory" ? entry.as || "directory" : undefined };
    const reachable = entry.within !== undefined || (entry.digest && !entry.absent);
    const label = entry.type === "directory" ? `${entry.name}/` : entry.name;
    return el("tr", null,
      el("th.name", { scope: "row" }, reachable ? el("a", { href: addressOf(target) }, name(label)) : name(label), entry.type === "link" ? el("span.aside", null, "→ ", name(entry.target)) : ""),
      el("td", null, { file: entry.executable ? "program" : "file", directory: "directory", link: "link" }[entry.type],
        entry.absent ? el("span", null, " ", el("span.badge.bad", null, "not here")) : ""),
      el("td.number", null, entry.type === "file" && entry.size !== undefined ? bytes(entry.size) : ""),
      el("td.wide", null, entry.digest ? el("span.hash", { title: entry.digest }, brief(entry.digest)) : entry.malformed ? el("span.badge.bad", null, "no digest") : ""));
  });
  if (!rows.length) return el("p.more", null, "It is empty.");
  return el("div", null,
    el("div.scroll", null, el("table", { "aria-label": "Entries" },
      el("thead", null, el("tr", null, el("th", { scope: "col" }, "Name"), el("th", { scope: "col" }, "Kind"), el("th.number", { scope: "col" }, "Size"), el("th.wide", { scope: "col" }, "Digest"))),
      el("tbody", null, ...rows))),
    told.left_out ? el("p.more.panel-note", null, `${count(told.left_out)} more are not shown.`) : "");
}

function link(told, fields) {
  if (told.malformed !== undefined) return el("span", null, name(told.malformed), " ", el("span.badge.bad", null, "no digest"));
  if (told.absent) return el("span", null, hash(told.digest), " ", el("span.badge.bad", null, "not here"));
  return el("span", null, el("a.mono", { href: addressOf({ digest: told.digest, instance: fields.instance, via: fields.via, as: fields.as }) }, brief(told.digest)), ` ${bytes(told.size)}`);
}

function pairs(title, listed) {
  if (!listed.length) return el("dl.facts", null, ...fact(title, el("span.none", null, "none")));
  return el("div", null, el("div.scroll", null, el("table.pairs", { "aria-label": title },
    el("thead", null, el("tr", null, el("th", { scope: "col" }, title), el("th", { scope: "col" }, "Value"))),
    el("tbody", null, ...listed.map(([key, value]) => el("tr", null, el("th.name", { scope: "row" }, name(key)), el("td.name.mono", null, name(value))))))));
}

const brief = (digest) => `${digest.replace(/^[^/]*\/(?=.*\/)/, "").slice(0, 12)}…`;
const words = (listed) => listed.length ? el("ol.words", { tabindex: "0" }, ...listed.map((word) => el("li", null, name(word)))) : el("p.none", null, "none");
const hash = (text) => el("span.mono.name", null, text);
const fact = (term, value, whole) => [el(whole ? "div.whole" : "div", null, el("dt", null, term), el("dd", null, value))];
const fileName = (via, digest) => (via || digest).split("/").filter(Boolean).pop().slice(0, 100);
