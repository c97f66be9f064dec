// What the page of an unmasking (trace.html) does. `Trace` and `write_page` in trace.py say what the data are.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const MASKED = -1, MASK = "░";
let sample = 0, step = 0, live = -1, blocks = [], cells = [], timer = 0, addressing = 0;

/* What the tokens look like. */

const utf8 = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true});

const hex = byte => "\\x" + byte.toString(16).toUpperCase().padStart(2, "0");

// What would move the text around or not be seen becomes a sign that is.
function visible(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, c => {
    if (c === "\n") return "⏎\n";
    if (c === "\t") return "⇥";
    const code = c.codePointAt(0);
    return code < 0x80 ? hex(code) : "U+" + code.toString(16).toUpperCase().padStart(4, "0");
  });
}

// One character that begins at bytes[at], with its length, or null.
function character(bytes, at) {
  const lead = bytes[at], length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  try {
    return [visible(utf8.decode(Uint8Array.from(bytes.slice(at, at + length)))), length];
  } catch {
    return null;
  }
}

// What each cell shows; null where masked. Bytes that make a character together show it in the cell of the first.
function glyphs(tokens) {
  const shown = tokens.map(token => token === MASKED ? null : data.vocabulary[token]);
  for (let i = 0; i < shown.length; i++) {
    if (typeof shown[i] === "string") {
      shown[i] = data.ends.includes(tokens[i]) ? "⟨end⟩" : visible(shown[i]) || "∅";
    } else if (shown[i]) {
      const bytes = [], owner = [];
      let j = i;
      for (; Array.isArray(shown[j]); j++) for (const byte of shown[j]) bytes.push(byte), owner.push(j);
      shown.fill("", i, j);
      for (let k = 0; k < bytes.length;) {
        const [text, length] = character(bytes, k) ?? [hex(bytes[k]), 1];
        shown[owner[k]] += text;
        k += length;
      }
      i = j - 1;
    }
  }
  return shown;
}

/* What is known after some steps. */

const blockOf = position => Math.floor(position / data.block_size);
const isGiven = (text, position) => text.prompt[position] >= 0;
const firstUnknown = ({prompt}) => prompt.includes(MASKED) ? prompt.indexOf(MASKED) : prompt.length;
const firstOf = ([, revealed, remasked]) => revealed.length ? revealed[0][0] : remasked[0];

function stateAt(text, steps) {
  const state = cells.map((_, i) => ({token: text.prompt[i] ?? MASKED, p: null, lost: null, isNew: false}));
  text.steps.slice(0, steps).forEach(([, revealed, remasked], k) => {
    for (const [position, token, p] of revealed) Object.assign(state[position], {token, p, isNew: k === steps - 1});
    for (const i of remasked) state[i] = {token: MASKED, p: null, lost: state[i].token, isNew: k === steps - 1};
  });
  return state;
}

function story(text, position) {
  if (isGiven(text, position)) return "prompt";
  const found = [];
  for (const [forwards, revealed, remasked] of text.steps) {
    for (const [, token, p] of revealed.filter(([at]) => at === position))
      found.push(`${glyphs([token])[0].trim() || "space"} (${p?.toFixed(3)}) at forward ${forwards}`);
    if (remasked.includes(position)) found.push(`taken back at forward ${forwards}`);
  }
  return found.join(", ") || "never revealed";
}

/* The page. */

// Say what there is to see, and explain no sign that this text does not have.
function explain(text) {
  const size = data.block_size, back = text.steps.some(([, , remasked]) => remasked.length), many = blocks.length > 1;
  $("lead").textContent = many && size === 1 ?
    "The text is written token by token, from left to right: a block has one token, and each step reveals the next." :
    (many ? `The text is written from left to right in blocks of ${size} tokens, each in a frame. A block ` :
      "The text is one block. It ") + "begins masked, and each step reveals some of its tokens, in any order" +
      (back ? ", or masks some again." : ".");
  const signs = {back, many: many && size > 1, beyond: text.end < cells.length};
  for (const sign of document.querySelectorAll("[data-if]")) sign.hidden = !signs[sign.dataset.if];
  $("prompt").lastElementChild.textContent = glyphs(text.prompt).map(glyph => glyph ?? MASK).join("") || "(none)";
  $("detail").textContent = "Point at a token for its history; click it to go to the step that revealed it.";
}

function build() {
  const text = data.texts[sample], main = $("text");
  const reached = text.steps.flatMap(([, revealed]) => revealed.map(([position]) => position + 1));
  const width = reached.reduce((a, b) => Math.max(a, b), text.end);
  main.replaceChildren();
  blocks = [], cells = [], live = -1;
  for (let i = 0; i < width; i++) {
    if (i % data.block_size === 0) {
      blocks.push(main.appendChild(document.createElement("span")));
      blocks.at(-1).title = `block ${blocks.length}`;
    }
    cells.push(blocks.at(-1).appendChild(document.createElement("span")));
    cells[i].dataset.at = i;
  }
  $("step").max = text.steps.length;
  $("block").max = blocks.length;
  main.classList.toggle("single", data.block_size === 1);
  explain(text);
}

