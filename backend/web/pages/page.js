// Sends the token of the mailed link when the button is pressed, and not before, because mail scanners open links.
const form = document.querySelector("form");
const button = form.querySelector("button");
const message = document.getElementById("message");
let token;

const say = (text, kind, place = message) => {
  message.dataset.kind = kind;
  message.textContent = text;
  place.focus();
};

const readLink = () => {
  token = new URLSearchParams(location.hash.slice(1)).get("token");
  // The token leaves the address at once, so that neither the history nor a screenshot keeps it.
  history.replaceState(null, "", location.pathname);
  form.reset();
  form.hidden = !token;
  say(token ? "" : "This link is not complete. Copy it from the mail as a whole.", "error");
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  message.textContent = "";
  try {
    const response = await fetch(form.dataset.action, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...Object.fromEntries(new FormData(form)), token }),
      credentials: "omit",
    });
    if (response.ok) {
      form.hidden = true;
      say(form.dataset.done, "done");
    } else {
      const error = await response.json();
      form.hidden = error.code === "token_invalid";
      if (error.errors) say(error.errors[0].message, "error", form.querySelector("input"));
      else say(error.detail, "error");
    }
  } catch {
    say("The service cannot be reached. Try again in a moment.", "error");
  }
  button.disabled = false;
});

readLink();
// Another link that is opened in the same tab changes the fragment alone, and loads nothing.
addEventListener("hashchange", readLink);
