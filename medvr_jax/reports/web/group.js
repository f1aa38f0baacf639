// The chosen group and the chosen trajectory.
const detail = el("div", { class: "detail" });
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

const answerView = (group) => (group.options.length
  ? el("ul", { class: "options" }, group.options.map((option, i) => {
    const right = LETTERS[i] === group.answer || option === group.answer;
    return el("li", { class: right ? "answer" : null }, el("b", {}, LETTERS[i] ?? ""), el("span", { dir: "auto" }, option),
      right && el("span", { class: "hidden" }, "(right)"));
  })) : group.answer ? el("p", { class: "options" }, "Answer: ", el("b", { dir: "auto" }, group.answer)) : null);

// How many are right, those that a fork began apart: forks are not drawn from the policy as the others are.
const ORIGINS = [["base", "base"], ["fork", "forks"], ["fresh", "fresh"]];
const rightFacts = (all) => {
  const share = (some) => `${some.filter((t) => t.correct).length} of ${some.length}`;
  const parts = ORIGINS.map(([origin, label]) => [label, all.filter((t) => t.origin === origin)]).filter(([, some]) => some.length);
  const apart = parts.length > 1 ? ` (${parts.map(([label, some]) => `${label} ${share(some)}`).join(", ")})` : "";
  return `${share(all)} right${apart}`;
};

const groupFacts = (group, entry) => {
  const all = group.trajectories, granted = group.decisions.filter((d) => d.granted).length;
  const asked = group.decisions.filter((d) => d.asked).length;
  let covered = 0;
  for (let pixel = 0; pixel < group.counts.length; pixel += 1) covered += group.mask(pixel);
  const facts = [
    judged && rightFacts(all),
    `${entry.trajectories.filter((row) => row.looked).length} looked closer`,
    asked > 0 && `${granted} of ${plural(asked, "asked fork")} granted`,
    covered ? `consensus on ${percent(covered / group.counts.length)} of the image` : "no consensus",
    covered > 0 && group.covered !== null && `covering ${percent(group.covered)} of the true place, IoU ${fixed(group.overlap)}`,
    entry.elsewhere && "it points elsewhere",
    entry.disagreement > 0 && `answers disagree ${percent(entry.disagreement)}`,
  ];
  return facts.filter(Boolean).join(" · ");
};

const stepGroup = (way) => {
  const at = shown.findIndex((entry) => entry.place === state.place);
  const next = shown[at + way];
  if (next) show(next.place);
  return Boolean(next);
};
const stepTrajectory = (way) => {
  const group = openGroup(state.place), slots = passing(state.place);
  const order = familyOrder(group).map(({ t }) => t.slot).filter((slot) => !slots || slots.has(slot));
  const next = order[order.indexOf(state.slot) + way];
  if (next !== undefined) select(next);
  else if (stepGroup(way) && way < 0) {
    const before = passing(state.place), last = familyOrder(openGroup(state.place)).map(({ t }) => t.slot).filter((slot) => before.has(slot)).at(-1);
    select(last);
  }
};

const groupHeader = (group, entry) => {
  const at = shown.findIndex((one) => one.place === group.place);
  return el("header", { class: "about" },
    el("div", { class: "where" },
      el("button", { type: "button", class: "round", "aria-label": "Previous group", disabled: at <= 0, onclick: () => stepGroup(-1) }, "‹"),
      el("button", { type: "button", class: "round", "aria-label": "Next group", disabled: at < 0 || at >= shown.length - 1, onclick: () => stepGroup(1) }, "›"),
      el("p", {}, steps.length > 1 && `Step ${entry.step.toLocaleString("en")}, `, `group ${entry.group}`, el("span", { class: "quiet" }, ` · ${at + 1} of ${shown.length}`)),
      el("button", { type: "button", class: "opener", "aria-expanded": "false", "aria-controls": "groups", onclick: toggleList }, "Groups")),
    el("h3", { dir: "auto" }, group.question), answerView(group), el("p", { class: "quiet" }, groupFacts(group, entry)));
};

const renderGroup = () => {
  if (!index.groups.length) return;
  const group = openGroup(state.place), entry = index.groups[state.place];
  if (!group.bySlot.has(state.slot)) state.slot = familyOrder(group).map(({ t }) => t.slot).find((slot) => passing(state.place)?.has(slot)) ?? group.trajectories[0].slot;
  detail.replaceChildren(groupHeader(group, entry),
    el("div", { class: "overlook" }, pictureView(group), treeView(group)), readingView(group, group.bySlot.get(state.slot)));
  markChoice(group);
  markList();
};
const markChoice = (group) => {
  for (const lane of detail.querySelectorAll("button.lane")) {
    if (Number(lane.dataset.slot) === state.slot) lane.setAttribute("aria-current", "true");
    else lane.removeAttribute("aria-current");
  }
  bringOut(group, state.slot);
};

const show = (place, slot = null) => {
  state.place = place;
  state.slot = slot;
  atToken = null;
  closeList();
  renderGroup();
  writeAddress();
};

// Shows a trajectory of the group, and one of its tokens.
const select = (slot, position = null) => {
  const group = openGroup(state.place), t = group.bySlot.get(slot);
  if (!t) return;
  state.slot = slot;
  atToken = position;
  byId("reading").replaceWith(readingView(group, t));
  markChoice(group);
  const token = position === null ? null : byId("reading").querySelector(`.k[data-i="${position}"]`);
  if (token) {
    token.classList.add("at", "landed");
    byId("reading").querySelector(".readout").textContent = tokenFacts(t, position);
    token.scrollIntoView({ block: "center", behavior: calm() ? "auto" : "smooth" });
  } else {
    detail.querySelector(`button.lane[data-slot="${slot}"]`)?.scrollIntoView({ block: "nearest" });
  }
  say(laneLabel(t));
  writeAddress();
};

// To another member of the family, at the token where their ways part; the browser's "back" returns.
const follow = (slot, position = null) => {
  const target = openGroup(state.place).bySlot.get(slot);
  if (!target) return;
  const here = location.hash;
  select(slot, position ?? target.fork);
  if (location.hash !== here) { const there = location.hash; location.replace(here); location.hash = there; }
  byId("reading").focus({ preventScroll: true });
};
