// Elements, numbers and memory. Texts become text nodes: nothing from the data is ever read as markup.
const root = document.documentElement;
const byId = (id) => document.getElementById(id);

const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const minus = (text) => text.replace("-", "\u2212");
const number = (value, digits = 3) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e6)) return minus(value.toExponential(1));
  return minus(Number(value.toPrecision(Math.max(digits, size >= 1 ? Math.floor(Math.log10(size)) + 1 : 1)))
    .toLocaleString("en", { maximumFractionDigits: 6 }));
};
const fixed = (value, places = 2) => (value === null || value === undefined ? "–" : minus(value.toFixed(places)));
const signed = (value, places = 2) =>
  (value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + minus(value.toFixed(places)));
const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(100 * share)}\u00a0%`);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// What the reader chose; forgotten at the end where the browser keeps nothing for pages from the disk.
const memory = new Map();
const remember = (key, value) => {
  memory.set(key, value);
  try { localStorage.setItem(`medvr_jax.${key}`, value); } catch { /* it holds for this page alone */ }
};
const remembered = (key) => {
  if (memory.has(key)) return memory.get(key);
  try { return localStorage.getItem(`medvr_jax.${key}`); } catch { return null; }
};

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const spoken = el("p", { class: "hidden", role: "status" });
const say = (text) => { spoken.textContent = text; };
