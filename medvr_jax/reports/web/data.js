// The run's data: an index that is read at once, and groups that are read when they are looked at.
const readData = (id) => JSON.parse(byId(id).textContent);
const index = byId("index") ? readData("index") : { raster: 1, groups: [] };
let vocabulary = null;
const words = () => (vocabulary ??= readData("vocabulary"));

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const UNKNOWN = 65535;
const nats = (value) => (value === UNKNOWN ? null : value / 1000);

const opened = new Map();
const openGroup = (place) => {
  if (!opened.has(place)) {
    const group = readData(`group-${place}`);
    group.place = place;
    group.counts = bytes(group.counts);
    const mask = bytes(group.mask);
    group.mask = (pixel) => (mask[pixel >> 3] >> (pixel & 7)) & 1;
    group.trajectories.forEach(unpackTrajectory);
    group.bySlot = new Map(group.trajectories.map((t) => [t.slot, t]));
    group.decisions = group.trajectories.flatMap((t) => t.decisions);
    opened.set(place, group);
  }
  return opened.get(place);
};

const DECISION = ["position", "pass", "hBase", "hTool", "deltaH", "probability", "u", "eligible", "asked", "granted",
  "child"];

// Arrays of a trajectory, and its segments: stretches of tokens that the policy sampled, or that were given to it.
const unpackTrajectory = (t) => {
  t.entropy = new Uint16Array(bytes(t.entropy).buffer);
  t.surprise = new Uint16Array(bytes(t.surprise).buffer);
  t.tokens = t.tokens === undefined ? null : new (t.wide ? Uint32Array : Uint16Array)(bytes(t.tokens).buffer);
  t.length = t.entropy.length;
  t.decisions = t.decisions.map((row) => Object.fromEntries(row.map((value, i) => [DECISION[i], value])));
  for (const decision of t.decisions) decision.slot = t.slot;
  t.segments = [];
  let start = 0, turn = -1;
  t.sampled.forEach((count, i) => {
    const own = i % 2 === 0;
    if (own) turn += 1;
    if (count) t.segments.push({ start, stop: start + count, own, turn: Math.max(turn, 0) });
    start += count;
  });
  t.ownCount = t.sampled.reduce((sum, count, i) => sum + (i % 2 ? 0 : count), 0);
  let sum = 0, known = 0;
  for (const { start, stop, own } of t.segments) {
    for (let i = start; own && i < stop; i += 1) if (t.entropy[i] !== UNKNOWN) { sum += t.entropy[i]; known += 1; }
  }
  t.meanEntropy = known ? sum / known / 1000 : null;
};

const piece = (t, i) => words().pieces[t.tokens[i]];
const textOf = (t) => (t.tokens ? Array.from(t.tokens, (token) => words().pieces[token]).join("")
  : t.turns.map((turn) => turn.text).join("\n"));

// For the search; made when it is first used.
const searchTexts = new Map();
const searchText = (place, row) => {
  if (!searchTexts.has(place)) {
    const group = openGroup(place);
    const common = [group.question, group.answer, ...group.options].join("\n").toLowerCase();
    searchTexts.set(place, { common, own: group.trajectories.map((t) => `${t.prediction ?? ""}\n${textOf(t)}`.toLowerCase()) });
  }
  const found = searchTexts.get(place);
  return { common: found.common, own: found.own[row] };
};

// How uncertain a token was, in steps that mean the same on every page.
const ENTROPY_STEPS = [0.02, 0.1, 0.3, 0.6, 1, 1.5];
const entropyLevel = (value) => {
  if (value === UNKNOWN) return 0;
  let level = 0;
  while (level < ENTROPY_STEPS.length && value / 1000 >= ENTROPY_STEPS[level]) level += 1;
  return level;
};

// Verdicts in words and signs; null where nobody knows the right answer.
const verdict = (correct) => (correct === null ? "" : correct ? "right" : "wrong");
const sign = (correct) => (correct === null ? "·" : correct ? "✓" : "✗");

// Forks after their parents, fresh trajectories last; with their depth in the family.
const familyOrder = (group) => {
  const children = new Map();
  for (const t of group.trajectories) {
    const parent = t.parent !== t.slot && group.bySlot.has(t.parent) ? t.parent : null;
    children.set(parent, [...(children.get(parent) ?? []), t]);
  }
  const ordered = [], seen = new Set();
  const visit = (t, depth) => {
    if (seen.has(t)) return;
    seen.add(t);
    ordered.push({ t, depth });
    for (const child of children.get(t.slot) ?? []) visit(child, depth + 1);
  };
  const first = children.get(null) ?? [];
  for (const t of first.filter((one) => one.origin !== "fresh")) visit(t, 0);
  for (const t of first) visit(t, 0);
  for (const t of group.trajectories) visit(t, 0);
  return ordered;
};
const childrenOf = (group, t) => group.trajectories.filter((other) => other.parent === t.slot && other !== t);
const causeOf = (group, t) => (group.bySlot.get(t.parent)?.decisions ?? []).find((d) => d.granted && d.child === t.slot);
const outcome = (decision) => (!decision.eligible ? "ΔH too small"
  : !decision.asked ? "lost the draw" : decision.granted ? `forked: ${decision.child}` : "no free slot");
const decisionText = (d) => `H base ${fixed(d.hBase)}, H tool ${fixed(d.hTool)}, ΔH ${signed(d.deltaH)}, `
  + `P ${fixed(d.probability)}, u ${fixed(d.u)}`;
