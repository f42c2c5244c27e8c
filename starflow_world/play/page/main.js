// The page: one socket, one stage, and what each key and button asks of the server.

import {Chart, Stage, paint} from "./draw.js";
import {Controls} from "./input.js";

const $ = id => document.getElementById(id);
const KEPT = "starflow_world";
const VIEWS = ["imagined", "both", "real"];
let socket, hello, controls, panes = [], view = "imagined", heat = false, running = false, recording = false;
let busy = false, asked = 0, next = null, armed = false, linking = false, kind = "set", quiet = 0, repeat = 0;
let fresh = false, wish = false;  // a replay has begun; the real environment was asked for and has not come

const stage = new Stage($("panes"), keep => ask("alone", {keep}));
const chart = new Chart($("chart"), to => ask("back", {to}));

function ask(verb, values = {}) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({do: verb, ...values}));
}

function say(text, bad = false) {
  $("status").textContent = text; $("status").title = text; $("status").classList.toggle("bad", bad);
}

function banner(text, alarm = false) {
  $("banner").hidden = !text; $("banner").textContent = text; $("banner").classList.toggle("alarm", alarm);
}

// ---- the socket ------------------------------------------------------------------------------------------------

function connect() {
  socket = new WebSocket(`ws://${location.host}/play`);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({data}) => typeof data === "string" ? told(JSON.parse(data)) : shown(data);
  socket.onclose = () => {
    running = busy = recording = false; lights();
    if (!$("banner").textContent.startsWith("4 ")) banner("not connected: press a key to come back", true);
  };
}

function told(message) {
  if (message.say === "hello") return begin(message);
  if (message.say === "full") return banner(message.text, true);
  if (message.say === "error") { busy = linking = wish = false; say(message.text, true); }
  if (message.say === "recording") { recording = message.on; lights(); }
  if (message.say === "saved") saved(message.name);
  if (message.say === "link") link(message);
}

function begin(message) {
  hello = message;
  document.title = `${hello.name} · starflow_world`;
  $("world").textContent = hello.name; $("prompt").hidden = !hello.takes_text; $("fps").value = hello.fps;
  $("texts").replaceChildren(...hello.texts.map(text => new Option(text)));
  for (const name of hello.saved) $("states").append(new Option(name, name));
  for (const button of $("views").querySelectorAll("button:not([data-view=imagined])")) button.disabled = !hello.real;
  controls = new Controls($("actions"), hello, pressed);
  banner("");
  const wanted = fromHash() ?? JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  if (wanted?.world === hello.name) replay(wanted);
  else restart(0);
}

function shown(data) {
  const length = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let place = 4 + length;
  const take = count => { place += count; return new Uint8Array(data, place - count, count); };
  const pixels = hello.height * hello.width * 3;
  if (header.say === "bookmark") return bookmarked(header, take(pixels));
  panes = header.panes.map(pane => ({...pane, pixels: take(pixels), warmth: take(pane.heat[0] * pane.heat[1])}));
  busy = false; kind = header.kind;
  if (recording !== header.recording) { recording = header.recording; lights(); }
  const main = panes[0], real = panes.find(pane => pane.name === "real");
  if (real && view === "imagined" && fresh) setView("both", false);
  if (!real && view !== "imagined" && !wish) setView("imagined", false);
  fresh = false; wish &&= !real;
  chart.add(main, real ? real.first : null);
  $("nats").textContent = main.nats === null ? "" : main.nats.toFixed(1);
  $("mission").textContent = main.text; $("seed").value = header.seed;
  draw();
  if (header.alarm) banner(`alarm: p = ${header.p.toPrecision(2)}`, true);
  else if (main.ended) banner("the episode is over · R starts another");
  else if (header.waiting) banner(`replaying, ${header.waiting} to go`);
  else banner("");
  if (main.ended && running) toggleRun();
  performance.mark?.("shown");
  if (next !== null) { const action = next; next = null; step(action); }
  clearTimeout(quiet);
  if (!header.waiting) quiet = setTimeout(keep, 400);
}

