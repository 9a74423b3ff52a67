// In-silico reconfiguration: which genes change most when a coordinate is set, and where the cells go.

import { ask, cell, find } from "/page.js";

export class Reconfigure {
  constructor(atlas, facts) {
    this.atlas = atlas;
    this.facts = facts;
    this.answer = null;
    this.asked = 0;
    this.cell = null;  // of the map, to start from
    find("reconfigure").hidden = false;
    facts.labels.forEach((label) => find("like-label").add(new Option(label.name)));
    const supervised = facts.continuous.filter((each) => each.supervised);
    const free = facts.continuous.filter((each) => !each.supervised);
    for (const each of [...facts.labels, ...supervised, ...free]) find("coordinate").add(new Option(each.name));
    find("seed").max = facts.seeds - 1;
    find("like-label").addEventListener("change", () => { this.cell = null; this.likeClasses(); this.ask(); });
    find("coordinate").addEventListener("change", () => { this.coordinate(); this.ask(); });
    for (const id of ["like-class", "seed"]) find(id).addEventListener("change", () => { this.cell = null; this.ask(); });
    find("class").addEventListener("change", () => this.ask());
    find("slider").addEventListener("input", () => {
      find("value").textContent = Number(find("slider").value).toPrecision(4);
      clearTimeout(this.sliding);
      this.sliding = setTimeout(() => this.ask(), 120);
    });
    this.likeClasses();
    this.coordinate();
  }

  likeClasses() {
    const label = this.facts.labels.find((each) => each.name === find("like-label").value);
    find("like-class").replaceChildren(...(label?.categories ?? []).map((name) => new Option(name)));
  }

  coordinate() {
    const name = find("coordinate").value;
    const label = this.facts.labels.find((each) => each.name === name);
    const number = this.facts.continuous.find((each) => each.name === name);
    find("class").hidden = !label;
    find("sliding").hidden = Boolean(label);
    if (label) find("class").replaceChildren(...label.categories.map((each) => new Option(each)));
    if (!number) return;
    const slider = find("slider");
    [slider.min, slider.max] = [number.low, number.high];
    slider.value = (number.low + number.high) / 2;
    find("value").textContent = Number(slider.value).toPrecision(4);
  }

  // A cell of the map was clicked: it is the one to start from.
  picked(row) {
    if (this.facts.picks_cells) [this.cell, find("seed").value] = [row, ""];
    else if (this.atlas.facts.cells === this.facts.seeds) find("seed").value = row;
    else return;
    this.ask();
  }

  ask() {
    return this.atlas.guarded(async () => {
      const name = find("coordinate").value, seed = find("seed").value;
      const body = { labels: {}, values: {} };
      if (this.cell !== null) body.cell = this.cell;
      else if (seed !== "") body.seed = Number(seed);
      else if (find("like-class").value) body.like = { [find("like-label").value]: find("like-class").value };
      if (find("class").hidden) body.values[name] = Number(find("slider").value);
      else body.labels[name] = find("class").value;
      const turn = ++this.asked;
      const answer = await (await ask("/api/reconfigure", { method: "POST", body: JSON.stringify(body) })).json();
      if (turn === this.asked) this.show(answer);  // a later question overtook this one
    });
  }

  show(answer) {
    this.answer = answer;
    const likely = ({ shares }) => Object.values(shares).map((of) => Object.entries(of).sort((a, b) => b[1] - a[1])[0])
      .map(([name, share]) => `${name} ${(100 * share).toFixed(0)} %`).join(", ");
    find("moved").textContent =
      `${answer.cells} cells. Before: ${likely(answer.before)}. After: ${likely(answer.after)}.`;
    const body = find("genes").tBodies[0];
    body.replaceChildren();
    for (const each of answer.genes) {
      const line = body.insertRow();
      cell(line, each.gene);
      cell(line, each.before);
      cell(line, each.after);
      cell(line, each.change, each.change > 0 ? "up" : "down");
    }
    this.atlas.drawMarks();
  }

  draw(pen) {
    if (!this.answer) return;
    const { before, after } = this.answer, plot = this.atlas.plot;
    pen.strokeStyle = "#000";
    for (const row of after.nearest) {
      pen.beginPath();
      pen.arc(...plot.toScreen(plot.placeOf(row)), 5, 0, 7);
      pen.stroke();
    }
    const [from, to] = [plot.toScreen(before.place), plot.toScreen(after.place)];
    const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
    pen.lineWidth = 2;
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(...to);
    for (const turn of [2.6, -2.6]) {
      pen.moveTo(...to);
      pen.lineTo(to[0] + 12 * Math.cos(angle + turn), to[1] + 12 * Math.sin(angle + turn));
    }
    pen.stroke();
    pen.beginPath();
    pen.arc(...from, 4, 0, 7);
    pen.fillStyle = "#000";
    pen.fill();
    pen.lineWidth = 1;
  }
}
