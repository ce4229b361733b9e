/** @file Image files that people give: which can be sent, and large ones made smaller for a query. */

import { bytes, count } from './dom.js';
import { say } from './notices.js';
import { service } from './state.js';

const LARGE = 1 << 20; // bytes; a query is sent again for every page and filter
const SIDE = 1024; // pixels; more than an encoder looks at

/** The images among some files; says how many others there were. */
export function imagesOf(list) {
  const images = [...list].filter((file) => file.type.startsWith('image/'));
  const others = list.length - images.length;
  if (others) say(`${count(others, 'file is not an image', 'files are not images')}.`);
  return images;
}

/** Whether the service takes a file of this size. */
export const tooLarge = (file) => file.size > (service.about?.most_bytes ?? Infinity);

/** The image as a query needs it. What the browser cannot read is sent as it is: the service may know the format. */
async function shrunk(file) {
  if (file.size <= LARGE) return file;
  try {
    const image = await createImageBitmap(file);
    const scale = Math.min(1, SIDE / Math.max(image.width, image.height));
    const canvas = document.createElement('canvas');
    canvas.width = Math.max(1, Math.round(image.width * scale));
    canvas.height = Math.max(1, Math.round(image.height * scale));
    const context = canvas.getContext('2d');
    context.imageSmoothingQuality = 'high';
    context.fillStyle = '#fff'; // where the image is transparent
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => { canvas.toBlob(resolve, 'image/jpeg', 0.92); });
    return new File([blob], file.name, { type: 'image/jpeg' });
  } catch {
    return file;
  }
}

/** The images among some files, small enough to search with. @returns {Promise<File[]>} */
export async function forQuery(list) {
  const images = await Promise.all(imagesOf(list).map(shrunk));
  const small = images.filter((file) => !tooLarge(file));
  const large = images.length - small.length;
  if (large) say(`${count(large, 'image is', 'images are')} larger than ${bytes(service.about.most_bytes)}, the most this service takes.`);
  return small;
}
