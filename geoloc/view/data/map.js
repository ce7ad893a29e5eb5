// The map page: a canvas to pan and zoom, the list beside it, details of one image. Uses geometry.js above.
// Strings from the data reach the page as text nodes only, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const outline = decodeOutline(Uint8Array.from(atob(data.outline), (c) => c.charCodeAt(0)));
// The coast that goes once around has no inside of its own: its land reaches to the edge of the map.
const polarCoast = outline.land.filter((line) => line.east - line.west >= 360);
const islands = outline.land.filter((line) => line.east - line.west < 360);
const polarLand = polarCoast.map((line) => {
  const y = projectY(-90);
  return {...line, x: [...line.x, line.east, line.west], y: [...line.y, y, y], bottom: y};
});
const points = data.points;
const cells = data.quadtree;

const MAP_HEIGHT = 2 * projectY(-90);  // of the whole world, in degrees of longitude at the equator
const MAX_PX_PER_DEG = 200000;  // about half a metre to a pixel
const ROW_PX = 72;
const CIRCLE_POINTS = 180;
const MANY_POINTS = 1500;  // from here on a point is a small square
const WIDE_KM = 1500;  // a larger circle is a thin line until its image is chosen: fills would hide the map
const MANY_CIRCLES = 80;  // from here on only the chosen image shows its circles
const RAMP = [  // dark violet to yellow, even steps in lightness (viridis)
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
  [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
];
const HEAT = [[255, 237, 160], [254, 178, 76], [252, 78, 42], [177, 0, 38]];  // light yellow to dark red

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), ctx = canvas.getContext("2d");
const view = {x: 0, y: 0, scale: 1, width: 0, height: 0};  // centre in map units, pixels per degree of longitude
const layers = {};  // name -> shown
let colors = {};
let chosen = -1, hovered = -1, hoveredCell = -1;
let order = [];  // of the list: indices of points
let cellColoring = "depth";

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// ---- numbers to read

function kmText(km) {
  if (km < 1) return `${Math.round(km * 1000)} m`;
  return km < 10 ? `${km.toFixed(1)} km` : `${Math.round(km).toLocaleString("en")} km`;
}

function latLonText([lat, lon], digits = 4) {
  const part = (v, plus, minus) => `${Math.abs(v).toFixed(digits)}\u00b0 ${v < 0 ? minus : plus}`;
  return `${part(lat, "N", "S")}, ${part(wrapLon(lon), "E", "W")}`;
}

function percentText(share) {
  return share >= 0.0995 ? `${Math.round(share * 100)} %` : `${(share * 100).toPrecision(2)} %`;
}

