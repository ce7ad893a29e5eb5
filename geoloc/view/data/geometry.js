"use strict";
// Geometry of the map page: projection, great circles, the outline. Pure functions; knows nothing about the page.
// Points are [lat, lon] in degrees; lines have longitudes that run on past 180 instead of jumping.

const EARTH_MEAN_RADIUS_KM = 6371.0088;
const RAD = Math.PI / 180;

// Miller's cylindrical projection: close to Mercator up to 45 degrees, with the poles on the map. x is the longitude;
// y is in the same unit and grows to the south, as a screen does.
function projectY(lat) {
  return (-1.25 / RAD) * Math.log(Math.tan(Math.PI / 4 + 0.4 * lat * RAD));
}

function unprojectY(y) {
  return (2.5 / RAD) * (Math.atan(Math.exp(-0.8 * y * RAD)) - Math.PI / 4);
}

function wrapLon(lon) {
  return ((((lon + 180) % 360) + 360) % 360) - 180;
}

function haversineKm(a, b) {
  const dLat = ((b[0] - a[0]) * RAD) / 2, dLon = ((b[1] - a[1]) * RAD) / 2;
  const h = Math.sin(dLat) ** 2 + Math.cos(a[0] * RAD) * Math.cos(b[0] * RAD) * Math.sin(dLon) ** 2;
  return 2 * EARTH_MEAN_RADIUS_KM * Math.asin(Math.sqrt(Math.min(1, h)));
}

function toUnit([lat, lon]) {
  const c = Math.cos(lat * RAD);
  return [c * Math.cos(lon * RAD), c * Math.sin(lon * RAD), Math.sin(lat * RAD)];
}

function toLatLon([x, y, z]) {
  return [Math.atan2(z, Math.hypot(x, y)) / RAD, Math.atan2(y, x) / RAD];
}

function unroll(line) {
  for (let i = 1; i < line.length; i++) {
    line[i][1] -= 360 * Math.round((line[i][1] - line[i - 1][1]) / 360);
  }
  return line;
}

// The rings that bound all points within radiusKm, to be filled by the even-odd rule. A circle that holds a pole
// reaches to the edge of the map there; one that holds both is the whole map with a hole around the antipode.
function circleRings(center, radiusKm, numPoints) {
  const angle = Math.min(radiusKm / EARTH_MEAN_RADIUS_KM, Math.PI);
  const lat = center[0] * RAD, lon = center[1] * RAD;
  const up = toUnit(center);
  const north = [-Math.sin(lat) * Math.cos(lon), -Math.sin(lat) * Math.sin(lon), Math.cos(lat)];
  const east = [-Math.sin(lon), Math.cos(lon), 0];
  const ring = [];
  for (let i = 0; i <= numPoints; i++) {
    const bearing = (2 * Math.PI * (i % numPoints)) / numPoints;
    const n = Math.cos(bearing) * Math.sin(angle), e = Math.sin(bearing) * Math.sin(angle);
    ring.push(toLatLon([0, 1, 2].map((k) => Math.cos(angle) * up[k] + n * north[k] + e * east[k])));
  }
  unroll(ring);
  const first = ring[0], last = ring[numPoints];
  const holdsNorth = angle > Math.PI / 2 - lat, holdsSouth = angle > Math.PI / 2 + lat;
  if (Math.abs(last[1] - first[1]) > 180) {
    const pole = holdsNorth ? 90 : -90;
    ring.push([pole, last[1]], [pole, first[1]]);
    return [ring];
  }
  if (holdsNorth && holdsSouth) {
    const west = (Math.min(...ring.map((p) => p[1])) + Math.max(...ring.map((p) => p[1]))) / 2 - 180;
    return [[[90, west], [90, west + 360], [-90, west + 360], [-90, west]], ring];
  }
  return [ring];
}

// Points along the shorter great circle, both ends included.
function greatCircle(a, b, numPoints) {
  const u = toUnit(a), v = toUnit(b);
  const angle = haversineKm(a, b) / EARTH_MEAN_RADIUS_KM;
  if (Math.sin(angle) < 1e-7) return unroll([a.slice(), b.slice()]);  // one point, or antipodes without one way
  const line = [];
  for (let i = 0; i < numPoints; i++) {
    const t = i / (numPoints - 1);
    const s = Math.sin((1 - t) * angle), r = Math.sin(t * angle);
    line.push(toLatLon([0, 1, 2].map((k) => s * u[k] + r * v[k])));
  }
  return unroll(line);
}

// A line ready to be drawn: projected columns and the box around them.
function projectLine(line) {
  const x = Float64Array.from(line, (p) => p[1]), y = Float64Array.from(line, (p) => projectY(p[0]));
  let west = Infinity, east = -Infinity, top = Infinity, bottom = -Infinity;
  for (let i = 0; i < x.length; i++) {
    west = Math.min(west, x[i]);
    east = Math.max(east, x[i]);
    top = Math.min(top, y[i]);
    bottom = Math.max(bottom, y[i]);
  }
  return {x, y, west, east, top, bottom};
}

// See README.md in this folder for the format of the bytes.
function decodeOutline(bytes) {
  let at = 0;
  const next = () => {
    let value = 0, shift = 0, byte;
    do {
      byte = bytes[at++];
      value |= (byte & 127) << shift;
      shift += 7;
    } while (byte > 127);
    return value;
  };
  const step = () => {
    const zigzag = next();
    return (zigzag >>> 1) ^ -(zigzag & 1);
  };
  const lines = () => Array.from({length: next()}, () => {
    let lon = 0, lat = 0;
    return projectLine(Array.from({length: next()}, () => {
      lon += step();
      lat += step();
      return [lat / 400, lon / 400];
    }));
  });
  return {land: lines(), borders: lines()};
}
