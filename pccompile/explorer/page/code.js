// Python with a little colour, and the generated file as a whole with the lines of the chosen vertex.
const WORDS = "def return for in if else elif while with import from as not and or lambda del pass break class None True False";
const TOKEN = new RegExp([
  /(#.*$)/, /("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')/, new RegExp(`\\b(${WORDS.replaceAll(" ", "|")})\\b`),
  /\b(\d[\d.e_]*)\b/, /(@[\w.]+)/, /\b([A-Za-z_]\w*)(?=\()/,
].map(r => r.source).join("|"), "gm");
const KINDS = ["comment", "string", "keyword", "number", "decorator", "call"];

function python(text) {
  const parts = [];
  let at = 0;
  for (const m of text.matchAll(TOKEN)) {
    const kind = KINDS[m.slice(1).findIndex(g => g !== undefined)];
    parts.push(text.slice(at, m.index), h("span", { class: kind }, m[0]));
    at = m.index + m[0].length;
  }
  return [...parts, text.slice(at)];
}
const files = new WeakMap();
function file(r = run()) {
  if (!files.has(r)) files.set(r, r.code.text.split("\n"));
  return files.get(r);
}
function excerpt(numbers, r = run()) { // lines, without what they are all indented by
  const lines = numbers.map(n => file(r)[n - 1]);
  const margin = Math.min(...lines.filter(l => l.trim()).map(l => l.length - l.trimStart().length));
  return lines.map(l => l.slice(margin)).join("\n");
}
function codeOf(name, r = run()) {
  const parts = Object.entries(r.code.lines[name] ?? {}).map(([f, numbers]) => [f, excerpt(numbers, r)]);
  const settled = parts.some(([f]) => f.startsWith("infer")), same = r.code.errors[name];
  return settled || !same ? parts : [...parts, ["infer", `# its error is another's\n${same}`]];
}
function drawCode(where) {
  const r = run(), mine = new Set(Object.values(r.code.lines[state.vertex] ?? {}).flat()), owners = new Map();
  for (const [name, functions] of Object.entries(r.code.lines))
    for (const numbers of Object.values(functions)) for (const n of numbers) if (!owners.has(n)) owners.set(n, name);
  const lines = file(r).map((text, i) => h("div", { class: mine.has(i + 1) ? "line mine" : "line", "data-go": owners.get(i + 1), title: owners.get(i + 1) },
    h("i", { "aria-hidden": "true" }, String(i + 1)), h("code", {}, python(text))));
  refill(where, h("p", { class: "text" }, "The generated file, what repeats in it written out. The lines of ", h("b", {}, state.vertex),
    " are marked; a click on a line goes to its vertex."), h("div", { class: "file", tabindex: 0, role: "region", "aria-label": "Generated file" }, lines));
  where.querySelector(".mine")?.scrollIntoView({ block: "center" });
}
