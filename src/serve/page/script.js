// The page: settings in, jobs out, images kept in the browser.
import { Given, dataUrl, image, texts } from '/pictures.js';

const $ = id => document.getElementById(id);
const RANGES = ['count', 'steps', 'guidance', 'temperature', 'strength', 'brush'];
const HISTORY = 'engine.history';
const MOST = 200;

const state = { models: [], model: null, mode: 'draw', classes: [], job: null, history: [], ends: [null, null], shown: null };
const given = new Given($('given'), $('brush'));

// ---- the server

function headers(more = {}) {
  const key = sessionStorage.getItem('engine.key');
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers) });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  if (response.status === 401) {
    $('key-label').hidden = false;
    $('key').focus();
  }
  throw new Error(told?.error?.message ?? `the server answers ${response.status}`);
}

/** Calls `event(name, data)` for each server-sent event until they end. */
async function follow(path, event) {
  const response = await ask(path);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) {
      let name = 'message', data = '';
      for (const line of text.slice(0, end).split('\n')) {
        if (line.startsWith('event:')) name = line.slice(6).trim();
        if (line.startsWith('data:')) data += line.slice(5).trim();
      }
      if (data) event(name, JSON.parse(data));
    }
  }
}

const say = text => { $('status').textContent = text; };

// ---- settings

function outputs() {
  for (const output of document.querySelectorAll('output')) output.value = $(output.htmlFor.value).value;
}

function settings() {
  const all = { model: state.model?.id, mode: state.mode, classes: state.classes, seed: Number($('seed').value) };
  for (const name of ['count', 'steps', 'guidance', 'temperature', 'strength']) all[name] = Number($(name).value);
  for (const name of ['sampler', 'schedule', 'course']) all[name] = $(name).value;
  return all;
}

function setRange(input, value) {
  if (value > Number(input.max)) input.max = value;
  input.value = value;
}

function restore(from) {
  if (from.model && from.model !== state.model?.id && state.models.some(model => model.id === from.model)) {
    $('model').value = from.model;
    chooseModel();
  }
  for (const name of ['count', 'steps', 'guidance', 'temperature', 'strength']) {
    if (Number.isFinite(from[name])) setRange($(name), from[name]);
  }
  for (const name of ['sampler', 'schedule', 'course']) if (from[name]) $(name).value = from[name];
  if (from.seed !== undefined) {
    $('seed').value = from.seed;
    $('roll').checked = false;
  }
  if (from.classes) state.classes = from.classes.filter(name => chipNames().includes(name));
  if (from.mode) chooseMode(from.mode);
  chips();
  outputs();
}

const chipNames = () => [...(state.model?.classes ?? []), ...(state.model?.null_label ? ['none'] : [])];

function chips() {
  const box = $('chips');
  box.replaceChildren();
  const several = state.mode === 'draw';
  const chip = (text, pressed, click) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = text;
    button.setAttribute('aria-pressed', pressed);
    button.addEventListener('click', () => {
      click();
      const at = [...box.children].indexOf(button);
      chips();
      box.children[at]?.focus();
    });
    box.append(button);
  };
  if (several) chip('all in turn', state.classes.length === 0, () => { state.classes = []; });
  for (const name of chipNames()) {
    chip(name, state.classes.includes(name), () => {
      const others = state.classes.filter(other => other !== name);
      if (!several) state.classes = [name];
      else state.classes = others.length < state.classes.length ? others : [...others, name];
    });
  }
  $('classes').hidden = chipNames().length === 0;
}

function chooseModel() {
  state.model = state.models.find(model => model.id === $('model').value) ?? state.models[0];
  if (!state.model) return;
  const { shape: [height, width], sampling, parameters, noise_levels: levels } = state.model;
  $('about').textContent = `${width}×${height}, ${(parameters / 1e6).toFixed(1)} million parameters, ${state.device}`;
  $('steps').max = Math.min(levels, state.limits.steps, 200);
  $('count').max = Math.min(state.limits.images, 32);
  $('guidance').disabled = $('course').disabled = !state.model.null_label;
  setRange($('guidance'), state.model.null_label ? sampling.guidance : 1);
  setRange($('temperature'), sampling.temperature ?? 1);
  $('sampler').value = sampling.sampler;
  $('schedule').value = sampling.schedule ?? 'uniform';
  state.classes = [];
  given.resize(width, height);
  [$('frame').width, $('frame').height] = [width, height];
  chips();
  outputs();
}

