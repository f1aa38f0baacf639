// The trajectories of a group as a tree along their tokens: who forked from whom, where, and how uncertain they were.
const laneLabel = (t) => [`Trajectory ${t.slot}`, verdict(t.correct),
  t.prediction === null ? "no answer" : `answer ${t.prediction.slice(0, 80)}`,
  t.rewards && `reward ${fixed(t.rewards.total)}`, t.advantage !== null && `advantage ${signed(t.advantage)}`,
  t.parent !== null ? `fork of ${t.parent} at token ${t.fork}` : t.origin].filter(Boolean).join(", ");

const laneRow = (t, slots) => el("li", {}, el("button", {
  type: "button", class: `lane ${slots?.has(t.slot) === false ? "faded" : ""}`, "data-slot": t.slot, "aria-label": laneLabel(t),
  onclick: () => select(t.slot), onpointerenter: () => bringOut(openGroup(state.place), t.slot),
  onpointerleave: () => bringOut(openGroup(state.place), state.slot),
},
el("span", { class: "slot" }, t.slot), el("span", { class: `sign ${verdict(t.correct)}` }, sign(t.correct)),
el("span", { class: "said", dir: "auto" }, t.prediction === null ? el("i", {}, "none") : t.prediction.slice(0, 80)),
el("span", { class: "strip" }), judged && [
  el("span", { class: "figure", title: "reward" }, t.rewards ? fixed(t.rewards.total) : "–"),
  el("span", { class: "figure more", title: "advantage" }, signed(t.advantage)),
  el("span", { class: "figure more", title: "overlap with the consensus" }, fixed(t.iou))]));

// Decisions at one place of one trajectory, passes together; the one that led furthest speaks for them.
const marksOf = (t) => {
  const places = new Map();
  for (const decision of t.decisions) places.set(decision.position, [...(places.get(decision.position) ?? []), decision]);
  const rank = (d) => (d.granted ? 3 : d.asked ? 2 : d.eligible ? 1 : 0);
  return [...places].map(([position, all]) => ({ position, all, best: all.reduce((a, b) => (rank(b) > rank(a) ? b : a)) }));
};

const drawBranches = (group, ordered, drawing, strip, rowHeight) => {
  const width = strip.clientWidth, longest = Math.max(1, ...ordered.map(({ t }) => t.length));
  const x = (position) => Math.round((position / longest) * width * 10) / 10;
  const rowOf = new Map(ordered.map(({ t }, i) => [t.slot, i])), middle = (i) => (i + 0.5) * rowHeight;
  const levels = Array.from({ length: ENTROPY_STEPS.length + 1 }, () => ""), marks = [], labels = [];
  let given = "", stubs = "", cut = "";
  const half = Math.min(7, rowHeight / 2 - 4);
  ordered.forEach(({ t }, i) => {
    const y = middle(i), begin = t.parent !== null && rowOf.has(t.parent) ? t.fork ?? 0 : 0;
    if (begin) {
      stubs += `M${x(begin)} ${middle(rowOf.get(t.parent))}V${y}`;
      const cause = causeOf(group, t);
      if (cause && x(begin) > 60) {
        labels.push(svg("text", { x: x(begin) - 5, y: y + 4, "text-anchor": "end" }, `ΔH ${signed(cause.deltaH)}`));
      }
    }
    for (const { start, stop, own } of t.segments) {
      const from = Math.max(start, begin);
      if (from >= stop) continue;
      if (!own) { given += `M${x(from)} ${y}H${x(stop)}`; continue; }
      for (let a = from; a < stop;) {
        const level = entropyLevel(t.entropy[a]);
        let b = a + 1;
        while (b < stop && entropyLevel(t.entropy[b]) === level) b += 1;
        levels[level] += `M${x(a)} ${y - half}H${x(b)}V${y + half}H${x(a)}Z`;
        a = b;
      }
    }
    if (t.ended === "truncated") cut += `M${x(t.length) - 1} ${y - half - 2}V${y + half + 2}`;
    for (const { position, all, best } of marksOf(t)) {
      const kind = best.granted ? "granted" : best.asked ? "asked" : "passed";
      const size = best.granted ? 4.5 : 3;
      const text = all.map((d) => `${decisionText(d)} → ${outcome(d)}`).join("\n");
      marks.push(svg("path", {
        class: `mark ${kind}`, "data-slot": t.slot, "data-child": best.granted ? best.child : null,
        d: `M${x(position)} ${y - half - size}l${size} ${size}l${-size} ${size}l${-size} ${-size}Z`,
        onclick: () => (best.granted ? follow(best.child) : select(t.slot, position)),
        onpointerenter: () => { treeReadout.textContent = `Trajectory ${t.slot}, token ${position}: ${text.replaceAll("\n", "; ")}`; },
      }, svg("title", {}, text)));
    }
  });
  drawing.setAttribute("width", width);
  drawing.setAttribute("height", ordered.length * rowHeight);
  drawing.style.left = `${strip.offsetLeft}px`;
  drawing.replaceChildren(svg("path", { class: "stubs", d: stubs }), svg("path", { class: "given", d: given }),
    ...levels.map((d, level) => svg("path", { class: `level e${level}`, d })), svg("path", { class: "cut", d: cut }),
    ...labels, ...marks);
};

const treeReadout = el("p", { class: "readout" });
const TREE_HINT = "A lane is a trajectory, token by token; the warmer, the less certain. ◆ forked: click to follow. Lines: given by the tool.";
let treeObserver = null;
const treeView = (group) => {
  const ordered = familyOrder(group), slots = passing(group.place);
  const drawing = svg("svg", { class: "branches", "aria-hidden": "true" });
  const rows = el("ol", { class: "lanes", "aria-label": "Trajectories" }, ordered.map(({ t }) => laneRow(t, slots)));
  const head = el("div", { class: "lane head", "aria-hidden": "true" }, el("span", { class: "slot" }, "#"), el("span"),
    el("span", { class: "said" }, "answer"), el("span", { class: "strip" }, "tokens"), judged && [
      el("span", { class: "figure" }, "R"), el("span", { class: "figure more" }, "A"), el("span", { class: "figure more" }, "IoU")]);
  const box = el("div", { class: `tree${judged ? "" : " unjudged"}` }, head, el("div", { class: "stage" }, rows, drawing), treeReadout);
  treeReadout.textContent = TREE_HINT;
  box.addEventListener("pointerleave", () => { treeReadout.textContent = TREE_HINT; });
  treeObserver?.disconnect();
  treeObserver = new ResizeObserver(() => {
    const strip = rows.querySelector(".strip");
    if (strip && strip.clientWidth) drawBranches(group, ordered, drawing, strip, rows.firstElementChild.offsetHeight);
  });
  treeObserver.observe(rows);
  return box;
};
