// Drawing: frames at whole multiples of device pixels, heat maps, the strip chart, thumbnails.

const HUES = {imagined: "#7fb4ff", branch: "#c79bff", real: "#79d0a0", warm: "#f2b65a", bad: "#ff7d7d", line: "#242b36", dim: "#8b97a8"};

export function paint(canvas, pixels, width, height) {
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const image = new ImageData(width, height);
  for (let i = 0, j = 0; i < pixels.length; i += 3, j += 4) {
    image.data[j] = pixels[i]; image.data[j + 1] = pixels[i + 1]; image.data[j + 2] = pixels[i + 2]; image.data[j + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

export function paintHeat(canvas, heat, rows, columns) {
  canvas.width = columns; canvas.height = rows;
  const image = new ImageData(columns, rows);
  for (let i = 0; i < heat.length; i++) image.data.set([255, 150 - heat[i] / 3, 40, heat[i]], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The side lengths in CSS pixels at which a frame is shown sharply inside the given room.
export function fitted(width, height, room) {
  const dots = window.devicePixelRatio || 1;
  const most = Math.min(room.width * dots / width, room.height * dots / height);
  const scale = most >= 1 ? Math.floor(most) : most;
  return [width * scale / dots, height * scale / dots];
}

// Panes are made once for a set of names, then only repainted.
export class Stage {
  constructor(box, onKeep) { this.box = box; this.onKeep = onKeep; this.names = ""; this.figures = {}; }

  show(panes, size, heatOn) {
    const names = panes.map(pane => pane.name).join();
    if (names !== this.names) this.build(panes, names);
    this.size = size;
    for (const pane of panes) {
      const figure = this.figures[pane.name];
      paint(figure.canvas, pane.pixels, size.width, size.height);
      figure.heat.hidden = !heatOn || !pane.heat[0];
      if (!figure.heat.hidden) paintHeat(figure.heat, pane.warmth, ...pane.heat);
      figure.words.textContent = captionOf(pane);
      figure.root.classList.toggle("apart", pane.differs === true);
    }
    if (names !== this.fittedFor) this.fit();
    this.fittedFor = names;
  }

  build(panes, names) {
    this.box.replaceChildren(); this.figures = {}; this.names = names;
    const two = panes.some(pane => pane.name === "branch");
    for (const {name} of panes) {
      const root = document.createElement("figure"), frame = document.createElement("div"), canvas = document.createElement("canvas");
      const heat = document.createElement("canvas"), caption = document.createElement("figcaption"), title = document.createElement("b");
      const words = document.createElement("span");
      root.className = name; frame.className = "frame"; heat.className = "heat"; title.textContent = name; canvas.id = name;
      caption.append(title);
      if (two && name !== "real") {
        const keep = document.createElement("button");
        keep.textContent = "keep"; keep.onclick = () => this.onKeep(name === "branch" ? 1 : 0);
        caption.append(keep);
      }
      caption.append(words);
      frame.append(canvas, heat); root.append(frame, caption); this.box.append(root);
      this.figures[name] = {root, canvas, heat, words};
    }
  }

  fit() {
    if (!this.size) return;
    const figures = Object.values(this.figures), space = this.box.getBoundingClientRect();
    const gap = 16 * (figures.length + 1);
    const words = figures[0].words.parentElement.offsetHeight;
    const room = {width: (space.width - gap) / figures.length, height: space.height - words - 12};
    const [width, height] = fitted(this.size.width, this.size.height, room);
    for (const {canvas, heat} of figures) for (const each of [canvas, heat]) {
      each.style.width = `${width}px`; each.style.height = `${height}px`;
    }
    for (const {root} of figures) root.style.width = `${room.width}px`;
  }
}

function captionOf(pane) {
  const reward = pane.reward === null ? "" : `reward ${Number(pane.reward.toFixed(2)) || 0}`;
  if (pane.name === "real") {
    const apart = pane.first === null ? "no difference yet" : `differs from step ${pane.first}`;
    return pane.ended ? `over · ${reward}` : `${apart}`;
  }
  const end = pane.end_probability === null ? "" : `end ${Math.round(100 * pane.end_probability)} %`;
  return [`step ${pane.step}`, reward, end, pane.sweeps ? `${pane.sweeps} sweeps` : ""].filter(Boolean).join(" · ");
}

// Nats by step, the newest at the right; rewards as dots, ends and the first difference as lines.
export class Chart {
  constructor(canvas, onStep) {
    this.canvas = canvas; this.series = new Map();
    canvas.addEventListener("click", event => {
      const step = Math.round((event.offsetX - this.left) / this.wide) + this.begin;
      if (this.series.has(step) && step < this.last) onStep(step);
    });
  }

  clear() { this.series.clear(); }

  add(pane, apart) {
    for (const step of this.series.keys()) if (step > pane.step) this.series.delete(step);
    if (pane.nats !== null) this.series.set(pane.step, pane);
    this.last = pane.step; this.apart = apart;
    if (!this.due) this.due = requestAnimationFrame(() => { this.due = 0; this.draw(); });
  }

  draw() {
    const dots = window.devicePixelRatio || 1, {clientWidth: width, clientHeight: height} = this.canvas;
    this.canvas.width = width * dots; this.canvas.height = height * dots;
    const pen = this.canvas.getContext("2d");
    pen.scale(dots, dots);
    this.wide = 5; this.left = 4;
    const room = Math.max(1, Math.floor((width - 8) / this.wide));
    this.begin = Math.max(0, (this.last ?? 0) - room + 1);
    const shown = [...this.series].filter(([step]) => step >= this.begin);
    const values = shown.map(([, pane]) => pane.nats), high = Math.max(...values, -1e9), low = Math.min(...values, 1e9);
    const span = Math.max(high - low, 20), foot = height - 14, top = 12;
    const at = step => this.left + (step - this.begin) * this.wide;
    const up = nats => top + (high - nats) / span * (foot - top);
    pen.strokeStyle = HUES.line; pen.beginPath(); pen.moveTo(0, foot + 4.5); pen.lineTo(width, foot + 4.5); pen.stroke();
    if (this.apart !== null && this.apart >= this.begin) this.mark(pen, at(this.apart), height, HUES.warm);
    pen.strokeStyle = HUES.imagined; pen.lineWidth = 1.5; pen.lineJoin = "round"; pen.beginPath();
    for (const [step, pane] of shown) pen.lineTo(at(step), up(pane.nats));
    pen.stroke();
    for (const [step, pane] of shown) {
      if (pane.ended) this.mark(pen, at(step), height, HUES.bad);
      if (Math.abs(pane.reward ?? 0) > 0.05) this.dot(pen, at(step), foot + 4.5, pane.reward > 0 ? HUES.real : HUES.bad);
    }
    if (shown.length) this.dot(pen, at(shown.at(-1)[0]), up(values.at(-1)), HUES.imagined);
    pen.fillStyle = HUES.dim; pen.font = "10px system-ui, sans-serif";
    if (shown.length) { pen.fillText(high.toFixed(0), 4, 10); pen.fillText(`step ${this.begin}`, 4, height - 1); }
  }

  mark(pen, x, height, hue) { pen.fillStyle = hue; pen.globalAlpha = .6; pen.fillRect(x - .5, 0, 1, height); pen.globalAlpha = 1; }

  dot(pen, x, y, hue) { pen.fillStyle = hue; pen.beginPath(); pen.arc(x, y, 2.5, 0, 7); pen.fill(); }
}