function countText(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

function missKm(point) {
  return point.latlon && point.truth ? haversineKm(point.latlon, point.truth) : undefined;
}

function rampAt(ramp, t) {
  const at = Math.max(0, Math.min(1, t)) * (ramp.length - 1), i = Math.min(ramp.length - 2, Math.floor(at));
  return ramp[i].map((v, k) => Math.round(v + (ramp[i + 1][k] - v) * (at - i)));
}

function rampColor(t, alpha = 1) {
  return `rgba(${rampAt(RAMP, t).join()},${alpha})`;
}

// ---- the view

function toScreen(x, y) {
  return [(x - view.x) * view.scale + view.width / 2, (y - view.y) * view.scale + view.height / 2];
}

function fromScreen(px, py) {
  return [(px - view.width / 2) / view.scale + view.x, (py - view.height / 2) / view.scale + view.y];
}

// Copies of the world, as shifts in degrees, in which something between west and east is on the screen.
function shiftsInView(west, east) {
  const half = view.width / 2 / view.scale, shifts = [];
  for (let k = Math.ceil((view.x - half - east) / 360); k <= Math.floor((view.x + half - west) / 360); k++) {
    shifts.push(360 * k);
  }
  return shifts;
}

function settle() {
  view.scale = Math.min(MAX_PX_PER_DEG, Math.max(view.width / 360, view.scale));
  const room = Math.max(0, (MAP_HEIGHT - view.height / view.scale) / 2);
  view.y = Math.min(room, Math.max(-room, view.y));
  view.x = wrapLon(view.x);
  redraw();
}

function zoomAt(px, py, factor) {
  const [x, y] = fromScreen(px, py);
  view.scale = Math.min(MAX_PX_PER_DEG, Math.max(view.width / 360, view.scale * factor));
  view.x = x - (px - view.width / 2) / view.scale;
  view.y = y - (py - view.height / 2) / view.scale;
  settle();
}

let flight = 0;
function flyTo(x, y, scale) {
  cancelAnimationFrame(flight);
  const from = {...view}, start = performance.now();
  const dx = wrapLon(x - from.x), zoom = Math.log(scale / from.scale);
  const step = (now) => {
    const t = Math.min(1, (now - start) / 450), ease = t * t * (3 - 2 * t);
    view.scale = from.scale * Math.exp(zoom * ease);
    // The centre moves as the scale does, so that the target does not rush away while zooming in.
    const moved = Math.abs(zoom) < 0.01 ? ease : (1 - Math.exp(-zoom * ease)) / (1 - Math.exp(-zoom));
    view.x = from.x + dx * moved;
    view.y = from.y + (y - from.y) * moved;
    settle();
    if (t < 1) flight = requestAnimationFrame(step);
  };
  if (document.hidden || matchMedia("(prefers-reduced-motion: reduce)").matches) {
    Object.assign(view, {x, y, scale});
    settle();
  } else {
    flight = requestAnimationFrame(step);
  }
}

// Centre and scale that show all of these points, across the antimeridian if that is the shorter way. Points all
// around the Earth give the map as everybody knows it, with longitude 0 in the middle.
function frameOf(latlons) {
  const lons = latlons.map((p) => wrapLon(p[1])).sort((a, b) => a - b);
  let gap = lons[0] + 360 - lons[lons.length - 1], west = lons[0];
  for (let i = 1; i < lons.length; i++) {
    if (lons[i] - lons[i - 1] > gap) [gap, west] = [lons[i] - lons[i - 1], lons[i]];
  }
  const ys = latlons.map((p) => projectY(p[0]));
  const top = ys.reduce((a, b) => Math.min(a, b)), bottom = ys.reduce((a, b) => Math.max(a, b));
  if (gap < 80) [gap, west] = [0, -180];
  const width = Math.max(360 - gap, 0.005), height = Math.max(bottom - top, 0.005);
  const scale = 0.86 * Math.min(view.width / width, view.height / height);
  return [west + (360 - gap) / 2, (top + bottom) / 2, Math.max(scale, view.width / 360)];
}

function surroundings(point) {
  const around = [point.latlon];
  if (point.truth) around.push(point.truth);
  for (const [lat, lon, weight] of point.posterior || []) if (weight > 0.05) around.push([lat, lon]);
  const radius = Math.max(...Object.values(point.radii).filter((km) => km < 6000), 0);
  if (radius > 0) circleRings(point.latlon, radius, 8)[0].forEach((p) => around.push(p));
  return around;
}

function home() {
  const all = points.filter((p) => p.latlon).flatMap(points.length > 500 ? (p) => [p.latlon] : surroundings);
  for (const [lat, lon] of data.heatmap || []) all.push([lat, lon]);
  if (all.length) {
    const [x, y, scale] = frameOf(all);
    return [x, y, Math.min(scale, 400)];  // some country around a point without a circle
  }
  if (!cells) return [0, 0, view.width / 360];
  const {west, east, top, bottom} = cellLayer.around;
  const scale = 0.95 * Math.min(view.width / (east - west), view.height / (bottom - top));
  return [(west + east) / 2, (top + bottom) / 2, scale];
}

// ---- drawing

let pending = 0;
function redraw() {
  if (!pending) pending = requestAnimationFrame(draw);
}

// Adds a projected line to a path. Vertices less than a pixel from the last one are left out, and so are runs of vertices
// that lie, with both neighbours of the run, beyond one same side of the screen: neither changes what is seen.
function trace(path, line, shift) {
  const {x, y} = line, last = x.length - 1, s = view.scale;
  const x0 = (shift - view.x) * s + view.width / 2, y0 = view.height / 2 - view.y * s;
  const right = view.width + 4, bottom = view.height + 4;
  const side = (px, py) => (px < -4 ? 1 : px > right ? 2 : 0) | (py < -4 ? 4 : py > bottom ? 8 : 0);
  let keptX = x[0] * s + x0, keptY = y[0] * s + y0, common = side(keptX, keptY);
  path.moveTo(keptX, keptY);
  if (last < 1) return;
  let px = x[1] * s + x0, py = y[1] * s + y0, here = side(px, py);
  for (let i = 2; i <= last; i++) {
    const nextX = x[i] * s + x0, nextY = y[i] * s + y0, after = side(nextX, nextY);
    if (common & here & after) {
      common &= here;
    } else if (Math.abs(px - keptX) > 0.8 || Math.abs(py - keptY) > 0.8) {
      path.lineTo(px, py);
      keptX = px;
      keptY = py;
      common = here;
    }
    px = nextX;
    py = nextY;
    here = after;
  }
  path.lineTo(px, py);
}

function inView(box) {
  const half = view.height / 2 / view.scale;
  return box.bottom >= view.y - half && box.top <= view.y + half;
}

function isSpeck(box) {
  return (box.east - box.west) * view.scale < 0.6 && (box.bottom - box.top) * view.scale < 0.6;
}

function traceAll(path, lines) {
  for (const line of lines) {
    if (!inView(line) || isSpeck(line)) continue;
    for (const shift of shiftsInView(line.west, line.east)) trace(path, line, shift);
  }
  return path;
}

// Sea, graticule and land; returns the path of the coasts, to be stroked above what lies on the land.
function drawWorld() {
  const [, top] = toScreen(0, projectY(90)), [, bottom] = toScreen(0, projectY(-90));
  ctx.fillStyle = colors.panel;
  ctx.fillRect(0, 0, view.width, view.height);
  ctx.fillStyle = colors.sea;
  ctx.fillRect(0, top, view.width, bottom - top);
  drawGraticule(Math.max(0, top), Math.min(view.height, bottom));
  ctx.fillStyle = colors.land;
  ctx.fill(traceAll(new Path2D(), polarLand));
  const coast = traceAll(new Path2D(), islands);
  ctx.fill(coast, "evenodd");
  return traceAll(coast, polarCoast);
}

function strokeWorld(coast, onCells) {
  ctx.lineJoin = "round";
  ctx.lineWidth = 0.9;
  ctx.strokeStyle = onCells ? colors.text : colors.border;
  ctx.globalAlpha = onCells ? 0.25 : 1;
  ctx.stroke(traceAll(new Path2D(), outline.borders));
  ctx.strokeStyle = onCells ? colors.text : colors.coast;
  ctx.globalAlpha = onCells ? 0.6 : 1;
  ctx.stroke(coast);
  ctx.globalAlpha = 1;
}

function drawGraticule(top, bottom) {
  const step = [30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1].find((deg) => deg * view.scale < 160) || 0.1;
  if (step * view.scale > 400) return;
  const [west, topY] = fromScreen(0, top), [east, bottomY] = fromScreen(view.width, bottom);
  const north = unprojectY(topY), south = unprojectY(bottomY);
  ctx.beginPath();
  for (let i = Math.ceil(west / step); i <= Math.floor(east / step); i++) {
    const [px] = toScreen(i * step, 0);
    ctx.moveTo(px, top);
    ctx.lineTo(px, bottom);
  }
  for (let i = Math.ceil(south / step); i <= Math.floor(north / step); i++) {
    const [, py] = toScreen(0, projectY(i * step));
    ctx.moveTo(0, py);
    ctx.lineTo(view.width, py);
  }
  ctx.strokeStyle = colors.grid;
  ctx.lineWidth = 1;
  ctx.stroke();
}

function projectedCircles(point) {
  point.circles ??= Object.values(point.radii).sort((a, b) => b - a).map((km) => {
    const rings = circleRings(point.latlon, km, CIRCLE_POINTS);
    // The edge of the map, which bounds the fill of a circle around a pole, is no part of the circle's line.
    const edge = rings[rings.length - 1].slice(0, CIRCLE_POINTS + 1);
    return {km, inside: rings.map(projectLine), edge: [projectLine(edge)]};
  });
  return point.circles;
}

function drawCircles(point, strong, filled = true) {
  ctx.strokeStyle = ctx.fillStyle = colors.accent;
  ctx.lineWidth = strong ? 1.5 : 1;
  for (const {km, inside, edge} of projectedCircles(point)) {
    const wide = !strong && km > WIDE_KM;
    ctx.globalAlpha = strong ? 0.13 : 0.06;
    if (filled && !wide) ctx.fill(traceAll(new Path2D(), inside), "evenodd");
    ctx.globalAlpha = strong ? 0.9 : wide ? 0.15 : 0.35;
    ctx.stroke(traceAll(new Path2D(), edge));
  }
  ctx.globalAlpha = 1;
}

function drawErrorLines(indices, strong) {
  const path = new Path2D();
  for (const i of indices) {
    const point = points[i];
    if (!point.latlon || !point.truth) continue;
    point.way ??= projectLine(greatCircle(point.latlon, point.truth, 2 + Math.floor(missKm(point) / 200)));
    traceAll(path, [point.way]);
  }
  ctx.strokeStyle = strong ? colors.text : colors.quiet;
  ctx.globalAlpha = strong ? 0.9 : indices.length > 500 ? 0.15 : 0.5;
  ctx.lineWidth = strong ? 1.6 : 1;
  ctx.stroke(path);
  ctx.globalAlpha = 1;
}

// Calls paint(px, py, index) for every point that has this position and is on the screen.
function eachOnScreen(position, paint) {
  points.forEach((point, i) => {
    const at = point[position];
    if (!at) return;
    for (const shift of shiftsInView(at[1], at[1])) {
      const [px, py] = toScreen(at[1] + shift, projectY(at[0]));
      if (py > -20 && py < view.height + 20) paint(px, py, i);
    }
  });
}

function diamond(px, py, r) {
  ctx.beginPath();
  ctx.moveTo(px, py - r);
  ctx.lineTo(px + r, py);
  ctx.lineTo(px, py + r);
  ctx.lineTo(px - r, py);
  ctx.closePath();
}

function drawPoints(position, color) {
  const spots = [];
  eachOnScreen(position, (px, py, i) => spots.push([px, py, i]));
  ctx.fillStyle = color;
  if (spots.length > MANY_POINTS) {
    const size = spots.length > 8000 ? 3 : 4;
    ctx.globalAlpha = 0.75;
    for (const [px, py] of spots) ctx.fillRect(px - size / 2, py - size / 2, size, size);
    ctx.globalAlpha = 1;
  } else {
    const r = (spots.length > 300 ? 3.5 : 5) - (position === "truth" ? 0.5 : 0);
    ctx.strokeStyle = colors.halo;
    ctx.lineWidth = 1.5;
    for (const [px, py] of spots) drawMark(position, px, py, r);
  }
  for (const [px, py, i] of spots) {
    if (i !== chosen && i !== hovered) continue;
    ctx.strokeStyle = colors.text;
    ctx.lineWidth = 2;
    drawMark(position, px, py, 7);
  }
}

function drawMark(position, px, py, r) {
  if (position === "truth") {
    diamond(px, py, r + 1);
  } else {
    ctx.beginPath();
    ctx.arc(px, py, r, 0, 2 * Math.PI);
  }
  ctx.fill();
  ctx.stroke();
}

function drawCandidates(point) {
  ctx.fillStyle = ctx.strokeStyle = colors.accent;
  for (const [lat, lon, probability] of point.candidates) {
    for (const shift of shiftsInView(lon, lon)) {
      const [px, py] = toScreen(lon + shift, projectY(lat));
      ctx.beginPath();
      ctx.arc(px, py, 3 + 7 * Math.sqrt(probability), 0, 2 * Math.PI);
      ctx.globalAlpha = 0.35;
      ctx.fill();
      ctx.globalAlpha = 0.9;
      ctx.lineWidth = 1;
      ctx.stroke();
    }
  }
  ctx.globalAlpha = 1;
}

// ---- quadtree

const cellLayer = cells && (() => {
  const boxes = cells.bounds.map(([south, west, north, east]) => ({
    west, east: east < west ? east + 360 : east, top: projectY(north), bottom: projectY(south),
  }));
  const around = boxes.reduce((a, b) => ({
    west: Math.min(a.west, b.west), east: Math.max(a.east, b.east),
    top: Math.min(a.top, b.top), bottom: Math.max(a.bottom, b.bottom),
  }));
  const most = cells.counts ? cells.counts.reduce((a, b) => Math.max(a, b), 1) : 1;
  const depths = cells.paths.map((path) => path.length);
  const shallow = depths.reduce((a, b) => Math.min(a, b)), deep = depths.reduce((a, b) => Math.max(a, b));
  return {boxes, around, most, depths, shallow, deep};
})();

function cellShade(i) {
  const {most, depths, shallow, deep} = cellLayer;
  if (cellColoring === "points") return Math.log(Math.max(1, cells.counts[i])) / Math.log(Math.max(2, most));
  return deep > shallow ? (depths[i] - shallow) / (deep - shallow) : 0.5;
}

function drawCells(filled) {
  const {boxes} = cellLayer;
  const shades = 24, fills = Array.from({length: shades}, () => new Path2D()), edges = new Path2D();
  boxes.forEach((box, i) => {
    if (!inView(box)) return;
    const shade = filled ? Math.min(shades - 1, Math.floor(cellShade(i) * shades)) : 0;
    for (const shift of shiftsInView(box.west, box.east)) {
      const [left, top] = toScreen(box.west + shift, box.top), [right, bottom] = toScreen(box.east + shift, box.bottom);
      const width = right - left, height = bottom - top;
      if (filled) fills[shade].rect(left, top, Math.max(width, 0.7), Math.max(height, 0.7));
      if (width > 2.5 && height > 2.5) edges.rect(left, top, width, height);
    }
  });
  if (filled) {
    fills.forEach((path, k) => {
      ctx.fillStyle = rampColor((k + 0.5) / shades, 0.72);
      ctx.fill(path);
    });
  }
  ctx.strokeStyle = filled ? colors.halo : colors.quiet;
  ctx.globalAlpha = filled ? 0.35 : 0.45;
  ctx.lineWidth = 0.7;
  ctx.stroke(edges);
  ctx.globalAlpha = 1;
}

function drawHoveredCell() {
  const box = cellLayer.boxes[hoveredCell];
  if (!box) return;
  ctx.strokeStyle = colors.text;
  ctx.lineWidth = 2;
  for (const shift of shiftsInView(box.west, box.east)) {
    const [left, top] = toScreen(box.west + shift, box.top), [right, bottom] = toScreen(box.east + shift, box.bottom);
    ctx.strokeRect(left, top, right - left, bottom - top);
  }
  const [lat, lon] = cells.centers[hoveredCell];
  for (const shift of shiftsInView(lon, lon)) {
    const [px, py] = toScreen(lon + shift, projectY(lat));
    ctx.fillStyle = colors.text;
    ctx.beginPath();
    ctx.arc(px, py, 3.5, 0, 2 * Math.PI);
    ctx.fill();
  }
}

function cellAt(px, py) {
  const [x, y] = fromScreen(px, py);
  return cellLayer.boxes.findIndex((box) => {
    const east = box.west + (((x - box.west) % 360) + 360) % 360;  // the copy of x at or right of the west side
    return east < box.east && y > box.top && y <= box.bottom;
  });
}

// ---- heat: Gaussian bells on the ground add up; the colour is the share of the highest sum

const SPOT_PX = 10;  // standard deviation of the heatmap's spots, on the screen
const LEAST_BELL_PX = 6;  // of a posterior's bells: they have their size on the ground, and are seen from afar, too
const BELL_STEPS = 256, BELL_REACH = 8;  // exp(-x) is looked up, so many steps to 1, and is nothing from 8 on
const bellHeights = Float64Array.from({length: BELL_STEPS * BELL_REACH}, (_, k) => Math.exp(-(k + 0.5) / BELL_STEPS));
const heatCanvas = document.createElement("canvas");
const heatShades = new Uint8ClampedArray(Array.from({length: 256}, (_, k) => {
  const t = k / 255;
  return [...rampAt(HEAT, t), 255 * Math.min(0.85, Math.max(0, 1.6 * (t - 0.08)))];  // faint edges fade away
}).flat());

// How many degrees of latitude are one pixel; from west to east a pixel is never more of the ground than that.
function degreesPerPx(lat) {
  return Math.cos(0.8 * lat * RAD) / view.scale;  // Miller's projection stretches by 1 / cos(0.8 lat)
}

// Bells are [lat, lon, height at the centre, standard deviation in degrees of a great circle].
function heatmapBells() {
  return data.heatmap.map(([lat, lon, weight]) => [lat, lon, weight, SPOT_PX * degreesPerPx(lat)]);
}

function posteriorBells(point) {
  return point.posterior.map(([lat, lon, weight, km]) => {
    const sigma = Math.max(km / EARTH_MEAN_RADIUS_KM / RAD, LEAST_BELL_PX * degreesPerPx(lat));
    return [lat, lon, weight / sigma ** 2, sigma];  // the height is a density on the ground
  });
}

function heightAt(bells, lat, lon) {
  return bells.reduce((sum, [bellLat, bellLon, height, sigma]) => {
    const angle = haversineKm([lat, lon], [bellLat, bellLon]) / EARTH_MEAN_RADIUS_KM;
    return sum + height * Math.exp(-2 * (Math.sin(angle / 2) / (sigma * RAD)) ** 2);
  }, 0);
}

// Values over the screen, px pixels to each, with the places of their middles in radians.
function heatGrid(px) {
  const width = Math.ceil(view.width / px), height = Math.ceil(view.height / px);
  const lats = Float64Array.from({length: height}, (_, j) => RAD * unprojectY(fromScreen(0, (j + 0.5) * px)[1]));
  const lons = Float64Array.from({length: width}, (_, i) => RAD * fromScreen((i + 0.5) * px, 0)[0]);
  return {px, width, height, lats, lons, cosLats: lats.map(Math.cos), values: new Float64Array(width * height)};
}

// Adds height * exp((cos(distance) - 1) / sigma^2) to a grid: on the sphere a Gaussian of any width, also around a pole.
function addBell([lat, lon, height, sigma], {px, width, height: numRows, lats, lons, cosLats, values}) {
  const steps = (2 * BELL_STEPS) / (sigma * RAD) ** 2, end = bellHeights.length;
  const reach = (2 * Math.asin(Math.min(1, sigma * RAD * Math.sqrt(BELL_REACH / 2)))) / RAD;
  const holdsPole = Math.abs(lat) + reach > 89.9;
  const beside = holdsPole ? 180 : Math.asin(Math.sin(reach * RAD) / Math.cos(lat * RAD)) / RAD;
  const cell = (at) => Math.ceil(at / px - 0.5);  // the first one whose middle is not before
  const [, top] = toScreen(0, projectY(Math.min(90, lat + reach)));
  const [, bottom] = toScreen(0, projectY(Math.max(-90, lat - reach)));
  const first = Math.max(0, cell(top)), last = Math.min(numRows, cell(bottom));
  for (const shift of shiftsInView(lon - beside, lon + beside)) {
    const [left] = toScreen(lon + shift - beside, 0), [right] = toScreen(lon + shift + beside, 0);
    const from = Math.max(0, cell(left)), to = Math.min(width, cell(right));
    const across = lons.slice(from, Math.max(from, to));
    for (let i = 0; i < across.length; i++) across[i] = Math.sin((across[i] - lon * RAD) / 2) ** 2;
    for (let j = first; j < last; j++) {
      const up = steps * Math.sin((lats[j] - lat * RAD) / 2) ** 2, turn = steps * cosLats[j] * Math.cos(lat * RAD);
      for (let i = 0, at = j * width + from; i < across.length; i++, at++) {
        const k = up + turn * across[i];
        if (k < end) values[at] += height * bellHeights[k | 0];
      }
    }
  }
}

// `highest` is the sum that has the last colour, if the screen shows none that is higher. The smaller the power, the
// more is seen of what is much lower.
function drawHeat(bells, power, highest = 0) {
  const narrowest = bells.reduce((least, [lat, , , sigma]) => Math.min(least, sigma / degreesPerPx(lat)), 24);
  const grid = heatGrid(narrowest / 3);  // as coarse as the narrowest bell admits
  for (const bell of bells) addBell(bell, grid);
  const {px, width, height, values} = grid, most = values.reduce((a, b) => Math.max(a, b), highest);
  heatCanvas.width = width;
  heatCanvas.height = height;
  const pen = heatCanvas.getContext("2d"), image = pen.createImageData(width, height);
  for (let k = 0; k < values.length; k++) {
    if (!values[k]) continue;
    const shade = 4 * Math.floor(255 * (values[k] / most) ** power);
    for (let c = 0; c < 4; c++) image.data[4 * k + c] = heatShades[shade + c];
  }
  pen.putImageData(image, 0, 0);
  ctx.drawImage(heatCanvas, 0, 0, px * width, px * height);
}

function drawPosterior(point) {
  const bells = posteriorBells(point);
  const highest = Math.max(...bells.map(([lat, lon]) => heightAt(bells, lat, lon)));  // also when it is out of sight
  drawHeat(bells, 1 / 3, highest);
}

function draw() {
  cancelAnimationFrame(pending);
  pending = 0;
  const ratio = window.devicePixelRatio || 1;
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  const coast = drawWorld();
  if (cells && layers.cells) drawCells(!points.length);
  strokeWorld(coast, cells && layers.cells && !points.length);
  const located = points[chosen] && points[chosen].latlon ? points[chosen] : null;
  if (data.heatmap && layers.heatmap) drawHeat(heatmapBells(), 1 / 2);
  const withHeat = located && located.posterior && layers.posterior;
  if (withHeat) drawPosterior(located);
  if (layers.circles && points.length <= MANY_CIRCLES) {
    points.forEach((point, i) => point.latlon && i !== chosen && drawCircles(point, false));
  }
  if (layers.truth) drawErrorLines([...points.keys()], false);
  if (located) {
    drawCircles(located, true, !withHeat);  // a fill would tint the heat
    drawErrorLines([chosen], true);
    drawCandidates(located);
  }
  if (layers.truth) drawPoints("truth", colors.truth);
  drawPoints("latlon", colors.accent);
  if (hoveredCell >= 0 && layers.cells) drawHoveredCell();
  drawScale();
}

function drawScale() {
  const kmPerPx = (RAD * EARTH_MEAN_RADIUS_KM * Math.cos(unprojectY(view.y) * RAD)) / view.scale;
  const most = 120 * kmPerPx, ten = 10 ** Math.floor(Math.log10(most));
  const km = [5, 2, 1].map((k) => k * ten).find((k) => k <= most);
  $("scale-bar").style.width = `${km / kmPerPx}px`;
  $("scale-text").textContent = km < 1 ? `${km * 1000} m` : `${km.toLocaleString("en")} km`;
}

// ---- the list: rows exist only for what is scrolled into sight

function listOrder() {
  const wanted = $("search").value.trim().toLowerCase();
  const found = [...points.keys()].filter((i) => {
    const {name, place} = points[i];
    return !wanted || name.toLowerCase().includes(wanted) || (place || "").toLowerCase().includes(wanted);
  });
  const keys = {
    name: (p) => p.name,
    surest: (p) => -(p.probability ?? -1),
    radius: (p) => p.radii[90] ?? Infinity,
    miss: (p) => -(missKm(p) ?? -1),
    failed: (p) => (p.error ? 0 : 1),
  };
  const key = keys[$("sort").value];
  if (key) {
    const values = points.map(key);
    found.sort((a, b) => (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : a - b));
  }
  order = found;
  $("rows").style.height = `${order.length * ROW_PX}px`;
  drawRows();
}

function picture(point, className) {
  if (!point.thumbnail) return element("span", className, point.error ? "!" : "\u25cb");
  const image = element("img", className);
  image.alt = "";
  image.src = `data:image/jpeg;base64,${point.thumbnail}`;
  return image;
}

function drawRows() {
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - 2);
  const last = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + 2);
  $("rows").replaceChildren(...order.slice(first, last).map((i, k) => {
    const point = points[i], miss = missKm(point);
    const row = element("div", i === chosen ? "row chosen" : "row");
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(i === chosen));
    row.style.top = `${(first + k) * ROW_PX}px`;
    const text = element("div", "text");
    text.append(element("div", "name", point.name));
    if (point.error) {
      text.append(element("div", "quiet miss", point.error));
    } else {
      text.append(element("div", "quiet", point.place || latLonText(point.latlon, 2)));
      const facts = [];
      if (miss !== undefined) facts.push(`${kmText(miss)} off`);
      if (point.radii[90] !== undefined) facts.push(`90 % within ${kmText(point.radii[90])}`);
      if (point.probability !== undefined && miss === undefined) facts.push(percentText(point.probability));
      text.append(element("div", "quiet", facts.join(" \u00b7 ")));
    }
    row.append(picture(point, "picture"), text);
    row.addEventListener("click", () => choose(i, true));
    row.addEventListener("pointerenter", () => hover(i));
    row.addEventListener("pointerleave", () => hover(-1));
    return row;
  }));
  if (points.length && !order.length) $("rows").append(element("div", "row quiet", "No image matches."));
}