function chooseMode(mode) {
  state.mode = mode;
  for (const tab of document.querySelectorAll('[role=tab]')) {
    tab.setAttribute('aria-selected', tab.dataset.mode === mode);
    tab.tabIndex = tab.dataset.mode === mode ? 0 : -1;
  }
  for (const part of document.querySelectorAll('[data-for]')) part.hidden = !part.dataset.for.split(' ').includes(mode);
  $('count-label').firstChild.textContent = mode === 'between' ? 'Frames ' : 'Images ';
  if (mode !== 'draw') state.classes = state.classes.slice(0, 1);
  given.paints = mode === 'inpaint';
  given.show();
  chips();
}

function body() {
  const from = settings();
  const asked = {
    model: from.model, seed: from.seed, steps: from.steps, temperature: from.temperature, schedule: from.schedule,
    count: from.count,
  };
  if (state.model.null_label) Object.assign(asked, { guidance: from.guidance, guidance_schedule: from.course });
  // Frames need a deterministic sampler, which the server then chooses.
  if (from.mode !== 'between' || from.sampler !== 'ddpm') asked.sampler = from.sampler;
  if (from.mode === 'draw') {
    if (from.classes.length) asked.class = from.classes;
  } else if (from.classes.length) {
    asked.class = from.classes[0];
  }
  const { shape: [height, width] } = state.model;
  if (from.mode === 'between') {
    asked.count = Math.max(2, from.count);
    const [a, b] = state.ends;
    asked.interpolate = a && b ? { images: [a, b] } : { seeds: [Number($('seed-a').value), Number($('seed-b').value)] };
  } else if (from.mode !== 'draw') {
    if (!given.has) throw new Error('choose or drop a picture first');
    const factor = Number($('factor').value);
    if (from.mode === 'vary') asked.vary = { image: given.url(), strength: from.strength };
    if (from.mode === 'inpaint') asked.inpaint = { image: given.url(), mask: given.maskUrl(), resample: 1 };
    if (from.mode === 'upscale') asked.upscale = { image: given.url(width / factor, height / factor), factor };
  }
  return asked;
}

// ---- drawing

const another = () => { $('seed').value = crypto.getRandomValues(new Uint32Array(1))[0]; };

function slot(index, label) {
  const figure = document.createElement('figure');
  const picture = document.createElement('img');
  const caption = document.createElement('figcaption');
  picture.alt = `Image ${index + 1}, being drawn`;
  caption.textContent = label || `${index + 1}`;
  figure.append(picture, caption);
  return figure;
}

async function draw() {
  if (state.job) return;
  if (state.mode === 'draw' && $('roll').checked) another();
  $('draw').disabled = true;
  say('Asking …');
  const kept = settings();
  try {
    const response = await ask('/v1/samples', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body()),
    });
    const job = await response.json();
    state.job = job;
    $('cancel').disabled = false;
    $('live').replaceChildren(...job.classes.map((name, index) => slot(index, name)));
    await watch(job);
    await finish(job.id, kept);
  } catch (error) {
    say(`${error.message}.`);
  } finally {
    state.job = null;
    $('cancel').disabled = true;
    $('draw').disabled = false;
    $('progress').value = 0;
  }
}

function watch(job) {
  return follow(`/v1/jobs/${job.id}/events?previews=1`, (name, data) => {
    if (name === 'job') {
      $('progress').value = data.total ? data.done / data.total : 0;
      const left = data.seconds_left === undefined ? '' : `, ${data.seconds_left.toFixed(1)} s left`;
      if (data.status === 'queued') say(data.place ? `Queued: ${data.place} before it.` : 'Queued.');
      if (data.status === 'drawing') say(`Drawing: ${Math.round(100 * data.done / Math.max(data.total, 1))} %${left}.`);
    } else if (name === 'preview') {
      const picture = $('live').children[data.index]?.querySelector('img');
      if (picture) picture.src = data.image;
      $('live').dataset.previews = Number($('live').dataset.previews ?? 0) + 1;
    }
  });
}

async function finish(id, kept) {
  const job = await (await ask(`/v1/jobs/${id}`)).json();
  $('live').replaceChildren();
  if (job.status !== 'done') {
    say(job.status === 'cancelled' ? 'Cancelled.' : `Failed: ${job.error ?? job.status}.`);
    return;
  }
  const added = [];
  for (const [index, path] of job.images.entries()) {
    const url = await dataUrl(await (await ask(path)).blob());
    added.push({ url, settings: { ...kept, seed: job.seed }, label: job.classes[index] || '', number: job.first + index });
  }
  state.history.unshift(...added);
  keep();
  show();
  if (kept.mode === 'between') film(id, added);
  say(`${added.length} ${added.length === 1 ? 'image' : 'images'} in ${job.seconds.toFixed(1)} s, seed ${job.seed}.`);
}

