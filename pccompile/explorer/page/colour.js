// |ε| as a colour: six decades below the greatest error of the run; zero is hollow, unlike the least error.
const PALETTE = { // one direction of lightness, told apart by every kind of colour vision
  light: ["#fbfbe0", "#e3f2bd", "#b9e0b5", "#7cc9bd", "#43adc3", "#2384b8", "#23589f", "#243a85", "#141f5c"],
  dark: ["#22252f", "#232f55", "#264683", "#25649f", "#2a86b5", "#47a9bd", "#83cbb9", "#c4e6b6", "#f8f9d2"],
};
const DECADES = 6;
const OWN = ["--first", "--second", "--third", "--fourth", "--fifth"]; // a colour for each algorithm
const night = matchMedia("(prefers-color-scheme: dark)");
const palette = () => PALETTE[night.matches ? "dark" : "light"];
const variable = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const own = r => OWN[DATA.runs.indexOf(r) % OWN.length];
const ranges = new WeakMap();

function range(r = run()) {
  if (!ranges.has(r)) {
    let top = 1e-30;
    for (const steps of Object.values(r.errors)) for (const x of steps) if (x > top) top = x;
    ranges.set(r, [Math.log10(top) - DECADES, Math.log10(top)]);
  }
  return ranges.get(r);
}
let stops = [];
function mixed(part) {
  const at = Math.max(0, Math.min(1, part)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(at));
  return stops[i].map((x, j) => Math.round(x + (stops[i + 1][j] - x) * (at - i)));
}
const refreshColours = () => { stops = palette().map(c => [1, 3, 5].map(j => Number.parseInt(c.slice(j, j + 2), 16))); };
const height = (x, r = run()) => { const [low, high] = range(r); return x === null ? 1 : (Math.log10(x) - low) / (high - low); };
const fill = x => `rgb(${mixed(height(x)).join(",")})`;
function ink(x) {
  if (x === 0) return "var(--ink)";
  const [red, green, blue] = mixed(height(x));
  return red * 0.3 + green * 0.59 + blue * 0.11 > 130 ? "#1c1d21" : "#fff";
}
// The error of several vertices together: root mean square, null where one is no number.
function together(names, step, r = run()) {
  let sum = 0;
  for (const name of names) {
    const x = r.errors[name]?.[step];
    if (x === null) return null;
    sum += (x ?? 0) ** 2;
  }
  return Math.sqrt(sum / names.length);
}
