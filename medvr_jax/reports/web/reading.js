// One trajectory: how it went, where it came from, what it wrote and saw, and its fork decisions.
const slotButton = (slot, position, label = slot) => el("button", { type: "button", class: "link", "data-goto": slot,
  onclick: () => follow(slot, position) }, label);

const family = (group, t) => {
  const cause = causeOf(group, t), children = childrenOf(group, t), parts = [];
  if (t.parent !== null && group.bySlot.has(t.parent)) {
    parts.push(el("p", {}, "Forked from ", slotButton(t.parent, t.fork, `trajectory ${t.parent}`), ` at token ${t.fork}`,
      cause && `, whose box was uncertain: ${decisionText(cause)}`, "."));
  } else if (t.origin === "fresh") parts.push(el("p", {}, "Fresh: sampled from the prompt, with what forks left of the budget."));
  if (children.length) {
    parts.push(el("p", {}, "Forked into ", children.map((child, i) => [i > 0 && ", ", slotButton(child.slot, child.fork)]), "."));
  }
  return parts;
};

const ENDINGS = { answer: "answered", turn_limit: "no turn left", truncated: "truncated" };
const factList = (t) => {
  const facts = t.rewards ? [["Reward", fixed(t.rewards.total), "total"], ["accuracy", fixed(t.rewards.accuracy)],
    ["format", fixed(t.rewards.format)], ["tool", fixed(t.rewards.tool)], ["Advantage", signed(t.advantage), "total"],
    ["IoU with consensus", fixed(t.iou)]] : [];
  const logs = t.segments.flatMap(({ start, stop, own }) => (own ? Array.from(t.surprise.subarray(start, stop)) : [])).filter((v) => v !== UNKNOWN);
  if (logs.length) facts.push(["mean log p", signed(-logs.reduce((a, b) => a + b, 0) / logs.length / 1000, 3)]);
  if (t.meanEntropy !== null) facts.push(["mean entropy", fixed(t.meanEntropy, 3)]);
  facts.push(["sampled tokens", t.ownCount.toLocaleString("en")], ["ended", t.ended === "answer" && t.prediction == null ? "without an answer" : ENDINGS[t.ended] ?? t.ended]);
  return el("dl", { class: "facts" }, facts.map(([label, value, kind]) => el("div", { class: kind }, el("dt", {}, label), el("dd", { dir: "auto" }, value))));
};

const decisionTable = (group, t) => t.decisions.length > 0 && el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Fork decisions" },
  el("table", {}, el("caption", {}, "Fork decisions"),
    el("thead", {}, el("tr", {}, ["at token", "pass", "H base", "H tool", "ΔH", "P", "u", "outcome"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, t.decisions.map((d) => el("tr", {}, el("td", {}, d.position), el("td", {}, d.pass ?? 0),
      [d.hBase, d.hTool].map((v) => el("td", {}, fixed(v, 3))), el("td", {}, signed(d.deltaH, 3)),
      [d.probability, d.u].map((v) => el("td", {}, fixed(v, 3))),
      el("td", {}, d.granted && group.bySlot.has(d.child) ? ["forked: ", slotButton(d.child, d.position, `trajectory ${d.child}`)] : outcome(d)))))));

const shadingKey = () => el("p", { class: "shading" }, el("span", {}, "entropy"),
  ["0", ...ENTROPY_STEPS].map((from, level) => el("span", { class: `k e${level}` }, from)), el("span", {}, "nats"),
  el("span", { class: "k inherited" }, "shared with parent"), el("span", { class: "givenkey" }, "given by the tool"));

const readingView = (group, t) => el("article", { class: "reading", id: "reading", tabindex: "-1", "aria-label": laneLabel(t) },
  el("header", {},
    el("h4", {}, `Trajectory ${t.slot}`, judged && el("span", { class: `verdict ${verdict(t.correct)}` }, ` ${sign(t.correct)} ${verdict(t.correct)}`)),
    el("p", { class: "answer" }, t.prediction === null ? "gave no answer" : ["answers ", el("b", { dir: "auto" }, t.prediction)]),
    el("div", { class: "family" }, family(group, t))),
  factList(t), t.tokens && shadingKey(), textView(group, t), decisionTable(group, t));
