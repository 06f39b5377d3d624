// Search over names of vertices, modules, parameters and operations.
function hits(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const score = v => {
    const all = [v.name, v.path.join("."), ...v.parameters, ...v.operations].map(s => s.toLowerCase());
    return words.every(w => all.some(s => s.includes(w))) ? (v.name.toLowerCase().startsWith(words[0]) ? 0 : 1) : 2;
  };
  return vertices().map(v => [score(v), v]).filter(([s]) => s < 2).sort((a, b) => a[0] - b[0]).slice(0, 12).map(([, v]) => v);
}
let pointed = 0;
function find(text) {
  const found = hits(text);
  pointed = 0;
  refill($("found"), ...found.map((v, i) => h("li", { id: `found${i}`, role: "option", "data-go": v.name, "aria-selected": String(i === 0) }, v.name,
    h("small", {}, v.path.join(".")))), ...(text && !found.length ? [h("li", { role: "option", "aria-disabled": "true" }, "nothing found")] : []));
  openFound(Boolean(text));
}
function openFound(yes) {
  $("found").hidden = !yes;
  $("search").setAttribute("aria-expanded", String(yes));
  if (yes && $("found0")) $("search").setAttribute("aria-activedescendant", `found${pointed}`); else $("search").removeAttribute("aria-activedescendant");
}
function point(by) {
  const options = [...$("found").querySelectorAll("[data-go]")];
  if (!options.length) return;
  pointed = (pointed + by + options.length) % options.length;
  options.forEach((o, i) => o.setAttribute("aria-selected", String(i === pointed)));
  options[pointed].scrollIntoView({ block: "nearest" });
  openFound(true);
}
function searchKey(e) {
  if (e.key === "Enter") { $(`found${pointed}`)?.click(); e.preventDefault(); }
  if (e.key === "ArrowDown" || e.key === "ArrowUp") { point(e.key === "ArrowDown" ? 1 : -1); e.preventDefault(); }
  if (e.key === "Escape") { openFound(false); $("search").blur(); }
}
