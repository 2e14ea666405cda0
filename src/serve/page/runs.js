// Run folders while they train: curves, newest samples, speed.
const SVG = 'http://www.w3.org/2000/svg';
const [width, height] = [600, 190];

function headers() {
  const key = sessionStorage.getItem('engine.key');
  return key ? { authorization: `Bearer ${key}` } : {};
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function curve(run) {
  const svg = drawn('svg', { viewBox: `0 0 ${width} ${height}`, class: 'curve', role: 'img' });
  const all = [...run.loss, ...run.validation].filter(([, loss]) => loss > 0);
  if (all.length < 2) return svg;
  const [steps, losses] = [all.map(([step]) => step), all.map(([, loss]) => Math.log10(loss))];
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const x = step => 50 + (width - 60) * (step - first) / Math.max(last - first, 1);
  const y = loss => 10 + (height - 35) * (high - Math.log10(loss)) / Math.max(high - low, 1e-9);
  svg.setAttribute('aria-label', `Loss from ${(10 ** high).toPrecision(3)} to ${(10 ** low).toPrecision(3)}`);
  for (const [points, colour] of [[run.loss, 'currentColor'], [run.validation, '#d1495b']]) {
    const path = points.filter(([, loss]) => loss > 0).map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(' ');
    svg.append(drawn('polyline', { points: path, fill: 'none', stroke: colour, 'stroke-width': 1.6 }));
  }
  const words = [[2, 16, (10 ** high).toPrecision(3)], [2, height - 25, (10 ** low).toPrecision(3)], [50, height - 6, `step ${first}`], [width - 90, height - 6, `step ${last}`]];
  for (const [left, top, text] of words) {
    const label = drawn('text', { x: left, y: top, 'font-size': 12, fill: 'currentColor' });
    label.textContent = text;
    svg.append(label);
  }
  return svg;
}

async function card(run) {
  const section = document.createElement('section');
  section.className = 'card';
  const title = document.createElement('h2');
  title.textContent = run.name;
  const words = document.createElement('p');
  const last = run.last ?? {};
  const number = (value, digits) => Number.isFinite(value) ? value.toPrecision(digits) : '?';
  const quiet = run.quiet_seconds > 120 ? `, nothing written for ${Math.round(run.quiet_seconds / 60)} minutes` : '';
  const left = Number.isFinite(run.seconds_left) ? `, ${Math.ceil(run.seconds_left / 60)} minutes left` : '';
  words.textContent = `step ${last.step ?? '?'}, epoch ${number(last.epoch, 3)}, loss ${number(last.loss, 4)}, ${number(last.images_per_second, 3)} images a second${left}${quiet}`;
  section.append(title, words, curve(run));
  if (run.samples) {
    const response = await fetch(run.samples, { headers: headers() });
    if (response.ok) {
      const picture = document.createElement('img');
      picture.className = 'sheet';
      picture.alt = `The newest samples of ${run.name}`;
      picture.src = URL.createObjectURL(await response.blob());
      section.append(picture);
    }
  }
  return section;
}

async function look() {
  const response = await fetch('/v1/runs', { headers: headers() });
  const told = await response.json();
  const status = document.getElementById('status');
  if (!response.ok) {
    status.textContent = told.error.message;
    return;
  }
  status.textContent = told.length ? `${told.length} runs` : 'No run folder has been found yet.';
  for (const old of document.querySelectorAll('.sheet')) URL.revokeObjectURL(old.src);
  document.getElementById('runs').replaceChildren(...await Promise.all(told.map(card)));
}

await look();
setInterval(look, 5000);
