// Elements are made of text and attributes, never of markup: whatever a model is called stays text.
const $ = id => document.getElementById(id);

function made(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(c => c !== null && c !== undefined && c !== false));
  return element;
}
const h = (tag, attributes, ...children) => made(document.createElement(tag), attributes, children);
const refill = (element, ...children) => { element.replaceChildren(); return made(element, {}, children); };
const svg = (tag, attributes, ...children) =>
  made(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function tex(text) {
  const where = h("span", { class: "tex" });
  try {
    katex.render(text, where, { throwOnError: true, strict: false, trust: false, maxSize: 20, maxExpand: 400 });
  } catch { where.textContent = text; where.classList.add("raw"); }
  return where;
}

// numbers
const signed = x => x.toFixed(3).replace("-", "−");
const power = n => "10" + [...String(n)].map(c => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("");
function number(x) {
  if (x === null || x === undefined) return "no number";
  if (x === 0) return "0";
  if (Math.abs(x) >= 0.01 && Math.abs(x) < 1e4) return String(+x.toPrecision(3)).replace("-", "−");
  const [digits, exponent] = x.toExponential(1).split("e");
  return `${digits.replace("-", "−")}·${power(Number(exponent))}`;
}
const plural = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const cut = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;
const link = name => h("a", { href: "#", "data-go": name }, name);
