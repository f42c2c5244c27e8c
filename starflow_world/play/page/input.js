// Input: which action the held keys, buttons and gamepad mean.

const LABELS = {ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Space: "␣", Enter: "⏎"};
const PAD = {0: "Space", 12: "ArrowUp", 13: "ArrowDown", 14: "ArrowLeft", 15: "ArrowRight"};

export class Controls {
  // onPress(): an action key went down, or a slider moved by hand.
  constructor(box, hello, onPress) {
    this.box = box; this.fields = hello.fields; this.onPress = onPress; this.held = []; this.buttons = [];
    this.single = hello.fields.length === 1 && hello.fields[0].kind === "choice";
    box.replaceChildren();
    if (this.single) this.buildButtons(hello); else this.buildFields();
  }

  buildButtons({names, keys}) {
    const count = this.fields[0].n;
    this.actions = [...Array(count).keys()].map(index => {
      const named = keys[index] ?? null, digit = index < 9 ? [`Digit${index + 1}`] : null;
      if (count === 1) return {name: "next frame", keys: ["Space"], digit};
      return {name: names[index] ?? `action ${index}`, keys: named ?? digit, digit};
    });
    this.idle = this.actions.findIndex(action => action.keys?.length === 0);
    this.actions.forEach((action, index) => {
      const button = document.createElement("button"), hint = document.createElement("kbd");
      button.textContent = action.name; button.dataset.action = index;
      hint.textContent = action.keys?.length ? action.keys.map(key => LABELS[key] ?? key.replace(/^(Key|Digit)/, "")).join("")
        : action.digit?.[0].slice(5) ?? "";
      if (hint.textContent) button.append(hint);
      button.onpointerdown = event => { event.preventDefault(); button.setPointerCapture?.(event.pointerId); this.down(`#${index}`); };
      button.onpointerup = button.onpointercancel = button.onlostpointercapture = () => this.up(`#${index}`);
      this.box.append(button); this.buttons.push(button);
    });
  }

  buildFields() {
    this.idle = 0;
    this.inputs = this.fields.map((field, index) => {
      const label = document.createElement("label"), input = document.createElement("input"), shown = document.createElement("output");
      const [low, high] = field.kind === "choice" ? [0, field.n - 1] : [field.low, field.high];
      Object.assign(input, {type: "range", min: low, max: high, step: field.kind === "choice" ? 1 : (high - low) / 200});
      input.value = field.kind === "choice" ? 0 : Math.max(low, Math.min(high, 0));
      const show = () => { shown.textContent = Number(input.value).toFixed(field.kind === "choice" ? 0 : 2); };
      input.oninput = show; show();
      label.append(`${index + 1}`, input, shown); this.box.append(label);
      return input;
    });
    const button = document.createElement("button"), hint = document.createElement("kbd");
    button.textContent = "step"; hint.textContent = LABELS.Space; button.append(hint); button.onclick = () => this.onPress();
    this.box.append(button);
  }

  knows(code) {
    return this.single ? this.actions.some(action => action.keys?.includes(code) || action.digit?.includes(code)) : code === "Space";
  }

  down(code) {
    if (this.held.includes(code)) return;
    this.held.push(code); this.light(); this.onPress();
  }

  up(code) { this.held = this.held.filter(key => key !== code); this.light(); }

  release() { this.held = []; this.light(); }

  light() {
    const now = this.single ? this.index() : -1;
    this.buttons.forEach((button, index) => button.classList.toggle("held", index === now));
  }

  // The action that most held keys make together; of equal ones that of the newest key. -1: none.
  index() {
    let best = -1, most = 0;
    this.actions.forEach((action, index) => {
      const touched = this.held.lastIndexOf(`#${index}`), typed = action.digit ? this.held.indexOf(action.digit[0]) : -1;
      const together = action.keys?.length && action.keys.every(key => this.held.includes(key));
      const newest = Math.max(touched, typed, together ? Math.max(...action.keys.map(key => this.held.indexOf(key))) : -1);
      const weight = newest < 0 ? 0 : (together ? action.keys.length : 1) * 100 + newest;
      if (weight > most) { most = weight; best = index; }
    });
    return best;
  }

  // The numbers of the action that is pressed now; null if none is.
  pressed() {
    if (!this.single) return this.inputs.map((input, i) => this.fields[i].kind === "choice" ? Number(input.value)
      : Math.max(this.fields[i].low, Math.min(this.fields[i].high, Number(input.value))));
    const index = this.index();
    return index < 0 ? null : [index];
  }

  // What a world that runs by itself gets: what is pressed, else to do nothing, else the last action.
  running() {
    this.last = this.pressed() ?? (this.idle >= 0 ? [this.idle] : this.last ?? [0]);
    return this.last;
  }

  poll() {
    for (const pad of navigator.getGamepads?.() ?? []) {
      if (!pad) continue;
      const on = new Set(Object.entries(PAD).filter(([button]) => pad.buttons[button]?.pressed).map(([, key]) => key));
      if (pad.axes[0] < -.5) on.add("ArrowLeft");
      if (pad.axes[0] > .5) on.add("ArrowRight");
      if (pad.axes[1] < -.5) on.add("ArrowUp");
      if (pad.axes[1] > .5) on.add("ArrowDown");
      for (const key of new Set(Object.values(PAD))) {
        if (on.has(key) && !this.padded?.has(key)) this.down(key);
        if (!on.has(key) && this.padded?.has(key)) this.up(key);
      }
      this.padded = on;
    }
  }
}
