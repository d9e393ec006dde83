// The theme that the admin's switch has stored; "auto" and nothing stored leave the choice to the browser.
(() => {
  let theme = "";
  try {
    theme = (localStorage.getItem("adminTheme") || "").replaceAll('"', "");
  } catch {
    return; // storage is switched off in this browser
  }
  if (theme === "dark" || theme === "light") document.documentElement.classList.add(theme);
})();
