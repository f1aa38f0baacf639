// Keys, the address, and the list on small screens.
const writeAddress = () => {
  const entry = index.groups[state.place];
  const token = atToken === null ? "" : `&token=${atToken}`;
  const address = `#step=${entry.step}&group=${entry.group}&slot=${state.slot}${token}`;
  if (root.dataset.tab === "trajectories" && location.hash !== address) { ownAddress = address; location.replace(address); }
};
let ownAddress = null;

const readAddress = (address = location.hash) => {
  const hash = address.slice(1);
  if (root.dataset.sections.split(" ").includes(hash)) { openTab(hash); return; }
  if (address === ownAddress || !index.groups.length) return;
  const wanted = new Map(hash.split("&").map((part) => part.split("=")));
  if (!wanted.has("step")) return;
  const place = index.groups.findIndex((group) => String(group.step) === wanted.get("step") && String(group.group) === wanted.get("group"));
  if (place < 0) return;
  openTab("trajectories");
  if (state.step !== null && state.step !== index.groups[place].step) setStep(index.groups[place].step);
  if (place !== state.place || !detail.firstChild) { state.place = place; state.slot = null; renderGroup(); }
  const token = wanted.get("token");
  if (wanted.has("slot")) select(Number(wanted.get("slot")), token === undefined ? null : Number(token));
};
const setStep = (step) => {
  state.step = step;
  const choice = byId("step");
  if (choice) choice.value = step === null ? "all" : String(step);
  choose();
  list.replaceChildren(...shown.map(listRow));
};

const openTab = (name) => {
  root.dataset.tab = name;
  for (const link of document.querySelectorAll("#top nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "trajectories" && index.groups.length && !detail.firstChild) renderList();
};

const toggleList = () => {
  const open = root.classList.toggle("listing");
  document.querySelector(".opener")?.setAttribute("aria-expanded", String(open));
  if (open) (list.querySelector("[aria-current]") ?? list.querySelector("button"))?.focus();
};
const closeList = () => root.classList.remove("listing");

const KEYS = [
  ["j, k", "next, previous trajectory"], ["→, ←", "next, previous group"], ["↓, ↑", "within a list that has the focus"],
  ["f", "follow the first fork"], ["p", "go to the parent"], ["/", "search"], ["Esc", "leave the search, close"],
  ["t", "theme"], ["1, 2, 3, 4", "the sections, as they stand above"], ["?", "this help"],
];
const help = el("dialog", { class: "help", "aria-labelledby": "help-title" },
  el("h2", { id: "help-title" }, "Keys"), el("dl", {}, KEYS.map(([key, what]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)))),
  el("button", { type: "button", class: "chip", onclick: () => help.close() }, "Close"));
help.addEventListener("click", (event) => { if (event.target === help) help.close(); });

const within = (way) => { // one button on in the list that has the focus
  const buttons = [...(document.activeElement?.closest(".list, .lanes")?.querySelectorAll("button") ?? [])];
  const next = buttons[buttons.indexOf(document.activeElement) + way];
  next?.focus();
  if (next?.matches(".lane")) next.click();
  return buttons.length > 0;
};

const ACTIONS = {
  j: () => stepTrajectory(1), k: () => stepTrajectory(-1), ArrowRight: () => stepGroup(1), ArrowLeft: () => stepGroup(-1),
  f: () => { const child = childrenOf(openGroup(state.place), openGroup(state.place).bySlot.get(state.slot))[0]; if (child) follow(child.slot); },
  p: () => { const t = openGroup(state.place).bySlot.get(state.slot); if (t.parent !== null) follow(t.parent, t.fork); },
  "/": () => { searchField.focus(); searchField.select(); },
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const typing = event.target.matches("input[type=search], select, textarea");
  if (event.key === "Escape") {
    closeList();
    if (event.target === searchField) { searchField.value = ""; searchField.dispatchEvent(new Event("input")); searchField.blur(); }
    return;
  }
  if (typing || help.open || (event.target.matches("input") && event.key.startsWith("Arrow"))) return;
  if (event.key === "?") help.showModal();
  else if (event.key === "t") nextTheme();
  else if (/^[1-4]$/.test(event.key)) {
    const name = root.dataset.sections.split(" ")[Number(event.key) - 1];
    if (name) location.hash = name;
  } else if (root.dataset.tab !== "trajectories" || !index.groups.length) return;
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (!within(event.key === "ArrowDown" ? 1 : -1)) return;
  } else if (ACTIONS[event.key]) ACTIONS[event.key]();
  else return;
  event.preventDefault();
});
