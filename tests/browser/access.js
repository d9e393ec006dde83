// What keeps somebody from using a page: one line each, with the element that does it.
() => {
  const found = new Set();
  const tell = (what, element) => found.add(`${what}: ${element.outerHTML.replace(/\s+/g, " ").slice(0, 140)}`);
  const seen = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const all = (selector) => [...document.querySelectorAll(selector)].filter(seen);
  const labelled = (element) => element.ariaLabel || element.getAttribute("aria-labelledby") || element.title;

  // What is heard: text, without what is hidden from whoever hears a page.
  const heard = (element) => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll("[aria-hidden=true]").forEach((part) => part.remove());
    return copy.textContent.trim();
  };
  for (const field of all("input:not([type=hidden]), select, textarea")) {
    if (!labelled(field) && ![...field.labels].some(heard)) tell("a field without a label", field);
  }
  for (const place of all("a[href], button, summary, [role=button]")) {
    if (!labelled(place) && !heard(place)) tell("nothing to be heard", place);
  }
  for (const icon of all(".material-symbols-outlined:not([aria-hidden=true])")) {
    if (!labelled(icon)) tell("the name of an icon is read aloud", icon);
  }
  for (const place of all("[x-on\\:click]")) {
    const inside = place.querySelector("a, button, input, label");
    if (!inside && place.tabIndex < 0 && !place.matches("label")) tell("for the mouse only", place);
  }

  // Colours as they are painted: those below a text one over the other, and the text over them.
  const brush = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const painted = (...colours) => {
    brush.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      brush.fillStyle = colour;
      brush.fillRect(0, 0, 1, 1);
    }
    return [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colour) => {
    const [red, green, blue] = colour.map((part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  for (const element of all("[class*='ls-'], [class*='ls-'] *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!says || element.matches(".material-symbols-outlined")) continue;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const [one, other] = [painted("white", ...grounds), painted("white", ...grounds, getComputedStyle(element).color)].map(light);
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) tell(`a contrast of ${contrast.toFixed(2)}`, element);
  }

  // A column too narrow for its names: a word of usual length on two lines.
  for (const link of all("#result_list .ls-link")) {
    for (const text of link.childNodes) {
      for (const word of (text.data || "").matchAll(/[\p{L}\p{N}_]{2,20}(?![\p{L}\p{N}_])/gu)) {
        const place = document.createRange();
        place.setStart(text, word.index);
        place.setEnd(text, word.index + word[0].length);
        if (new Set([...place.getClientRects()].map((box) => box.top)).size > 1) tell(`the word ${word[0]} is broken`, link);
      }
    }
  }

  if (document.documentElement.scrollWidth > innerWidth) found.add(`wider than the window: ${document.documentElement.scrollWidth} of ${innerWidth}`);
  return [...found];
};
