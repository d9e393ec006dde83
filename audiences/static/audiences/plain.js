// Apply the theme that the switch of the admin has stored. With "auto", or nothing stored, the browser chooses.
(() => {
  let theme = "";
  try {
    theme = (localStorage.getItem("adminTheme") || "").replaceAll('"', "");
  } catch {
    return; // storage is switched off in this browser
  }
  if (theme === "dark" || theme === "light") document.documentElement.classList.add(theme);
})();
