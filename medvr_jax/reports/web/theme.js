// Light, dark, or as the system has it.
const THEMES = ["auto", "light", "dark"];
const setTheme = (theme) => {
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  remember("theme", theme);
  const choice = document.querySelector(`.theme input[value="${theme}"]`);
  if (choice) choice.checked = true;
};
const nextTheme = () => {
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
  setTheme(theme);
  say(`Theme: ${theme}`);
};
const themeChoice = () => el("fieldset", { class: "theme segments" },
  el("legend", { class: "hidden" }, "Theme"),
  THEMES.map((theme) => el("label", {},
    el("input", { type: "radio", name: "theme", value: theme, checked: theme === (root.dataset.theme ?? "auto"),
      onchange: () => setTheme(theme) }),
    el("span", {}, theme[0].toUpperCase() + theme.slice(1)))));
