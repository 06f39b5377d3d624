// Modules hold vertices and fold: where the whole cannot be read, all are folded that the chosen vertex is not in.
const chain = v => v.path.map((_, i) => v.path.slice(0, i + 1).join("."));
const last = path => { // blocks.0, not 0
  const parts = path.split("."), end = parts.at(-1);
  return /^\d/.test(end) && parts.length > 1 ? parts.slice(-2).join(".") : end;
};
const holder = v => chain(v).find(path => folded.has(path)); // the outermost folded module that a vertex is in
const owner = v => holder(v) ?? v.name;

function moduleSizes() {
  const sizes = new Map();
  for (const v of vertices()) for (const path of chain(v)) sizes.set(path, (sizes.get(path) ?? 0) + 1);
  return sizes;
}
const foldable = () => [...moduleSizes()].filter(([, size]) => size > 1).map(([path]) => path);

function fold(path, yes = true) {
  folded.chosen = true;
  if (yes) folded.add(path); else folded.delete(path);
  show({}, true);
}
function foldHere() { // the innermost module around the chosen vertex that is open
  const sizes = moduleSizes(), open = chain(vertex()).filter(path => !folded.has(path) && sizes.get(path) > 1 && !holder(vertex()));
  if (open.length) fold(open.at(-1));
  else if (holder(vertex())) { // it is folded already: the one around it
    const around = chain(vertex()).filter(path => !folded.has(path) && holder(vertex()).startsWith(path + "."));
    if (around.length) fold(around.at(-1));
  }
}
const unfoldHere = () => { const path = holder(vertex()); if (path) fold(path, false); };
function unfoldAround(v) { for (const path of chain(v)) if (folded.delete(path)) folded.chosen = true; }

const READABLE = 0.78;
const MANY = 150; // vertices that are never tried unfolded
function autofold() {
  folded.clear();
  folded.chosen = false;
  const box = $("view").getBoundingClientRect(), fits = l => Math.min(box.width / l.width, (box.height - 50) / l.height) > READABLE;
  if (vertices().length <= MANY && ["TB", "LR"].some(direction => fits(layout(direction)))) return;
  const sizes = moduleSizes(), mine = new Set(chain(vertex()));
  for (const v of vertices()) {
    const outside = chain(v).find(path => !mine.has(path) && sizes.get(path) > 1);
    if (outside && !holder(v)) folded.add(outside);
  }
}