async function film(id, frames) {
  $('film').hidden = false;
  const slider = $('between');
  slider.max = frames.length - 1;
  const pictures = await Promise.all(frames.map(frame => image(frame.url)));
  slider.oninput = () => $('frame').getContext('2d').drawImage(pictures[Number(slider.value)], 0, 0);
  slider.value = 0;
  slider.oninput();
  for (const kind of ['gif', 'apng']) {
    const file = await (await ask(`/v1/jobs/${id}/animation.${kind}?bounce=1`)).blob();
    $(kind).href = URL.createObjectURL(file);
  }
}

// ---- images that were drawn

function keep() {
  state.history.length = Math.min(state.history.length, MOST);
  for (;;) {
    try {
      localStorage.setItem(HISTORY, JSON.stringify(state.history));
      return;
    } catch {
      // The browser is out of storage: remove the oldest.
      if (!state.history.length) return;
      state.history.length = Math.floor(state.history.length / 2);
    }
  }
}

function show() {
  const buttons = state.history.map((entry, at) => {
    const button = document.createElement('button');
    button.type = 'button';
    const picture = document.createElement('img');
    picture.src = entry.url;
    picture.alt = '';
    const caption = document.createElement('span');
    caption.textContent = entry.label || `${entry.number}`;
    button.title = `seed ${entry.settings.seed}, number ${entry.number}`;
    button.setAttribute('aria-label', `${entry.label || 'Image'}, seed ${entry.settings.seed}, number ${entry.number}`);
    button.append(picture, caption);
    button.addEventListener('click', () => detail(at));
    return button;
  });
  $('results').replaceChildren(...buttons);
  $('empty').hidden = buttons.length > 0;
  $('forget').disabled = buttons.length === 0;
}

function detail(at) {
  const entry = state.history[at];
  state.shown = at;
  $('detail-title').textContent = `${entry.label || 'Image'}, seed ${entry.settings.seed}, number ${entry.number}`;
  $('detail-image').src = entry.url;
  $('detail-image').alt = entry.label || 'The image';
  const rows = Object.entries(entry.settings).filter(([name]) => !['classes', 'strength'].includes(name));
  $('detail-list').replaceChildren(...rows.flatMap(([name, value]) => {
    const [term, text] = [document.createElement('dt'), document.createElement('dd')];
    [term.textContent, text.textContent] = [name, String(value)];
    return [term, text];
  }));
  $('detail-download').href = entry.url;
  $('detail-download').download = `${entry.label || 'image'}-${entry.settings.seed}-${entry.number}.png`.replaceAll('/', '-');
  $('detail').showModal();
}

async function act(name) {
  const entry = state.history[state.shown];
  $('detail').close();
  if (!entry) return;
  if (name === 'use') {
    restore({ ...entry.settings, mode: 'draw' });
    say('Its settings are set.');
  } else if (name === 'a' || name === 'b') {
    setEnd(name === 'a' ? 0 : 1, entry.url);
    chooseMode('between');
  } else if (name === 'vary' || name === 'inpaint') {
    given.take(await image(entry.url));
    chooseMode(name);
  } else if (name === 'remove') {
    state.history.splice(state.shown, 1);
    keep();
    show();
  }
}

function setEnd(at, url) {
  state.ends[at] = url;
  const picture = $(at === 0 ? 'end-a' : 'end-b');
  if (url) picture.src = url; else picture.removeAttribute('src');
  picture.alt = `${at === 0 ? 'A' : 'B'}: ${url ? 'chosen' : 'none chosen'}`;
}

// ---- files

/** The settings in an engine PNG, null for other pictures. */
function recipe(bytes) {
  const found = texts(bytes);
  const text = found?.['engine.sampling'] ?? found?.['engine.edit'];
  if (!text) return null;
  const told = JSON.parse(text);
  const sampling = told.sampling ?? told;
  const name = found['engine.class'] ?? told.class;
  return {
    model: told.model, seed: told.seed, steps: sampling.steps ?? sampling.num_steps, sampler: sampling.sampler,
    schedule: sampling.schedule, guidance: sampling.guidance, temperature: sampling.temperature, count: told.count ?? 1,
    course: sampling.guidance_schedule === 'adaptive' ? 'adaptive' : 'constant',
    classes: name && name !== 'all' ? [name] : [], first: told.first ?? 0,
  };
}

