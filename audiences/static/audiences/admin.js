// Copy buttons, and dialogs that can be used from the keyboard. Without scripts everything here still works as pages.
(() => {
  const say = (button, words) => {
    const said = button.querySelector("[data-said]");
    said.textContent = words;
    setTimeout(() => { said.textContent = "Copy"; }, 2000);
  };

  // navigator.clipboard exists on https and localhost only.
  const copy = async (field) => {
    if (navigator.clipboard && window.isSecureContext) {
      try {
        await navigator.clipboard.writeText(field.value);
        return true;
      } catch { /* not allowed: the old way may still be */ }
    }
    field.focus();
    field.select();
    return document.execCommand("copy");
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const field = document.getElementById(button.dataset.copy);
    say(button, (await copy(field)) ? "Copied" : "Press Ctrl-C");
  });

  // A button that leads to one field of a page.
  document.addEventListener("DOMContentLoaded", () => {
    const wanted = document.getElementById(window.location.hash.slice(1));
    if (wanted && wanted.matches("input, select, textarea")) wanted.focus();
  });

  let opener = null;
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.closest(".ls-button")) opener = event.target;
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    // The person was logged out, or may not do it: show the whole page of the response.
    const { target, xhr } = event.detail;
    const wanted = { "modal-content": 'id="dialog"', connecting: 'id="connecting"' }[target && target.id];
    if (wanted && !xhr.responseText.includes(wanted)) {
      event.detail.shouldSwap = false;
      window.location.reload();
    }
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.target.id !== "modal-content") return;
    // Enter must not press a button whose effect can't be undone.
    const field = event.target.querySelector("textarea, select, input:not([type=hidden])");
    const first = field || event.target.querySelector(".ls-danger") ? field || event.target.querySelector(".ls-answers a") : event.target.querySelector("button");
    if (first) setTimeout(() => first.focus(), 50);
  });
  document.addEventListener("keydown", (event) => {
    const dialog = document.querySelector("#modal-content #dialog");
    if (!dialog || dialog.offsetParent === null) return;
    if (event.key === "Escape" && opener) opener.focus();
    if (event.key !== "Tab") return;
    const stops = [...dialog.querySelectorAll("a[href], button, textarea, select, input:not([type=hidden])")];
    const [first, last] = [stops[0], stops[stops.length - 1]];
    if (event.shiftKey ? document.activeElement === first : document.activeElement === last) {
      event.preventDefault();
      (event.shiftKey ? last : first).focus();
    }
  });
})();
