// Roles, names and keys that unfold's templates lack, for people with a screen reader or without a mouse.
(() => {
  const ICON = ".material-symbols-outlined";
  // The names of controls that show only an icon.
  const NAMES = { sync_alt: "Now", dock_to_right: "Sidebar", close: "Close", search: "Search", unfold_more: "Account", more_horiz: "More", filter_list: "Filters" };
  const NATIVE = "a[href], button, input, select, textarea, summary";

  const words = (element) => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll(ICON).forEach((icon) => icon.remove());
    return element.matches(ICON) ? "" : copy.textContent.trim();
  };

  const name = (element) => {
    if (words(element) || element.title || element.hasAttribute("aria-label")) return;
    const icon = (element.matches(ICON) ? element : element.querySelector(ICON))?.textContent.trim();
    if (icon) element.setAttribute("aria-label", NAMES[icon] ?? icon.replaceAll("_", " "));
  };

  const mend = (part) => {
    // Elements with a click handler that aren't buttons: Tab reaches them, and Enter or the space bar presses them.
    for (const place of part.querySelectorAll("[x-on\\:click]:not([role]):not([tabindex])")) {
      if (place.matches(`${NATIVE}, a, label, h2`) || place.querySelector(NATIVE)) continue;
      place.setAttribute("role", "button");
      place.tabIndex = 0;
    }
    part.querySelectorAll("a[href], button, [role=button]").forEach(name);
    // Otherwise a screen reader reads the name of the icon.
    for (const icon of part.querySelectorAll(`${ICON}:not([role])`)) icon.setAttribute("aria-hidden", "true");
    for (const field of part.querySelectorAll("input[placeholder]")) {
      if (![...(field.labels ?? [])].some(words) && !field.hasAttribute("aria-label")) field.setAttribute("aria-label", field.placeholder);
    }
  };

  document.addEventListener("DOMContentLoaded", () => mend(document));
  // Django builds its boxes for several choices at this event.
  window.addEventListener("load", () => setTimeout(() => mend(document)));
  document.addEventListener("htmx:load", (event) => mend(event.detail.elt));
  document.addEventListener("keydown", (event) => {
    if (!event.target.matches("[role=button][x-on\\:click]") || !["Enter", " "].includes(event.key)) return;
    event.preventDefault();
    event.target.click();
  });
})();
