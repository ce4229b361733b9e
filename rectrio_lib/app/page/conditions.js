/** @file Filters as conditions of the service (`label in ['a', 'b'] and price < 50`), and back. */

/**
 * @typedef {Object} Filter
 * @property {(string|number|boolean)[]} [values] any of these
 * @property {boolean} [tags] the column holds lists
 * @property {boolean} [dates] `from` and `to` are days, both included
 * @property {number|string} [from]
 * @property {number|string} [to]
 */

const ESCAPES = { '\\': '\\\\', "'": "\\'", '\n': '\\n', '\r': '\\r', '\t': '\\t' };
const UNESCAPES = { n: '\n', r: '\r', t: '\t' };

/** A value as the condition language writes it. */
export function literal(value) {
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (typeof value === 'number') return String(value);
  const hex = (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
  return `'${value.replace(/[\\'\u0000-\u001f\u007f]/g, (character) => ESCAPES[character] ?? hex(character))}'`;
}

function value(token) {
  if (token === 'True' || token === 'False') return token === 'True';
  if (!/^['"]/.test(token)) return Number(token);
  return token.slice(1, -1).replace(/\\(?:x(..)|u(....)|(.))/gs, (_, two, four, one) =>
    (one ? UNESCAPES[one] ?? one : String.fromCharCode(Number.parseInt(two ?? four, 16))));
}

function nextDay(day, days = 1) {
  const time = new Date(`${day}T00:00:00Z`);
  time.setUTCDate(time.getUTCDate() + days);
  return time.toISOString().slice(0, 10);
}

function clauses(name, { values, tags, dates, from, to }) {
  if (values?.length && tags) {
    const any = values.map((one) => `${literal(one)} in ${name}`).join(' or ');
    return [values.length > 1 ? `(${any})` : any];
  }
  if (values?.length === 1) return [`${name} == ${literal(values[0])}`];
  if (values?.length) return [`${name} in [${values.map(literal).join(', ')}]`];
  return [
    from != null && `${name} >= ${literal(from)}`,
    to != null && (dates ? `${name} < ${literal(nextDay(to))}` : `${name} <= ${literal(to)}`),
  ].filter(Boolean);
}

/**
 * The condition of filters, and of `rest`, a condition that is no filter of the page.
 * @param {Map<string, Filter>} filters
 */
export function build(filters, rest = '') {
  const parts = [...filters].flatMap(([name, filter]) => clauses(name, filter));
  if (rest) parts.push(parts.length ? `(${rest})` : rest);
  return parts.join(' and ');
}

const WORD = String.raw`and\b|or\b|in\b|not\b|True\b|False\b|[A-Za-z_]\w*`;
const TEXT = String.raw`'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"`;
const TOKEN = new RegExp(String.raw`\s*(?:${WORD}|${TEXT}|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|[=<>!]=|[<>()[\],+*/%-])`, 'iys');

function tokens(condition) {
  const found = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < condition.trimEnd().length) {
    const match = TOKEN.exec(condition);
    if (!match) return null;
    found.push(match[0].trim());
  }
  return found;
}

/** Splits tokens at the word `word` outside of brackets. */
function split(list, word) {
  const parts = [[]];
  let depth = 0;
  for (const token of list) {
    if ('(['.includes(token)) depth += 1;
    if (')]'.includes(token)) depth -= 1;
    if (token === word && depth === 0) parts.push([]);
    else parts.at(-1).push(token);
  }
  return parts;
}

const NAME = /^(?!(?:and|or|in|not|True|False)$)[A-Za-z_]\w*$/;
const CONSTANT = /^(?:['"].*|-?\d.*|True|False)$/s;

/** Reads one clause into `filters`; false if it is none that the page writes. */
function read(list, filters) {
  const bare = list[0] === '(' && list.at(-1) === ')' ? list.slice(1, -1) : list;
  const any = split(bare, 'or');
  if (any.every((part) => part.length === 3 && CONSTANT.test(part[0]) && part[1] === 'in' && part[2] === any[0][2])) {
    if (!NAME.test(any[0][2])) return false;
    filters.set(any[0][2], { tags: true, values: any.map((part) => value(part[0])) });
    return true;
  }
  const [name, operator, constant, ...more] = list;
  if (!NAME.test(name) || filters.get(name)?.values) return false;
  if (operator === 'in' && constant === '[' && more.at(-1) === ']') {
    const values = more.slice(0, -1).filter((token) => token !== ',');
    if (!values.every((token) => CONSTANT.test(token))) return false;
    filters.set(name, { values: values.map(value) });
    return true;
  }
  if (more.length || !CONSTANT.test(constant ?? '')) return false;
  const known = filters.get(name) ?? {};
  const bound = value(constant);
  if (operator === '==' && !filters.has(name)) filters.set(name, { values: [bound] });
  else if (operator === '>=' && known.from == null) filters.set(name, { ...known, from: bound });
  else if (operator === '<=' && known.to == null && typeof bound === 'number') filters.set(name, { ...known, to: bound });
  else if (operator === '<' && known.to == null && /^\d{4}-\d\d-\d\d$/.test(bound)) {
    filters.set(name, { ...known, dates: true, to: nextDay(bound, -1) });
  } else return false;
  if (typeof filters.get(name).from === 'string') filters.get(name).dates = true;
  return true;
}

/**
 * What a condition says in filters; what the page has no filter for is its `rest`.
 * @returns {{filters: Map<string, Filter>, rest: string}}
 */
export function parse(condition) {
  const filters = new Map();
  const list = tokens(condition ?? '');
  if (!list?.length) return { filters, rest: condition ?? '' };
  const rest = split(list, 'and').filter((part) => part.length === 0 || !read(part, filters));
  return { filters, rest: rest.map((part) => part.join(' ')).join(' and ') };
}