function draw() {
  if (!panes.length) return;
  const chosen = panes.filter(pane => view === "both" || (view === "real") === (pane.name === "real"));
  stage.show(chosen.length ? chosen : panes, hello, heat);
}

// ---- playing ---------------------------------------------------------------------------------------------------

function step(action) {
  if (armed) {
    armed = false; lights(); ask("other", {action});
    say("left another action with the same luck, right what happened: both go on with the same actions");
    return;
  }
  if (busy && performance.now() - asked < 5000) { next = action; return; }
  if (panes[0]?.ended) { say("the episode is over: restart it, or go back"); return; }
  busy = true; asked = performance.now();
  ask("step", {action});
}

function pressed() {
  if (running && !armed) return;
  const action = controls.pressed();
  if (action) step(action);
  clearTimeout(repeat);
  if (controls.single) repeat = setTimeout(again, 280);
}

function again() {
  const action = controls.pressed();
  if (running || !action || !controls.held.length) return;
  if (!busy && !armed) step(action);
  repeat = setTimeout(again, 1000 / fps());
}

const fps = () => Math.max(1, Math.min(60, Number($("fps").value) || 10));

let due = 0;
function tick(now) {
  controls?.poll();
  if (running && !busy && now >= due) { due = Math.max(now, due + 1000 / fps()); step(controls.running()); }
  requestAnimationFrame(tick);
}

function toggleRun() { running = !running; due = 0; next = null; lights(); }

function lights() {
  $("run").classList.toggle("on", running); $("run").firstChild.textContent = running ? "Pause" : "Run";
  $("heat").classList.toggle("on", heat); $("record").classList.toggle("on", recording);
  $("whatif").classList.toggle("on", armed);
  for (const button of $("views").querySelectorAll("button")) button.classList.toggle("on", button.dataset.view === view);
}

function restart(seed, text = null, how = "set", name = "") {
  chart.clear(); next = null; busy = false;
  ask("start", {kind: view !== "imagined" && how === "set" ? "real" : how, seed, text, name});
}

function setView(to, tell = true) {
  if (to !== "imagined" && !hello.real) { say(hello.why || "no real environment is known", true); return; }
  const before = view;
  view = to; lights();
  if (tell && (before === "imagined") !== (to === "imagined")) {
    if (to !== "imagined" && kind !== "real") { chart.clear(); say(`a new episode, from ${hello.real}`); }
    wish = to !== "imagined";
    ask("beside", {on: wish});
  } else draw();
}

function whatIf() {
  armed = !armed && panes[0]?.step > 0;
  say(armed ? "what if: press the action to take in place of the last, with the same luck" : ""); lights();
}

const luck = () => crypto.getRandomValues(new Uint32Array(1))[0];

// ---- bookmarks, files, links -----------------------------------------------------------------------------------

function bookmarked({id, step: at}, pixels) {
  const box = document.createElement("div"), canvas = document.createElement("canvas"), drop = document.createElement("button");
  paint(canvas, pixels, hello.width, hello.height);
  canvas.title = `back to step ${at}`; canvas.dataset.bookmark = id; canvas.onclick = () => ask("goto", {id});
  drop.textContent = "×"; drop.title = "forget"; drop.onclick = () => { ask("forget", {id}); box.remove(); };
  box.append(canvas, `step ${at}`, drop); $("bookmarks").append(box); box.scrollIntoView?.({inline: "end", block: "nearest"});
}

function saved(name) {
  const anchor = document.createElement("a");
  Object.assign(anchor, {href: `saved/${name}`, textContent: name, target: "_blank", rel: "noopener"});
  $("files").replaceChildren("saved ", anchor);
  if (name.endsWith(".safetensors")) $("states").append(new Option(name, name));
}

function link({start, path}) {
  const value = {world: hello.name, start, path};
  sessionStorage.setItem(KEPT, JSON.stringify(value));
  if (!linking) return;
  linking = false;
  const address = `${location.origin}/#${encodeURIComponent(JSON.stringify(value))}`;
  history.replaceState(null, "", address);
  navigator.clipboard?.writeText(address).then(() => say("link copied"), () => say("the link is in the address bar"));
}