function hover(i) {
  if (hovered !== i) {
    hovered = i;
    redraw();
  }
}

function choose(i, fly) {
  chosen = i;
  showDetails();
  const at = order.indexOf(i), list = $("list");
  if (at >= 0) {
    if (at * ROW_PX < list.scrollTop) list.scrollTop = at * ROW_PX;
    if ((at + 1) * ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW_PX - list.clientHeight;
  }
  drawRows();
  redraw();
  if (fly && i >= 0 && points[i].latlon) {
    const [x, y, fitting] = frameOf(surroundings(points[i]));
    const scale = Math.min(fitting * 0.7, 4000);
    const beside = view.width > 720 ? $("details").offsetWidth / 2 : 0;  // the details hide the right of the map
    flyTo(x + beside / scale, y, scale);
  }
}

// ---- details

function showDetails() {
  const box = $("details"), point = points[chosen];
  box.hidden = !point;
  if (!point) return;
  const close = element("button", "close", "\u00d7");
  close.setAttribute("aria-label", "Close");
  close.addEventListener("click", () => choose(-1));
  box.replaceChildren(close);
  if (point.thumbnail) box.append(picture(point, ""));
  box.append(element("h2", "", point.name));
  if (point.error) {
    box.append(element("div", "miss", point.error));
    return;
  }
  if (point.place) box.append(element("div", "quiet", point.place));
  const facts = element("dl");
  const fact = (name, value) => facts.append(element("dt", "", name), element("dd", "", value));
  fact("Position", `${point.latlon[0].toFixed(5)}, ${wrapLon(point.latlon[1]).toFixed(5)}`);
  if (point.probability !== undefined) fact("Probability", percentText(point.probability));
  for (const percent of Object.keys(point.radii)) fact(`${percent} % within`, kmText(point.radii[percent]));
  if (point.truth) {
    fact("Truth", `${point.truth[0].toFixed(5)}, ${wrapLon(point.truth[1]).toFixed(5)}`);
    fact("Error", kmText(missKm(point)));
  }
  box.append(facts);
  if (point.candidates.length) box.append(element("h3", "", "Top candidates"));
  for (const [lat, lon, probability] of point.candidates) {
    const candidate = element("button", "candidate");
    candidate.append(element("span", "", latLonText([lat, lon], 2)), element("span", "", percentText(probability)));
    candidate.addEventListener("click", () => flyTo(lon, projectY(lat), Math.max(view.scale, 60)));
    box.append(candidate);
  }
}

// ---- hands on the map

const fingers = new Map();
let moved = false;

function position(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function pointNear(px, py) {
  let nearest = -1, best = 14;
  eachOnScreen("latlon", (x, y, i) => {
    const distance = Math.hypot(x - px, y - py);
    if (distance < best) [best, nearest] = [distance, i];
  });
  return nearest;
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  cancelAnimationFrame(flight);
  fingers.set(event.pointerId, position(event));
  if (fingers.size === 1) moved = false;
});

canvas.addEventListener("pointermove", (event) => {
  const here = position(event), before = fingers.get(event.pointerId);
  if (!before) {
    look(here);
    return;
  }
  if (fingers.size === 1 && !moved && Math.hypot(here[0] - before[0], here[1] - before[1]) < 4) return;
  moved = true;
  canvas.classList.add("dragging");
  $("tip").hidden = true;
  const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
  view.x -= (here[0] - before[0]) / view.scale / fingers.size;
  view.y -= (here[1] - before[1]) / view.scale / fingers.size;
  if (others.length) {
    const [x, y] = others[0];
    const spread = Math.hypot(here[0] - x, here[1] - y) / Math.max(1, Math.hypot(before[0] - x, before[1] - y));
    zoomAt((here[0] + x) / 2, (here[1] + y) / 2, spread);
  }
  fingers.set(event.pointerId, here);
  settle();
});

function release(event) {
  if (!fingers.delete(event.pointerId) || fingers.size) return;
  canvas.classList.remove("dragging");
  if (!moved && event.type === "pointerup") choose(pointNear(...position(event)), false);
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => {
  $("tip").hidden = true;
  hoveredCell = -1;
  hover(-1);
  redraw();
});
canvas.addEventListener("dblclick", (event) => zoomAt(...position(event), 2));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  cancelAnimationFrame(flight);
  const px = event.deltaMode ? event.deltaY * 30 : event.deltaY;
  zoomAt(...position(event), Math.exp(-px * (event.ctrlKey ? 0.01 : 0.0016)));
}, {passive: false});

