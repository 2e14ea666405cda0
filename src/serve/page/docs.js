// The API's description as a page.
// The examples name the default address; they shall work as they are.
const examples = document.getElementById('examples');
examples.textContent = examples.textContent.replaceAll('localhost:7860', location.protocol === 'https:' ? location.origin : location.host);

const api = await (await fetch('/openapi.json')).json();

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

const named = schema => schema?.$ref?.split('/').pop();

/** A schema's kind in words. */
function kind(schema) {
  if (!schema) return '';
  if (schema.$ref) return named(schema);
  const several = schema.oneOf ?? schema.anyOf;
  if (several) return several.map(kind).filter(text => text !== 'null').join(' or ');
  const types = [schema.type ?? 'any'].flat().filter(type => type !== 'null').join(' or ');
  return schema.items ? `list of ${kind(schema.items)}` : types;
}

function fields(name) {
  const schema = api.components?.schemas?.[name];
  const properties = Object.assign({}, schema?.properties, ...(schema?.allOf ?? []).map(part => part.properties ?? {}));
  const rows = Object.entries(properties).map(([field, of]) =>
    element('tr', '', element('td', '', element('code', field)), element('td', kind(of)), element('td', of.description ?? '')));
  return element('table', '', element('tbody', '', ...rows));
}

for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const card = element('section');
    card.className = 'card';
    card.append(element('h2', '', element('code', `${method.toUpperCase()} ${path}`)));
    card.append(element('p', operation.description ?? operation.summary ?? ''));
    const parameters = (operation.parameters ?? []).map(of =>
      element('tr', '', element('td', '', element('code', of.name)), element('td', of.in), element('td', of.description ?? '')));
    if (parameters.length) card.append(element('table', '', element('tbody', '', ...parameters)));
    const body = Object.values(operation.requestBody?.content ?? {})[0]?.schema;
    if (named(body)) card.append(element('h3', 'Body'), fields(named(body)));
    const answers = Object.entries(operation.responses).map(([status, of]) =>
      element('tr', '', element('td', status), element('td', named(Object.values(of.content ?? {})[0]?.schema) ?? ''), element('td', of.description ?? '')));
    card.append(element('h3', 'Responses'), element('table', '', element('tbody', '', ...answers)));
    document.getElementById('paths').append(card);
  }
}
