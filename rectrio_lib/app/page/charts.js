/** @file Charts as SVG, drawn here: bars over days, bars of one row each, and a difference with its interval. */

import { h, number } from './dom.js';

const SPACE = 'http://www.w3.org/2000/svg';

/** An SVG element; a title among the children is shown by the pointer. */
function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

const drawing = (width, height, label, ...children) => s('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label,
  class: 'chart' }, ...children);

/** The next round number: 1, 2 or 5 times a power of ten. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/**
 * Bars over days, with a line and a number for every step of the scale.
 * @param {{label: string, value: number}[]} days
 * @param {number} width in pixels, so that letters keep their size
 */
export function bars(days, width, label) {
  const [height, left, bottom] = [180, 44, 24];
  const step = Math.max(1, round(Math.max(1, ...days.map(({ value }) => value)) / 4));
  const most = step * Math.max(1, Math.ceil(Math.max(...days.map(({ value }) => value)) / step));
  const y = (value) => height - bottom - (value / most) * (height - bottom - 12);
  const each = (width - left) / days.length;
  const lines = Array.from({ length: most / step + 1 }, (_, place) => [
    s('line', { x1: left, x2: width, y1: y(place * step), y2: y(place * step) }),
    s('text', { x: left - 8, y: y(place * step) + 4, 'text-anchor': 'end' }, number(place * step)),
  ]);
  const columns = days.map(({ label: day, value }, place) => s('rect', { x: left + place * each + each * 0.12, width: each * 0.76, y: y(value),
    height: Math.max(0, height - bottom - y(value)), rx: Math.min(3, each / 4) }, s('title', {}, `${day}: ${number(value)}`)));
  const named = [...new Set([0, Math.floor((days.length - 1) / 2), days.length - 1])].map((place, index, all) => s('text', {
    x: index === all.length - 1 && index > 0 ? width : index === 0 ? left : left + (place + 0.5) * each, y: height - 6,
    'text-anchor': index === 0 ? 'start' : index === all.length - 1 ? 'end' : 'middle' }, days[place].label));
  return drawing(width, height, label, s('g', { class: 'scale' }, lines, named), s('g', { class: 'bars' }, columns));
}

/** A row for each value: its name, a bar, and the value as text. @param {{label: string, value: number, text: string}[]} rows */
export function rows(values) {
  const most = Math.max(...values.map(({ value }) => value), Number.MIN_VALUE);
  return h('ul', { class: 'bar-rows' }, values.map(({ label, value, text }) => h('li', {}, h('span', { class: 'name', title: label }, label),
    s('svg', { viewBox: '0 0 100 8', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, s('rect', { width: (100 * value) / most, height: 8 })),
    h('span', { class: 'value' }, text))));
}

/**
 * Before and after on a scale from 0 to 1, and how sure the difference is.
 * @param {{before: number, after: number, low: number, high: number}} comparison
 */
export function change({ before, after, low, high }, width, label) {
  const [left, right, height] = [64, 52, 86];
  const x = (share) => left + share * (width - left - right);
  const line = (name, value, y, kind) => [s('text', { x: left - 8, y: y + 12, 'text-anchor': 'end' }, name),
    s('rect', { class: kind, x: x(0), y, width: Math.max(0, x(value) - x(0)), height: 16, rx: 3 }),
    s('text', { class: 'figure', x: x(Math.max(value, before + high)) + 8, y: y + 12 }, value.toFixed(3))];
  const [from, to] = [low, high].map((gain) => x(Math.min(1, Math.max(0, before + gain))));
  return drawing(width, height, label, line('before', before, 6, 'old'), line('after', after, 32, 'new'),
    s('path', { class: 'interval', d: `M${from} 40H${to}M${from} 35v10M${to} 35v10` }),
    s('g', { class: 'scale' }, [0, 0.5, 1].map((share) => [s('line', { x1: x(share), x2: x(share), y1: 54, y2: 60 }),
      s('text', { x: x(share), y: 76, 'text-anchor': 'middle' }, number(share))])));
}