// Show a step; when the page opens, its top stays in view and its address as it is.
function show(to, opens = false) {
  const text = data.texts[sample], steps = text.steps;
  step = Math.min(Math.max(Math.round(to), 0), steps.length);
  const state = stateAt(text, step), shown = glyphs(state.map(cell => cell.token));
  const nowLive = Math.min(blockOf(step ? firstOf(steps[step - 1]) : firstUnknown(text)), blocks.length - 1);
  state.forEach(({token, p, lost, isNew}, i) => {
    const isMasked = token === MASKED, wasLost = lost !== null;
    const label = isMasked ? (wasLost ? glyphs([lost])[0].trim() || " " : MASK) : shown[i];
    const names = ["cell", isMasked ? "masked" : isGiven(text, i) ? "prompt" : "known"];
    if (wasLost) names.push("lost");
    if (isNew) names.push("new");
    if (p > .5) names.push("sure");
    if (i >= text.end) names.push("beyond");
    if (cells[i].className !== names.join(" ")) cells[i].className = names.join(" ");
    if (cells[i].label !== label) {
      cells[i].label = label;
      cells[i].textContent = label.replace(/\n$/, "");
      if (cells[i].nextSibling?.nodeName === "BR") cells[i].nextSibling.remove();
      if (label.endsWith("\n")) cells[i].after(document.createElement("br")); // outside: nothing is to be drawn there
    }
    if (p !== null) cells[i].style.setProperty("--p", p);
  });
  blocks.forEach((block, b) => {
    block.className = b === nowLive ? "block live" : "block";
    block.hidden = b > nowLive;
  });
  if (nowLive !== live && !opens) blocks[nowLive]?.scrollIntoView({block: "nearest"});
  live = nowLive;
  const [forwards, revealed, remasked] = steps[step - 1] ?? [0, [], []];
  $("status").textContent = `step ${step} of ${steps.length}, forward ${forwards}, block ${live + 1} of ` +
    `${blocks.length}: ${revealed.length} token${revealed.length === 1 ? "" : "s"} revealed` + (remasked.length ? `, ${remasked.length} taken back` : "");
  $("step").value = step;
  $("block").value = live + 1;
  clearTimeout(addressing); // browsers limit how often an address may change
  addressing = opens ? 0 : setTimeout(() => history.replaceState(null, "", `#sample=${sample + 1}&step=${step}`), 250);
}

function play(on) {
  clearInterval(timer);
  if (on && step >= data.texts[sample].steps.length) show(0);
  timer = on ? setInterval(() => {
    show(step + 1);
    if (step >= data.texts[sample].steps.length) play(false);
  }, 1000 / $("speed").value) : 0;
  $("play").textContent = on ? "pause" : "▶ play";
  $("status").setAttribute("aria-live", on ? "off" : "polite");
}

// To the first step of a block, or the end.
function toBlock(block) {
  const found = data.texts[sample].steps.findIndex(change => blockOf(firstOf(change)) >= block);
  play(false);
  show(found < 0 ? Infinity : found + 1);
}

function toSample(k) {
  const forwards = step < data.texts[sample].steps.length ? data.texts[sample].steps[step - 1]?.[0] ?? 0 : Infinity;
  choose(k);
  show(data.texts[sample].steps.filter(change => change[0] <= forwards).length); // as far as the other text was
}

function choose(k) {
  sample = k;
  $("sample").value = k;
  build();
}

// Open at the step that the address names, else at the last, where all there is can be seen.
function fromAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1)), to = Math.round(wanted.get("step"));
  play(false);
  choose(Math.min(Math.max(Math.round(wanted.get("sample")) || 1, 1), data.texts.length) - 1);
  show(wanted.has("step") ? to || 0 : Infinity, !wanted.has("step"));
}

for (const [name, value] of Object.entries(data.facts)) {
  const row = $("facts").appendChild(document.createElement("div"));
  row.appendChild(document.createElement("dt")).textContent = name;
  row.appendChild(document.createElement("dd")).textContent = value;
}
data.texts.forEach((_, k) => $("sample").add(new Option(k + 1, k)));
$("samples").hidden = data.texts.length < 2;
$("previous").onclick = () => { play(false); show(step - 1); };
$("next").onclick = () => { play(false); show(step + 1); };
$("play").onclick = () => play(!timer);
$("speed").onchange = () => timer && play(true);
$("step").oninput = event => { play(false); show(event.target.value); };
$("block").onchange = event => toBlock(event.target.value - 1);
$("sample").onchange = event => toSample(Number(event.target.value));
$("filled").onchange = event => $("text").classList.toggle("filled", event.target.checked);
$("text").onpointerover = $("text").onclick = event => {
  const at = event.target.dataset.at && Number(event.target.dataset.at), text = data.texts[sample];
  if (at === undefined) return;
  $("detail").textContent = `position ${at}, block ${blockOf(at) + 1}: ${story(text, at)}`;
  if (event.type !== "click") return;
  const revealed = text.steps.map(([, tokens]) => tokens.some(([position]) => position === at)).lastIndexOf(true);
  if (revealed >= 0) { play(false); show(revealed + 1); }
};
document.onkeydown = event => {
  const on = event.target, keys = {ArrowLeft: -1, ArrowRight: 1};
  if (event.ctrlKey || event.altKey || event.metaKey || on.matches("select, input[type=number]")) return;
  if (event.key in keys) {
    play(false);
    event.shiftKey ? toBlock(live + keys[event.key]) : show(step + keys[event.key]);
  } else if (event.key === "Home" || event.key === "End") {
    play(false);
    show(event.key === "Home" ? 0 : Infinity);
  } else if (event.key === " " && !on.matches("button, input[type=checkbox]")) play(!timer);
  else return;
  event.preventDefault();
};
window.onhashchange = fromAddress;
fromAddress();
