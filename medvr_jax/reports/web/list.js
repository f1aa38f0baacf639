// The list of groups: filters, orders, search.
const state = { place: 0, slot: null, step: null, order: "recorded", filters: new Set(), search: "" };

const FILTERS = [
  ["right", "Right", (row) => row.correct === true],
  ["wrong", "Wrong", (row) => row.correct === false],
  ["forked", "Forked", (row) => row.forked],
  ["blind", "No zoom", (row) => !row.looked],
  ["truncated", "Truncated", (row) => row.truncated],
  ["elsewhere", "Consensus elsewhere", (row, group) => group.elsewhere],
];
const share = (group, test) => group.trajectories.filter(test).length / group.trajectories.length;
const ORDERS = [
  ["recorded", "As recorded", () => 0],
  ["disagreement", "Highest disagreement", (group) => group.disagreement],
  ["wrong", "Most wrong", (group) => share(group, (row) => row.correct === false)],
  ["forked", "Most forked", (group) => share(group, (row) => row.forked)],
  ["blind", "Fewest zooms", (group) => share(group, (row) => !row.looked)],
  ["entropy", "Highest entropy", (group) => group.entropy],
];
const judged = index.groups.some((group) => group.trajectories.some((row) => row.correct !== null));
const steps = [...new Set(index.groups.map((group) => group.step))].sort((a, b) => a - b);
const located = index.groups.some((group) => group.elsewhere !== null);
const usable = ([name]) => (judged || !["right", "wrong"].includes(name)) && (located || name !== "elsewhere");

const filtering = () => state.filters.size > 0 || state.search !== "";
const passes = (place, number) => {
  const group = index.groups[place], row = group.trajectories[number];
  for (const [name, , test] of FILTERS) if (state.filters.has(name) && !test(row, group)) return false;
  if (!state.search) return true;
  const { common, own } = searchText(place, number);
  return common.includes(state.search) || own.includes(state.search);
};

let shown = []; // places of the groups in the list, in its order, with the slots that pass the filters
const choose = () => {
  const order = ORDERS.find(([name]) => name === state.order)[2];
  shown = [];
  index.groups.forEach((group, place) => {
    if (state.step !== null && group.step !== state.step) return;
    const slots = new Set(group.trajectories.filter((_, number) => passes(place, number)).map((row) => row.slot));
    if (slots.size) shown.push({ place, slots, key: order(group) });
  });
  shown.sort((a, b) => b.key - a.key || a.place - b.place);
};
const passing = (place) => shown.find((entry) => entry.place === place)?.slots;

const cells = (group, slots) => {
  const paths = { right: "", wrong: "", unknown: "", faded: "" };
  group.trajectories.forEach((row, i) => {
    const x = (i % 16) * 10 + 1, y = Math.floor(i / 16) * 10 + 1;
    const kind = !slots.has(row.slot) ? "faded" : verdict(row.correct) || "unknown";
    paths[kind] += kind === "wrong" ? `M${x + 1} ${y + 1}h5v5h-5Z` : `M${x} ${y}h7v7h-7Z`;
  });
  const width = Math.min(group.trajectories.length, 16) * 10, height = Math.ceil(group.trajectories.length / 16) * 10;
  return svg("svg", { class: "cells", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    Object.entries(paths).filter(([, d]) => d).map(([kind, d]) => svg("path", { class: kind, d })));
};

const listRow = ({ place, slots }) => {
  const group = index.groups[place];
  const right = group.trajectories.filter((row) => row.correct).length;
  const facts = [
    state.step === null && steps.length > 1 && `step ${group.step}`,
    judged ? `${right} of ${group.trajectories.length} right` : plural(group.trajectories.length, "sample"),
    filtering() && `${slots.size} match`,
  ].filter(Boolean);
  return el("li", {}, el("button", { class: "entry", type: "button", "data-place": place, onclick: () => show(place) },
    el("span", { class: "name" }, el("b", {}, `Group ${group.group}`), el("span", {}, facts.join(" · "))),
    el("span", { class: "asks", dir: "auto" }, group.question.slice(0, 200)),
    cells(group, slots)));
};

const list = el("ol", { class: "list", "aria-label": "Groups" });
const count = el("p", { class: "count", role: "status" });
const renderList = () => {
  choose();
  list.replaceChildren(...shown.map(listRow));
  const found = shown.reduce((sum, entry) => sum + entry.slots.size, 0);
  count.textContent = shown.length ? `${plural(found, judged ? "trajectory" : "sample")} in ${plural(shown.length, "group")}`
    .replace("trajectorys", "trajectories") : "Nothing matches.";
  if (shown.length && !passing(state.place)) show(shown[0].place);
  else {
    if (filtering() && !passing(state.place)?.has(state.slot)) state.slot = null; // the first one that passes is shown
    renderGroup();
  }
};
const markList = () => {
  for (const entry of list.querySelectorAll(".entry")) {
    const current = Number(entry.dataset.place) === state.place;
    if (current) {
      entry.setAttribute("aria-current", "true");
      if (list.offsetParent && list.scrollHeight > list.clientHeight) {
        const top = entry.parentElement.offsetTop - list.offsetTop, bottom = top + entry.offsetHeight;
        if (top < list.scrollTop) list.scrollTop = top;
        else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
      }
    } else entry.removeAttribute("aria-current");
  }
};

const searchField = el("input", { type: "search", id: "search", placeholder: "Search texts  /", autocomplete: "off",
  spellcheck: "false", "aria-label": "Search questions, answers and texts" });
let searching = 0;
searchField.addEventListener("input", () => {
  clearTimeout(searching);
  searching = setTimeout(() => { state.search = searchField.value.trim().toLowerCase(); renderList(); }, 150);
});

const toolbar = () => el("div", { class: "toolbar", role: "search" },
  steps.length > 1 && el("label", { class: "pick" }, el("span", {}, "Step"),
    el("select", { id: "step", onchange: (event) => {
      state.step = event.target.value === "all" ? null : Number(event.target.value);
      renderList();
    } }, el("option", { value: "all" }, "all"), steps.map((step) =>
      el("option", { value: step, selected: step === state.step }, step.toLocaleString("en"))))),
  el("label", { class: "pick" }, el("span", {}, "Order"),
    el("select", { id: "order", onchange: (event) => {
      state.order = event.target.value;
      renderList();
      if (shown.length) show(shown[0].place);
    } },
      ORDERS.filter(usable).map(([name, label]) => el("option", { value: name }, label)))),
  searchField,
  el("div", { class: "chips", role: "group", "aria-label": "Show only" }, FILTERS.filter(usable).map(([name, label]) =>
    el("button", { type: "button", class: "chip", "data-filter": name, "aria-pressed": "false", onclick: (event) => {
      const on = !state.filters.has(name);
      if (on) state.filters.add(name); else state.filters.delete(name);
      event.currentTarget.setAttribute("aria-pressed", String(on));
      renderList();
    } }, label))),
  count);