async function take(file) {
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const from = recipe(bytes);
    if (from && state.mode === 'draw') {
      restore({ ...from, mode: 'draw' });
      say(`The settings of ${file.name} are set${from.first ? `; it is number ${from.first} of its seed` : ''}.`);
      return;
    }
    given.take(await image(await dataUrl(file)));
    if (state.mode === 'draw' || state.mode === 'between') chooseMode('vary');
    say(`${file.name} is the given picture.`);
  } catch (error) {
    say(`${error.message}.`);
  }
}

// ---- links

function link() {
  const { classes, ...rest } = settings();
  const fields = new URLSearchParams(rest);
  if (classes.length) fields.set('classes', JSON.stringify(classes));
  return `${location.origin}/#${fields}`;
}

function fromLink() {
  const fields = new URLSearchParams(location.hash.slice(1));
  if (![...fields.keys()].length) return;
  const from = Object.fromEntries(fields);
  for (const name of ['count', 'steps', 'guidance', 'temperature', 'strength', 'seed']) {
    if (name in from) from[name] = Number(from[name]);
  }
  try {
    from.classes = from.classes ? JSON.parse(from.classes) : [];
  } catch {
    from.classes = [];
  }
  if (!['draw', 'between', 'vary', 'inpaint', 'upscale'].includes(from.mode)) from.mode = 'draw';
  restore(from);
}

// ---- the beginning

async function begin() {
  try {
    const version = await (await ask('/version')).json();
    [state.device, state.limits] = [version.device, { images: version.images, steps: version.steps }];
    $('runs-link').hidden = !version.runs;
    $('key-label').hidden = !version.needs_key;
    state.models = (await (await ask('/v1/models')).json()).data;
  } catch (error) {
    say(`${error.message}.`);
    return;
  }
  $('model').replaceChildren(...state.models.map(model => new Option(model.id, model.id)));
  chooseModel();
  fromLink();
  document.body.dataset.ready = 'yes';
  say('Ready.');
}

$('controls').addEventListener('submit', event => {
  event.preventDefault();
  draw();
});
$('cancel').addEventListener('click', async () => {
  if (state.job) await ask(`/v1/jobs/${state.job.id}`, { method: 'DELETE' }).catch(error => say(`${error.message}.`));
});
$('model').addEventListener('change', chooseModel);
$('dice').addEventListener('click', another);
$('seed').addEventListener('input', () => { $('roll').checked = false; });
$('clear').addEventListener('click', () => given.clear());
$('half').addEventListener('click', () => given.half());
$('drop-a').addEventListener('click', () => setEnd(0, null));
$('drop-b').addEventListener('click', () => setEnd(1, null));
$('file').addEventListener('change', () => { if ($('file').files[0]) take($('file').files[0]); });
$('key').addEventListener('change', () => {
  sessionStorage.setItem('engine.key', $('key').value);
  begin();
});
$('share').addEventListener('click', async () => {
  const text = link();
  history.replaceState(null, '', text);
  await navigator.clipboard?.writeText(text).then(() => say('The link is copied.'), () => say('The link is in the address bar.'));
});
$('forget').addEventListener('click', () => {
  state.history = [];
  keep();
  show();
});
for (const name of RANGES) $(name).addEventListener('input', outputs);
for (const tab of document.querySelectorAll('[role=tab]')) {
  tab.addEventListener('click', () => chooseMode(tab.dataset.mode));
  tab.addEventListener('keydown', event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const tabs = [...document.querySelectorAll('[role=tab]')];
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    chooseMode(next.dataset.mode);
    next.focus();
  });
}
$('detail').addEventListener('click', event => {
  const name = event.target.dataset?.act;
  if (name) act(name);
});
document.addEventListener('keydown', event => {
  if (event.key === 'Escape' && state.job) $('cancel').click();
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) draw();
});
document.addEventListener('dragover', event => {
  event.preventDefault();
  $('drop').classList.add('over');
});
document.addEventListener('dragleave', () => $('drop').classList.remove('over'));
document.addEventListener('drop', event => {
  event.preventDefault();
  $('drop').classList.remove('over');
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
window.addEventListener('hashchange', fromLink);

try {
  state.history = JSON.parse(localStorage.getItem(HISTORY) ?? '[]');
} catch {
  state.history = [];
}
show();
outputs();
chooseMode('draw');
begin();
