// Cells on a plane: drawn as points by WebGL2, found again by a grid.

const VERTEX = `#version 300 es
in vec2 place; in vec4 colour;
uniform vec2 scale; uniform vec2 shift; uniform float size;
out vec4 shade;
void main() { gl_Position = vec4(place * scale + shift, 0, 1); gl_PointSize = size; shade = colour; }`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 shade; out vec4 pixel; uniform bool round_;
void main() {
  if (round_ && distance(gl_PointCoord, vec2(0.5)) > 0.5) discard;
  pixel = vec4(shade.rgb * shade.a, shade.a);
}`;

export class Plot {
  constructor(canvas, places) {
    this.canvas = canvas;
    this.places = places;
    this.count = places.length / 2;
    this.gl = canvas.getContext("webgl2", { antialias: false, preserveDrawingBuffer: true });
    if (!this.gl) throw new Error("this browser has no WebGL2");
    this.prepare();
    this.bounds();
    this.grid = new Grid(places, this.low, this.high);
    this.resize();
    this.fit();
  }

  prepare() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    this.uniform = Object.fromEntries(
      ["scale", "shift", "size", "round_"].map((name) => [name, gl.getUniformLocation(program, name)]));
    const fill = (name, data, width, type, normalized) => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      const at = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, width, type, normalized, 0, 0);
      return buffer;
    };
    fill("place", this.places, 2, gl.FLOAT, false);
    this.colours = fill("colour", new Uint8Array(4 * this.count).fill(128), 4, gl.UNSIGNED_BYTE, true);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.clearColor(1, 1, 1, 1);
  }

  bounds() {
    this.low = [Infinity, Infinity];
    this.high = [-Infinity, -Infinity];
    for (let i = 0; i < this.places.length; i++) {
      const value = this.places[i], axis = i & 1;
      if (value < this.low[axis]) this.low[axis] = value;
      if (value > this.high[axis]) this.high[axis] = value;
    }
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.max(this.canvas.clientWidth * ratio, 1);
    this.canvas.height = Math.max(this.canvas.clientHeight * ratio, 1);
  }

  fit() {
    this.centre = [0, 1].map((axis) => (this.low[axis] + this.high[axis]) / 2);
    const spread = [0, 1].map((axis) => Math.max(this.high[axis] - this.low[axis], 1e-6) * 1.08);
    // CSS pixels a unit of the map.
    this.zoom = this.fitted = Math.min(this.canvas.clientWidth / spread[0], this.canvas.clientHeight / spread[1]);
    this.draw();
  }

  setColours(colours) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.colours);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, colours, this.gl.STATIC_DRAW);
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      const gl = this.gl, { clientWidth, clientHeight, width, height } = this.canvas;
      gl.viewport(0, 0, width, height);
      gl.clear(gl.COLOR_BUFFER_BIT);
      const scale = [2 * this.zoom / clientWidth, 2 * this.zoom / clientHeight];
      gl.uniform2f(this.uniform.scale, ...scale);
      gl.uniform2f(this.uniform.shift, -this.centre[0] * scale[0], -this.centre[1] * scale[1]);
      const size = Math.min(Math.max(Math.sqrt(60000 / this.count), 1), 8) * Math.sqrt(this.zoom / this.fitted);
      const pixels = Math.min(size, 24) * (width / clientWidth);
      gl.uniform1f(this.uniform.size, pixels);
      gl.uniform1i(this.uniform.round_, pixels > 3 ? 1 : 0);
      gl.drawArrays(gl.POINTS, 0, this.count);
      this.drawn?.();
    });
  }

  toScreen([x, y]) {
    return [
      (x - this.centre[0]) * this.zoom + this.canvas.clientWidth / 2,
      this.canvas.clientHeight / 2 - (y - this.centre[1]) * this.zoom,
    ];
  }

  toPlace([x, y]) {
    return [
      (x - this.canvas.clientWidth / 2) / this.zoom + this.centre[0],
      (this.canvas.clientHeight / 2 - y) / this.zoom + this.centre[1],
    ];
  }

  placeOf(row) { return [this.places[2 * row], this.places[2 * row + 1]]; }

  pan(dx, dy) {
    this.centre[0] -= dx / this.zoom;
    this.centre[1] += dy / this.zoom;
    this.draw();
  }

  zoomAt(at, factor) {
    const before = this.toPlace(at);
    this.zoom = Math.min(Math.max(this.zoom * factor, this.fitted / 4), this.fitted * 4000);
    const after = this.toPlace(at);
    this.centre = this.centre.map((value, axis) => value + before[axis] - after[axis]);
    this.draw();
  }

  // The cell nearest to a place on the screen, within some pixels; -1 if there is none.
  nearest(at, pixels = 8) {
    const [x, y] = this.toPlace(at);
    const radius = pixels / this.zoom;
    let best = -1, least = radius * radius;
    this.grid.within(x - radius, y - radius, x + radius, y + radius, (row) => {
      const dx = this.places[2 * row] - x, dy = this.places[2 * row + 1] - y;
      const distance = dx * dx + dy * dy;
      if (distance <= least) { least = distance; best = row; }
    });
    return best;
  }

  // Rows of the cells inside a polygon of places on the screen.
  inside(polygon) {
    const corners = polygon.map((at) => this.toPlace(at));
    const xs = corners.map((c) => c[0]), ys = corners.map((c) => c[1]);
    const rows = [];
    this.grid.within(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (row) => {
      if (contains(corners, this.places[2 * row], this.places[2 * row + 1])) rows.push(row);
    });
    return Uint32Array.from(rows).sort();
  }
}

function contains(corners, x, y) {
  let odd = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [xi, yi] = corners[i], [xj, yj] = corners[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}

// Rows sorted by the square that they lie in.
class Grid {
  constructor(places, low, high) {
    const count = places.length / 2;
    this.side = Math.min(Math.max(Math.round(Math.sqrt(count / 4)), 1), 1024);
    this.low = low;
    this.step = [0, 1].map((axis) => Math.max(high[axis] - low[axis], 1e-9) / this.side);
    const square = new Uint32Array(count);
    this.starts = new Uint32Array(this.side * this.side + 1);
    for (let row = 0; row < count; row++) {
      square[row] = this.at(1, places[2 * row + 1]) * this.side + this.at(0, places[2 * row]);
      this.starts[square[row] + 1]++;
    }
    for (let i = 1; i < this.starts.length; i++) this.starts[i] += this.starts[i - 1];
    const next = this.starts.slice();
    this.rows = new Uint32Array(count);
    for (let row = 0; row < count; row++) this.rows[next[square[row]]++] = row;
  }

  at(axis, value) {
    return Math.min(Math.max(Math.floor((value - this.low[axis]) / this.step[axis]), 0), this.side - 1);
  }

  within(x0, y0, x1, y1, visit) {
    for (let y = this.at(1, y0); y <= this.at(1, y1); y++) {
      const first = this.starts[y * this.side + this.at(0, x0)];
      const last = this.starts[y * this.side + this.at(0, x1) + 1];
      for (let i = first; i < last; i++) visit(this.rows[i]);
    }
  }
}
