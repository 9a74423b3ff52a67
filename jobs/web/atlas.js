// The page: colours, hover, lasso, search, the table of the selection and its export.

import { ask, cell, find, say } from "/page.js";
import { Plot } from "/plot.js";
import { Reconfigure } from "/reconfigure.js";

const GREY = [190, 190, 190];
const PALETTE = [
  "1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd", "8c564b", "e377c2", "bcbd22", "17becf", "393b79",
  "637939", "8c6d31", "843c39", "7b4173", "3182bd", "e6550d", "31a354", "756bb1", "9edae5", "f7b6d2",
].map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const MOST_SHOWN = 200;

const floats = async (path) => new Float32Array(await (await ask(path)).arrayBuffer());

function ramp(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[low].map((value, i) => Math.round(value + (RAMP[low + 1][i] - value) * (at - low)));
}

class Atlas {
  constructor(facts, places) {
    this.facts = facts;
    this.plot = new Plot(find("points"), places);
    this.plot.drawn = () => this.drawMarks();
    this.selected = new Uint32Array(0);
    this.isSelected = null;
    this.lasso = null;
    this.ofColumn = new Map();
    find("title").textContent = document.title = facts.title;
    find("count").textContent = `${facts.cells.toLocaleString("en")} cells`;
    facts.columns.forEach((column, at) => find("colour").add(new Option(column.name, at)));
    this.listen();
    if (facts.reconfigure) this.reconfigure = new Reconfigure(this, facts.reconfigure);
  }