// What the mouse is over: an image, else a cell.
function look([px, py]) {
  const i = pointNear(px, py);
  const cell = i < 0 && cells && layers.cells ? cellAt(px, py) : -1;
  hover(i);
  canvas.classList.toggle("pointing", i >= 0);
  if (cell !== hoveredCell) {
    hoveredCell = cell;
    redraw();
  }
  const tip = $("tip");
  tip.hidden = i < 0 && cell < 0;
  if (i >= 0) {
    tip.textContent = [points[i].name, points[i].place].filter(Boolean).join("\n");
  } else if (cell >= 0) {
    const count = cells.counts ? `\n${countText(cells.counts[cell], "point")}` : "";
    const path = cells.paths[cell] || "root";
    tip.textContent = `cell ${cell}, path ${path}\ndepth ${cellLayer.depths[cell]}${count}\n`
      + `centre ${latLonText(cells.centers[cell], 3)}`;
  }
  const left = Math.min(px + 14, view.width - tip.offsetWidth - 6);
  const top = py + 18 + tip.offsetHeight > view.height ? py - tip.offsetHeight - 10 : py + 18;
  tip.style.transform = `translate(${Math.max(6, left)}px, ${top}px)`;
}

addEventListener("keydown", (event) => {
  if (event.target.closest("input, select")) return;
  const at = order.indexOf(chosen);
  const keys = {
    ArrowDown: () => order.length && choose(order[Math.min(order.length - 1, at + 1)], true),
    ArrowUp: () => order.length && choose(order[Math.max(0, at - 1)], true),
    Escape: () => choose(-1),
    "+": () => zoomAt(view.width / 2, view.height / 2, 1.6),
    "-": () => zoomAt(view.width / 2, view.height / 2, 1 / 1.6),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

// ---- what stands around the map

function addLayer(name, label, shown) {
  layers[name] = shown;
  const row = element("label"), box = element("input");
  box.type = "checkbox";
  box.checked = shown;
  box.addEventListener("change", () => {
    layers[name] = box.checked;
    hoveredCell = -1;
    redraw();
  });
  row.append(box, label);
  $("layers").append(row);
}

function addKey(kind, label) {
  const row = element("div");
  row.append(element("span", `key ${kind}`), label);
  $("legend").append(row);
}

function median(values) {
  const sorted = values.toSorted ? values.toSorted((a, b) => a - b) : [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function summary() {
  if (!points.length) {
    if (!cells) return "";
    const {shallow, deep} = cellLayer;
    const total = cells.counts && cells.counts.reduce((a, b) => a + b, 0);
    const depth = shallow === deep ? `depth ${deep}` : `depth ${shallow} to ${deep}`;
    return [countText(cells.paths.length, "cell"), depth].concat(total ? countText(total, "point") : [])
      .join(" \u00b7 ");
  }
  const parts = [countText(points.length, "image")];
  const failed = points.filter((p) => p.error).length;
  if (failed) parts.push(`${failed} could not be localised`);
  const known = points.filter((p) => p.latlon && p.truth), misses = known.map(missKm);
  if (misses.length) parts.push(`median error ${kmText(median(misses))}`);
  const bounded = known.filter((p) => p.radii[90] !== undefined);
  if (bounded.length > 1) {
    const inside = bounded.filter((p) => missKm(p) <= p.radii[90]).length;
    parts.push(`${percentText(inside / bounded.length)} of truths inside the 90 % circle`);
  }
  return parts.join(" \u00b7 ");
}

function describeCells() {
  const box = $("cells"), {depths, shallow, deep, most} = cellLayer;
  const redrawLegend = () => {
    const ramp = element("canvas", "ramp"), ends = element("div", "ends");
    ramp.width = 190;
    ramp.height = 10;
    for (let x = 0; x < 190; x++) {
      const pen = ramp.getContext("2d");
      pen.fillStyle = rampColor(x / 189);
      pen.fillRect(x, 0, 1, 10);
    }
    const byPoints = cellColoring === "points";
    ends.append(
      element("span", "", byPoints ? "1" : String(shallow)),
      element("span", "", byPoints ? "points in the cell (log)" : "depth of the cell"),
      element("span", "", byPoints ? most.toLocaleString("en") : String(deep)),
    );
    $("legend").replaceChildren(ramp, ends);
  };
  if (cells.counts) {
    const choice = element("select");
    choice.setAttribute("aria-label", "Colour of the cells");
    for (const [value, label] of [["depth", "Colour by depth"], ["points", "Colour by number of points"]]) {
      const option = element("option", "", label);
      option.value = value;
      choice.append(option);
    }
    choice.addEventListener("change", () => {
      cellColoring = choice.value;
      redrawLegend();
      redraw();
    });
    box.append(choice);
  }
  box.append(element("h2", "", "Cells at each depth"));
  const numAt = new Array(deep + 1).fill(0);
  depths.forEach((depth) => numAt[depth]++);
  const highest = Math.max(...numAt);
  for (let depth = shallow; depth <= deep; depth++) {
    const row = element("div", "bar"), bar = element("i");
    bar.style.width = `${(100 * numAt[depth]) / highest}%`;
    bar.style.background = rampColor(deep > shallow ? (depth - shallow) / (deep - shallow) : 0.5);
    row.append(element("span", "", String(depth)), bar, element("b", "", numAt[depth].toLocaleString("en")));
    box.append(row);
  }
  box.hidden = false;
  redrawLegend();
}

function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["sea", "land", "coast", "border", "grid", "text", "quiet", "accent", "truth", "halo", "panel"]) {
    colors[name] = style.getPropertyValue(`--${name}`).trim();
  }
  redraw();
}

function resize() {
  const box = $("map").getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  Object.assign(view, {width: box.width, height: box.height});
  canvas.width = Math.round(box.width * ratio);
  canvas.height = Math.round(box.height * ratio);
  settle();
  draw();  // at once: a canvas that changes its size is empty
  drawRows();
}

function start() {
  $("title").textContent = data.title;
  $("summary").textContent = summary();
  $("note").textContent = data.note;
  if (points.length) {
    const hasTruth = points.some((p) => p.truth);
    if (points.some((p) => p.latlon && Object.keys(p.radii).length)) {
      if (points.length <= MANY_CIRCLES) addLayer("circles", "Confidence circles", true);
      addKey("circle", `confidence, ${Object.keys(points.find((p) => p.latlon && Object.keys(p.radii).length).radii)
        .map((percent) => `${percent} %`).join(" and ")}`);
    }
    if (points.some((p) => p.posterior)) {
      addLayer("posterior", "Posterior", true);
      addKey("heat", "posterior of the chosen image");
    }
    addKey("predicted", "predicted");
    if (hasTruth) {
      addLayer("truth", "Truth and error", true);
      addKey("truth", "truth");
      addKey("line", "error");
    }
    const sorts = [["", "As given"], ["name", "Name"], ["surest", "Most probable"], ["radius", "Smallest radius"]];
    if (hasTruth) sorts.push(["miss", "Largest error"]);
    if (points.some((p) => p.error)) sorts.push(["failed", "Failed first"]);
    for (const [value, label] of sorts) {
      const option = element("option", "", label);
      option.value = value;
      $("sort").append(option);
    }
    $("list").hidden = false;
    $("tools").hidden = points.length < 2;
    $("search").addEventListener("input", listOrder);
    $("sort").addEventListener("change", listOrder);
    $("list").addEventListener("scroll", drawRows);
  }
  if (data.heatmap) addLayer("heatmap", "Heatmap", true);
  if (cells) {
    addLayer("cells", "Quadtree cells", true);
    if (!points.length) describeCells();
  }
  const middle = (factor) => () => zoomAt(view.width / 2, view.height / 2, factor);
  $("zoom-in").addEventListener("click", middle(1.6));
  $("zoom-out").addEventListener("click", middle(1 / 1.6));
  $("home").addEventListener("click", () => flyTo(...home()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColors);
  readColors();
  resize();
  listOrder();
  const [x, y, scale] = home();
  Object.assign(view, {x, y, scale});
  settle();
  if (points.length === 1) {
    choose(0, false);
    if (view.width <= 720) $("details").hidden = true;  // they would hide the map; a tap on the row shows them
  }
  new ResizeObserver(resize).observe($("map"));
}

start();
