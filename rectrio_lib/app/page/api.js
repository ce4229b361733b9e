/** @file The REST API. Every address is relative to the page's folder, so that a proxy's prefix changes nothing. */

const FOLDER = new URL('.', document.baseURI);

export const address = (path) => new URL(path, FOLDER).href;

/** Why a request failed: `kind` is gone (no answer), busy (429, 503), session (401) or refused. */
export class Failure extends Error {
  constructor(kind, detail, { status = 0, wait = null, problem = null } = {}) {
    super(detail);
    Object.assign(this, { kind, status, wait, problem });
  }
}

const KINDS = { 401: 'session', 429: 'busy', 502: 'gone', 503: 'busy', 504: 'gone' };

async function failure(response) {
  const { status } = response;
  const problem = await response.json().catch(() => null);
  const wait = Number.parseInt(response.headers.get('Retry-After'), 10);
  const detail = typeof problem?.detail === 'string' ? problem.detail : `The service refused this (status ${status}).`;
  return new Failure(KINDS[status] ?? 'refused', detail, { status, problem, wait: Number.isNaN(wait) ? null : wait });
}

let switched = Promise.resolve(); // what is asked or said after "keep" was switched reaches the service after it

/**
 * Sends one request and gives its JSON.
 * @param {string} path relative to the page's folder
 * @param {{method?: string, body?: Object|FormData, signal?: AbortSignal}} options
 * @throws {Failure} and AbortError if `signal` stopped it
 */
async function call(path, { method = 'GET', body, signal } = {}) {
  const json = body && !(body instanceof FormData);
  const headers = { Accept: 'application/json', ...(json && { 'Content-Type': 'application/json' }) };
  const away = (detail) => (error) => { throw error.name === 'AbortError' ? error : new Failure('gone', detail); };
  if (method !== 'GET') await switched;
  const response = await fetch(address(path), { method, headers, signal, body: json ? JSON.stringify(body) : body })
    .catch(away('The service does not answer.'));
  if (!response.ok) throw await failure(response);
  if (response.status === 204) return null;
  return response.json().catch(away('Something other than RecTrio answered.'));
}

const text = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value != null)).toString();

function multipart(fields, files) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, JSON.stringify(value));
  for (const file of files) form.append('files', file, file.name || 'image.png');
  return form;
}

export const about = () => call('about');
export const facets = (where) => call(where ? `facets?${text({ where })}` : 'facets');

/** Searches; the parts of `request` refer to `files` by their number. */
export function search(request, files, signal) {
  const body = files.length ? multipart({ query: request }, files) : request;
  return call('search', { method: 'POST', body, signal });
}

export const upload = (files, metadata) => call('upload', { method: 'POST', body: multipart({ metadata }, files) });
export const image = (id) => call(`images/${id}`);
export const update = (id, metadata) => call(`images/${id}`, { method: 'PATCH', body: metadata });

/** Deletes; what is gone already is deleted. */
const gone = (path) => call(path, { method: 'DELETE' }).catch((failure) => {
  if (failure.status !== 404) throw failure;
});

export const remove = (id) => gone(`images/${id}`);
export const searches = (before) => call(`history?${text({ limit: 30, before })}`);
export const forget = (id) => gone(id == null ? 'history' : `history/${id}`);

/** Switches whether searches and judgements are kept. */
export function keep(yes) {
  const answer = call('history', { method: 'PUT', body: { keep: yes } });
  switched = answer.catch(() => {});
  return answer;
}

/** Recommends; `wish` as of POST /recommend. */
export const recommend = (wish, signal) => call('recommend', { method: 'POST', body: wish, signal });
export const feedback = (said) => call('feedback', { method: 'POST', body: said });
export const judgements = () => call('feedback?limit=1000');
export const forgetJudgements = () => call('feedback', { method: 'DELETE' });
export const saved = () => call('saved');
export const save = (query, title) => call('saved', { method: 'POST', body: { query, title } });
export const unsave = (id) => gone(`saved/${id}`);
export const stats = (days) => call(`stats?${text({ days })}`);

/** The retraining: its state (GET), a new one (POST), or back to the encoder before (DELETE). */
export const learning = (method = 'GET') => call('retrain', { method });