  listen() {
    const marks = find("marks");
    find("colour").addEventListener("change", () => this.guarded(() => this.colourBy(+find("colour").value)));
    find("clear").addEventListener("click", () => this.guarded(() => this.select(new Uint32Array(0))));
    find("lasso").addEventListener("click", () => {
      const on = find("lasso").getAttribute("aria-pressed") !== "true";
      find("lasso").setAttribute("aria-pressed", on);
    });
    find("search").addEventListener("change", () => this.guarded(() => this.search(find("search").value)));
    find("names").addEventListener("click", () => this.guarded(() => this.export("names.txt")));
    find("arrow").addEventListener("click", () => this.guarded(() => this.export("obs.arrow")));
    marks.addEventListener("pointerdown", (event) => this.down(event));
    marks.addEventListener("pointermove", (event) => this.move(event));
    marks.addEventListener("pointerup", (event) => this.guarded(() => this.up(event)));
    marks.addEventListener("pointerleave", () => { find("hover").hidden = true; });
    marks.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.plot.zoomAt([event.offsetX, event.offsetY], Math.exp(-event.deltaY / 400));
    }, { passive: false });
    marks.addEventListener("dblclick", () => this.plot.fit());
    new ResizeObserver(() => { this.plot.resize(); this.plot.draw(); }).observe(find("stage"));
  }

  // What goes wrong is said on the page; nothing is left half done.
  async guarded(work) {
    try {
      await work();
      say("");
    } catch (error) {
      say(error.message);
    }
  }

  async values(number) {
    const values = this.ofColumn.get(number) ?? await floats(`/api/column/${number}`);
    this.ofColumn.delete(number);
    this.ofColumn.set(number, values);  // the last of them is the newest
    if (this.ofColumn.size > 8) this.ofColumn.delete(this.ofColumn.keys().next().value);
    return values;
  }

  async colourBy(number) {
    const values = await this.values(number);
    this.column = number;
    find("colour").value = number;
    const names = this.facts.columns[number].categories;
    let low = Infinity, high = -Infinity;
    const counts = new Array(names.length).fill(0);
    for (const value of values) {
      if (Number.isNaN(value)) continue;
      if (names.length) counts[value]++;
      else if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
    }
    this.range = [low, high];
    this.paint();
    this.legend(names, counts);
  }

  paint() {
    const values = this.ofColumn.get(this.column);
    const named = this.facts.columns[this.column].categories.length > 0;
    const table = named ? PALETTE : Array.from({ length: 256 }, (_, i) => ramp(i / 255));
    const [low, high] = this.range, spread = high - low || 1;
    const alpha = this.plot.count > 20000 ? 150 : 220;
    const colours = new Uint8Array(4 * values.length);
    for (let row = 0; row < values.length; row++) {
      const value = values[row];
      const shade = Number.isNaN(value) ? GREY
        : named ? table[value % table.length] : table[Math.round(255 * Math.min(Math.max((value - low) / spread, 0), 1))];
      const lit = !this.isSelected || this.isSelected[row];
      colours.set(lit ? shade : GREY, 4 * row);
      colours[4 * row + 3] = lit ? alpha : 40;
    }
    this.plot.setColours(colours);
  }

  legend(names, counts) {
    const box = find("legend");
    box.replaceChildren();
    if (!names.length) {
      const bar = document.createElement("div");
      bar.className = "ramp";
      bar.style.background = `linear-gradient(to right, ${RAMP.map((c) => `rgb(${c})`).join(",")})`;
      const ends = document.createElement("div");
      ends.textContent = this.range[0] <= this.range[1] ? this.range.map((v) => v.toPrecision(4)).join(" to ") : "no values";
      box.append(bar, ends);
      return;
    }
    const order = counts.map((_, code) => code).sort((a, b) => counts[b] - counts[a]);
    for (const code of order) {
      const line = document.createElement("button");
      line.type = "button";
      const [dot, name, number] = ["i", "span", "b"].map((tag) => document.createElement(tag));
      dot.style.background = `rgb(${PALETTE[code % PALETTE.length]})`;
      name.textContent = names[code];
      number.textContent = counts[code].toLocaleString("en");
      line.append(dot, name, number);
      line.addEventListener("click", () => this.guarded(() => this.selectClass(code)));
      box.append(line);
    }
  }

  async selectClass(code) {
    const values = await this.values(this.column);
    const rows = [];
    values.forEach((value, row) => { if (value === code) rows.push(row); });
    await this.select(Uint32Array.from(rows));
  }

  async search(words) {
    const answer = await ask(`/api/search?words=${encodeURIComponent(words)}`);
    await this.select(new Uint32Array(await answer.arrayBuffer()));
  }

  async select(rows) {
    this.selected = rows;
    this.isSelected = rows.length ? new Uint8Array(this.plot.count) : null;
    for (const row of rows) this.isSelected[row] = 1;
    find("selected").textContent = rows.length.toLocaleString("en");
    this.paint();
    const shown = rows.length ? await (await ask(`/api/cells?rows=${rows.slice(0, MOST_SHOWN).join(",")}`)).json() : [];
    if (this.selected === rows) this.tabulate(shown);
  }

  tabulate(shown) {
    const table = find("cells");
    table.tHead.replaceChildren();
    table.tBodies[0].replaceChildren();
    if (!shown.length) return;
    const names = Object.keys(shown[0].obs);
    const head = table.tHead.insertRow();
    for (const name of ["cell", ...names]) {
      const th = document.createElement("th");
      th.textContent = name;
      head.append(th);
    }
    for (const each of shown) {
      const line = table.tBodies[0].insertRow();
      cell(line, each.name);
      names.forEach((name) => cell(line, each.obs[name]));
    }
  }

  async export(kind) {
    const answer = await ask(`/api/export/${kind}`, { method: "POST", body: this.selected });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = kind;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  down(event) {
    event.target.setPointerCapture(event.pointerId);
    const at = [event.offsetX, event.offsetY];
    const drawing = event.shiftKey || find("lasso").getAttribute("aria-pressed") === "true";
    this.press = { at, last: at, moved: false };
    this.lasso = drawing ? [at] : null;
  }

  move(event) {
    const at = [event.offsetX, event.offsetY];
    if (!this.press) { this.hover(at); return; }
    if (Math.hypot(at[0] - this.press.at[0], at[1] - this.press.at[1]) > 3) this.press.moved = true;
    if (this.lasso) { this.lasso.push(at); this.drawMarks(); }
    else if (this.press.moved) this.plot.pan(at[0] - this.press.last[0], at[1] - this.press.last[1]);
    this.press.last = at;
  }

  async up(event) {
    const { press, lasso } = this;
    this.press = this.lasso = null;
    if (!press) return;
    if (lasso && lasso.length > 2) {
      this.drawMarks();
      await this.select(this.plot.inside(lasso));
    } else if (!press.moved) {
      const row = this.plot.nearest([event.offsetX, event.offsetY]);
      await this.select(row < 0 ? new Uint32Array(0) : Uint32Array.of(row));
      if (row >= 0) this.reconfigure?.picked(row);
    }
  }

  hover(at) {
    if (this.column === undefined) return;
    const row = this.plot.nearest(at), box = find("hover");
    if (row === this.hovered && !box.hidden) return;
    this.hovered = row;
    box.hidden = row < 0;
    if (row < 0) return;
    box.style.left = `${at[0] + 12}px`;
    box.style.top = `${at[1] + 12}px`;
    const column = this.facts.columns[this.column], value = this.ofColumn.get(this.column)[row];
    const shown = Number.isNaN(value) ? "no value" : column.categories.length ? column.categories[value] : value.toPrecision(4);
    box.textContent = `${column.name}: ${shown}`;
    clearTimeout(this.naming);
    this.naming = setTimeout(async () => {  // names stay on the server until one is asked for
      try {
        const [each] = await (await ask(`/api/cells?rows=${row}`)).json();
        if (this.hovered === row) box.textContent = `${each.name}, ${column.name}: ${shown}`;
      } catch (error) { say(error.message); }
    }, 80);
  }

  drawMarks() {
    const canvas = find("marks"), ratio = devicePixelRatio || 1;
    if (canvas.width !== find("points").width || canvas.height !== find("points").height) {
      canvas.width = find("points").width;
      canvas.height = find("points").height;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (this.lasso) {
      pen.beginPath();
      this.lasso.forEach(([x, y]) => pen.lineTo(x, y));
      pen.closePath();
      pen.fillStyle = "#0001";
      pen.fill();
      pen.stroke();
    }
    this.reconfigure?.draw(pen);
  }
}

try {
  const [facts, places] = await Promise.all([(await ask("/api/facts")).json(), floats("/api/places")]);
  const atlas = new Atlas(facts, places);
  globalThis.atlas = atlas;  // for the console, and for tests
  const first = facts.columns.findIndex((column) => column.categories.length > 1);
  await atlas.guarded(() => atlas.colourBy(Math.max(first, 0)));
} catch (error) {
  say(error.message);
}