// What a reload comes back to.
function keep() {
  if (kind === "frame" || kind === "state") sessionStorage.removeItem(KEPT);
  else ask("link");
}

function fromHash() {
  try { return JSON.parse(decodeURIComponent(location.hash.slice(1))); } catch { return null; }
}

function replay({start, path}) {
  history.replaceState(null, "", location.pathname);  // a reload comes back to where the visitor was
  chart.clear(); fresh = true; ask("replay", {start, path});
}

async function picture(file) {
  try {
    const image = await createImageBitmap(file), canvas = new OffscreenCanvas(hello.width, hello.height);
    const scale = Math.max(hello.width / image.width, hello.height / image.height), pen = canvas.getContext("2d");
    const [width, height] = [image.width * scale, image.height * scale];
    pen.drawImage(image, (hello.width - width) / 2, (hello.height - height) / 2, width, height);
    const {data} = pen.getImageData(0, 0, hello.width, hello.height);
    chart.clear(); socket.send(data.filter((_, index) => index % 4 < 3));
  } catch { say("expected a picture that this browser can read", true); }
}

// ---- keys and buttons ------------------------------------------------------------------------------------------

const COMMANDS = {
  KeyF: ["run", toggleRun], KeyR: ["restart", () => restart(Number($("seed").value) + 1)],
  KeyZ: ["back", () => panes[0]?.step > 0 && ask("back", {to: panes[0].step - 1})], KeyB: ["mark", () => ask("mark")],
  KeyX: ["whatif", whatIf], KeyL: ["luck", () => { ask("branch", {luck: luck(), beside: false}); say("other luck from here"); }],
  KeyT: ["two", () => ask("branch", {luck: luck(), beside: true})], KeyH: ["heat", () => { heat = !heat; lights(); draw(); }],
  KeyV: ["record", () => ask("record", {on: !recording, overlay: $("overlay").checked})],
  KeyC: ["link", () => { linking = true; ask("link"); }],
};
for (const [id, act] of Object.values(COMMANDS)) $(id).onclick = act;
$("save").onclick = () => ask("save");
$("states").onchange = event => { if (event.target.value) restart(0, null, "state", event.target.value); event.target.value = ""; };
$("picture").onchange = event => { if (event.target.files[0]) picture(event.target.files[0]); event.target.value = ""; };
$("seed").onchange = () => restart(Math.max(0, Math.floor(Number($("seed").value)) || 0));
$("texting").onsubmit = event => { event.preventDefault(); ask("text", {text: $("text").value}); $("text").blur(); };
$("with").onclick = () => restart(Number($("seed").value), $("text").value);
$("imagine").onclick = () => restart(Number($("seed").value), $("text").value, "text");
for (const button of $("views").querySelectorAll("button")) button.onclick = () => setView(button.dataset.view);
document.addEventListener("click", event => event.target.closest("button")?.blur());

const typing = () => document.activeElement?.closest("input, select, button, a") !== null;
addEventListener("keydown", event => {
  if (socket.readyState === WebSocket.CLOSED && event.key !== "Tab") return connect();
  if (event.key === "Escape") document.activeElement.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || typing() || !controls) return;
  if (event.code === "Tab" && !event.shiftKey) setView(VIEWS[(VIEWS.indexOf(view) + 1) % 3]);
  else if (controls.knows(event.code)) { if (!event.repeat) controls.down(event.code); }
  else if (COMMANDS[event.code]) { if (!event.repeat) COMMANDS[event.code][1](); }
  else return;
  event.preventDefault();
});
addEventListener("keyup", event => controls?.up(event.code));
addEventListener("blur", () => controls?.release());
addEventListener("resize", () => { stage.fit(); chart.draw(); });
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => { event.preventDefault(); if (event.dataTransfer.files[0]) picture(event.dataTransfer.files[0]); });
addEventListener("pointerdown", () => { if (socket.readyState === WebSocket.CLOSED) connect(); });
addEventListener("hashchange", () => { const wanted = fromHash(); if (wanted?.world === hello?.name) replay(wanted); });

connect();
requestAnimationFrame(tick);
