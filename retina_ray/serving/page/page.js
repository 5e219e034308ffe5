// Sends a photograph to the API that served this page and shows the answer. Stores nothing, asks no other server.
"use strict";

const byId = (id) => document.getElementById(id);
const LESIONS = { MA: "microaneurysms", HM: "haemorrhages", HE: "hard exudates", SE: "soft exudates" };
const TASKS = {
  dr: "Diabetic retinopathy",
  amd: "Age-related macular degeneration",
  arteriosclerosis: "Arteriosclerosis",
  dme: "Diabetic macular oedema",
};
const METHODS = { gradcam: "Grad-CAM", gmsv: "GMSV" };

let models = [];
let photograph = null;
let preview = null; // object URL of the photograph
let apiKey = ""; // here and nowhere else
let asked = 0; // requests so far: only the answer to the newest is shown

// -- small helpers ---------------------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const percent = (share) =>
  (share > 0 && share < 0.005 ? "< 1" : share > 0.995 && share < 1 ? "> 99" : `${Math.round(100 * share)}`) + "\u00a0%";
const sentence = (text) => text.slice(0, 1).toUpperCase() + text.slice(1).replace(/\.?$/, ".");
const milliseconds = (value) => (value === null || value === undefined ? "?" : `${value.toFixed(0)} ms`);
const picture = (base64) => "data:image/png;base64," + base64.replaceAll(/\s/g, "");
const spoken = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`);

function say(text) {
  byId("status").textContent = text;
}

// -- asking ----------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(problem, retryAfter) {
    super(problem.detail);
    this.problem = problem;
    this.retryAfter = retryAfter;
  }
}

async function ask(path, request = {}) {
  const headers = { ...request.headers };
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  let response;
  try {
    response = await fetch(path, { ...request, headers });
  } catch {
    const detail = "No answer came back. Check the network, and whether the service is running; then try again.";
    throw new Refused({ type: "unreachable", title: "The service cannot be reached", detail });
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const title = `The answer cannot be understood (HTTP ${response.status})`;
  const unknown = { type: "unknown", title, detail: "Try again." };
  throw new Refused(body && body.detail ? body : unknown, response.headers.get("Retry-After"));
}

const NEXT_STEPS = {
  unauthenticated: "Enter a valid API key above.",
  "unreadable-image": "Choose another file.",
  "too-large": "Choose a smaller file.",
  "unsupported": "Turn that option off, or choose another model.",
};

function showProblem(error) {
  if (error.problem?.type === "unauthenticated") {
    byId("access").hidden = false;
    byId("key").focus();
    if (!apiKey) return say("This service asks for an API key.");
  }
  const { type, title, detail, image, request_id } = error.problem ?? {
    type: "page", title: "This page failed", detail: `${error.message}. Reload it.`,
  };
  const box = byId("problem");
  box.replaceChildren(make("h2", { textContent: title }), make("p", { textContent: sentence(detail) }));
  const advice = image?.reason ? sentence(image.reason) : NEXT_STEPS[type];
  const next = error.retryAfter ? `Try again in ${error.retryAfter} s.` : advice;
  if (next) box.append(make("p", {}, make("strong", { textContent: "What to do: " }), next));
  if (request_id) box.append(make("p", { className: "note", textContent: `Request ${request_id}` }));
  box.hidden = false;
  say("");
  if (type !== "unauthenticated") box.focus();
}

async function loadModels() {
  byId("problem").hidden = true;
  ({ models } = await ask("v1/models"));
  const kept = byId("model").value;
  byId("model").replaceChildren(...models.map(({ served_as, model }) =>
    make("option", { value: served_as, textContent: `${served_as} (${named(model)})` })));
  if (models.some(({ served_as }) => served_as === kept)) byId("model").value = kept;
  byId("model-row").hidden = models.length < 2;
  showModel();
}

const chosen = () => models.find(({ served_as }) => served_as === byId("model").value) ?? models[0];
const named = ({ name, version }) => (version === null ? name : `${name}, version ${version}`);

function showModel() {
  const model = chosen();
  const offered = [["", "none"], ...model.explanations.map((kind) => [kind, METHODS[kind] ?? kind])];
  byId("explain").replaceChildren(...offered.map(([value, text]) => make("option", { value, textContent: text })));
  byId("explain").value = model.explanations[0] ?? "";
  byId("explain-row").hidden = !model.explanations.length;
  const offers = { lesions: model.lesions, enhance: model.enhances, low_resolution: model.enhances };
  for (const [box, offer] of Object.entries(offers)) {
    byId(box).parentElement.hidden = !offer;
    if (!offer) byId(box).checked = false;
  }
  byId("card").replaceChildren(...markdown(model.card));
  byId("options").hidden = false;
  byId("card-box").hidden = false;
}

async function grade() {
  if (!photograph || !models.length) return;
  const number = ++asked;
  const model = chosen();
  const query = new URLSearchParams({ model: model.served_as });
  if (byId("explain").value) query.set("explain", byId("explain").value);
  for (const box of ["lesions", "enhance", "low_resolution"]) if (byId(box).checked) query.set(box, "true");
  byId("problem").hidden = true;
  say(`Grading ${photograph.name}\u2026`);
  byId("grade").disabled = true;
  const start = performance.now();
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await ask(`v1/grade?${query}`, { method: "POST", body: photograph, headers });
    const roundTrip = performance.now() - start;
    const description = await describe(answer, model);
    if (number === asked) showAnswer(answer, description, roundTrip);
  } catch (error) {
    if (number !== asked) return;
    byId("results").hidden = true;
    byId("empty").hidden = false;
    showPhotograph();
    showProblem(error);
  } finally {
    if (number === asked) byId("grade").disabled = false;
  }
}

// What an answer's grades are called is said by the model that gave it, which may have come since the page was loaded.
async function describe(answer, model) {
  if (answer.model.hash === model.model.hash) return model;
  const served = (await ask("v1/models")).models;
  return served.find((each) => each.model.hash === answer.model.hash) ?? { tasks: {} };
}

// -- the answer ------------------------------------------------------------------------------------------------------

function showAnswer(answer, description, roundTrip) {
  const quality = byId("quality");
  quality.className = answer.image.ok ? "" : "poor";
  quality.replaceChildren(make("strong", { textContent: "Photograph: " }),
    answer.image.ok
      ? "like those the model was trained on."
      : `${answer.image.reason}. It is unlike those the model was trained on, so the grades may be wrong.`);
  const tasks = Object.entries(answer.tasks);
  byId("tasks").replaceChildren(...tasks.map(([task, graded]) => taskCard(task, graded, answer.image, description)));
  const { timing, model } = answer;
  const steps = `preparation ${milliseconds(timing.prepare_ms)}, network ${milliseconds(timing.network_ms)}`;
  const facts = {
    Model: named(model), Hash: model.hash,
    Time: `${milliseconds(timing.total_ms)} (${steps}); ${milliseconds(roundTrip)} in all`,
    Request: answer.request_id ?? "?",
  };
  byId("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  byId("empty").hidden = true;
  byId("results").hidden = false;
  showLayers(answer);
  const told = tasks.map(([task, graded]) =>
    `${titleOf(task)}: ${graded.grade_name}, ${verdictOf(graded, answer.image)[1]}.`);
  say(`Graded ${photograph.name}. ${told.join(" ")}`);
  byId("results-title").focus();
}

const titleOf = (task) => TASKS[task] ?? task;

// A poor photograph never clears a patient: what it does not show may be there.
function verdictOf({ abstain, referable }, image) {
  if (abstain) return ["human", "A human decides"];
  if (referable) return ["refer", "Refer"];
  return image.ok ? ["none", "No referral"] : ["human", "Retake first"];
}

function taskCard(task, graded, image, description) {
  const { grades, referable_from } = description.tasks[task] ?? { grades: [], referable_from: -1 };
  const nameOf = (grade) => grades[grade] ?? `grade ${grade}`;
  const [kind, verdict] = verdictOf(graded, image);
  const rows = graded.probabilities.map((share, grade) => {
    const likely = graded.prediction_set.includes(grade);
    const fill = make("span", { className: "fill" });
    fill.style.width = `${100 * share}%`;
    const name = make("th", { scope: "row", textContent: nameOf(grade) });
    const row = make("tr", {}, name, make("td", {}, make("span", { className: "track", ariaHidden: "true" }, fill)),
      make("td", { className: "share", textContent: percent(share) }));
    row.classList.toggle("likely", likely);
    row.classList.toggle("chosen", grade === graded.grade);
    row.classList.toggle("first", grade === referable_from);
    return row;
  });
  const caption = make("caption", { className: "unseen", textContent: `Probability of each grade: ${titleOf(task)}` });
  const doubt = graded.abstain ? "Grades with and without a referral remain possible, so a human has to decide." : "";
  const set = `The true grade is ${spoken(graded.prediction_set.map(nameOf))}: ` +
    `statements like this are meant to hold for ${percent(graded.coverage)} of photographs.`;
  const referral = `Probability of a grade that calls for a referral, ${nameOf(referable_from)} or worse ` +
    `(below the dashed line): ${percent(graded.referable_probability)}.`;
  return make("article", { className: "task" },
    make("header", {}, make("h3", { textContent: titleOf(task) }),
      make("span", { className: `verdict ${kind}`, textContent: verdict })),
    make("p", { className: "headline" }, make("strong", { textContent: graded.grade_name }),
      ` \u2013 grade ${graded.grade}, confidence ${percent(graded.confidence)}`),
    make("table", { className: "bars" }, caption, make("tbody", {}, ...rows)),
    make("p", { className: "words note", textContent: set }),
    make("p", { className: "words note", textContent: referral }),
    ...(doubt ? [make("p", { className: "words", textContent: doubt })] : []));
}

// -- the picture and what lies over it -------------------------------------------------------------------------------

function showPhotograph() {
  const image = make("img", { className: "base", alt: `The photograph ${photograph.name}`, src: preview });
  image.addEventListener("error", () => {
    image.remove();
    byId("caption").textContent = "This browser cannot show this kind of file; it can be graded all the same.";
  });
  byId("stack").className = "";
  byId("stack").replaceChildren(image);
  byId("caption").textContent = photograph.name;
  byId("layers").hidden = true;
  byId("viewer").hidden = false;
}

function showLayers(answer) {
  const bases = [["Photograph", answer.fundus], ["Enhanced", answer.enhanced]].filter(([, png]) => png);
  const maps = Object.entries(answer.explanation?.tasks ?? {});
  const lesions = Object.entries(answer.lesions ?? {});
  if (!bases.length && !maps.length && !lesions.length) return showPhotograph();
  const stack = byId("stack");
  stack.className = "square";
  stack.replaceChildren();
  byId("layers").hidden = false;
  byId("viewer").hidden = false;
  byId("caption").textContent = `${photograph.name}: the fundus, as the model sees it`;

  fill("under", "radio", bases.map(([text, png], place) =>
    ({ text, on: place === 0, layer: make("img", { src: picture(png), alt: `${text} of the fundus` }) })), 1);
  const method = METHODS[answer.explanation?.method] ?? answer.explanation?.method;
  const heat = maps.map(([task, png], place) => {
    const layer = make("img", { src: picture(png), className: "faded", alt: `${method} of ${titleOf(task)}` });
    return { text: titleOf(task), on: place === 0, layer };
  });
  fill("evidence", "radio", heat.length ? [...heat, { text: "None", on: false, layer: make("span") }] : [], 1);
  byId("evidence").querySelector("legend").textContent = method ?? "";
  fill("findings", "checkbox", lesions.map(([code, { area, mask }]) => {
    const layer = make("canvas", { className: "faded", ariaLabel: LESIONS[code] ?? code, role: "img" });
    const swatch = make("span", { className: `swatch ${code}`, ariaHidden: "true" });
    const text = `${LESIONS[code] ?? code}, ${(100 * area).toFixed(1)}\u00a0%`;
    return { text, swatch, on: area > 0, layer, start: () => paint(layer, mask, swatch) };
  }), 0);
  byId("opacity-row").hidden = !heat.length && !lesions.length;
  fade();
}

// Fills a fieldset with one button per layer; layers of radio buttons exclude each other.
function fill(id, type, entries, least) {
  const set = byId(id);
  set.replaceChildren(set.querySelector("legend"));
  set.hidden = entries.length <= least;
  const show = () => entries.forEach(({ button, layer }) => { layer.hidden = !button.checked; });
  for (const entry of entries) {
    entry.button = make("input", { type, name: id, checked: entry.on });
    entry.button.addEventListener("change", show);
    set.append(make("label", {}, entry.button, ...(entry.swatch ? [entry.swatch] : []), entry.text));
    byId("stack").append(entry.layer);
    entry.start?.();
  }
  show();
}

// Paints a mask, white where a lesion is, in the colour of its swatch.
async function paint(canvas, mask, swatch) {
  const image = make("img", { src: picture(mask) });
  await image.decode();
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const [red, green, blue] = getComputedStyle(swatch).backgroundColor.match(/\d+/g).map(Number);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data.set([red, green, blue, pixels.data[i]], i);
  }
  context.putImageData(pixels, 0, 0);
}

function fade() {
  const { value } = byId("opacity");
  byId("opacity-value").textContent = `${value}\u00a0%`;
  for (const layer of document.querySelectorAll("#stack .faded")) layer.style.opacity = value / 100;
}

// -- the model card --------------------------------------------------------------------------------------------------

// Headings, paragraphs, tables and code of a model card's Markdown; everything becomes text, nothing becomes markup.
function* markdown(text) {
  for (const block of text.split(/\n{2,}/)) {
    const lines = block.trim().split("\n");
    const heading = lines[0].match(/^(#+) (.*)/);
    if (heading) {
      yield make(heading[1].length > 1 ? "h3" : "h2", { textContent: heading[2] });
      lines.shift();
    }
    if (lines[0]?.startsWith("|")) yield table(lines);
    else if (lines.join("")) yield make("p", {}, ...inline(lines.join(" ")));
  }
}

function table(lines) {
  const [head, , ...body] = lines.map((line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
  const row = (cells, tag) => make("tr", {}, ...cells.map((cell) => make(tag, {}, ...inline(cell))));
  const rows = body.map((cells) => row(cells, "td"));
  const whole = make("table", {}, make("thead", {}, row(head, "th")), make("tbody", {}, ...rows));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: head.join(", ") }, whole);
}

const inline = (text) => text.split("`").map((part, place) => (place % 2 ? make("code", { textContent: part }) : part));

// -- what the user does ----------------------------------------------------------------------------------------------

function take(files) {
  if (!files.length) return;
  [photograph] = files;
  if (preview) URL.revokeObjectURL(preview);
  preview = URL.createObjectURL(photograph);
  byId("file-name").textContent = photograph.name + (files.length > 1 ? ` (the first of ${files.length})` : "");
  byId("grade").disabled = !models.length;
  byId("results").hidden = true;
  byId("empty").hidden = false;
  showPhotograph();
  grade();
}

async function begin() {
  try {
    await loadModels();
    say(photograph ? "" : "Ready.");
    byId("grade").disabled = !photograph;
    await grade();
  } catch (error) {
    showProblem(error);
  }
}

byId("file").addEventListener("change", (event) => take(event.target.files));
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  grade();
});
byId("use-key").addEventListener("click", () => {
  apiKey = byId("key").value.trim();
  begin();
});
byId("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  byId("use-key").click();
});
byId("model").addEventListener("change", showModel);
byId("opacity").addEventListener("input", fade);
let inside = 0; // elements that a dragged file has entered and not left
addEventListener("dragenter", () => document.body.classList.toggle("dropping", ++inside > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dropping", --inside > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});
begin();
