// Pictures in and out: the texts inside a PNG, files as data URLs, and a brush over a canvas.

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** The texts of a PNG by keyword, of `tEXt` and uncompressed `iTXt` chunks; null for other files. */
export function texts(bytes) {
  if (SIGNATURE.some((byte, at) => bytes[at] !== byte)) return null;
  const found = {};
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const end = at + 8 + length;
    if (end + 4 > bytes.length || kind === 'IEND') break;
    const data = bytes.subarray(at + 8, end);
    const zero = data.indexOf(0);
    const keyword = String.fromCharCode(...data.subarray(0, Math.min(zero, 79)));
    if (kind === 'tEXt' && zero > 0) {
      found[keyword] = new TextDecoder('latin1').decode(data.subarray(zero + 1));
    } else if (kind === 'iTXt' && zero > 0 && data[zero + 1] === 0) {
      // Keyword, two bytes about compression, language and translated keyword, each ended by zero.
      const language = data.indexOf(0, zero + 3);
      const translated = data.indexOf(0, language + 1);
      if (language > 0 && translated > 0) found[keyword] = new TextDecoder().decode(data.subarray(translated + 1));
    }
    at = end + 4;
  }
  return found;
}

/** A blob as a data URL. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error('the file cannot be read'));
    reader.readAsDataURL(blob);
  });
}

/** An image element for a URL, once it is loaded. */
export function image(url) {
  return new Promise((resolve, reject) => {
    const element = new Image();
    element.onload = () => resolve(element);
    element.onerror = () => reject(new Error('this is no picture that the browser can read'));
    element.src = url;
  });
}

/** A picture fitted to the model's size, with a mask to paint on it. */
export class Given {
  constructor(canvas, brush) {
    this.canvas = canvas;
    this.brush = brush;
    this.picture = document.createElement('canvas');
    this.mask = document.createElement('canvas');
    this.has = false;
    this.paints = false;
    this.resize(28, 28);
    let drawing = false;
    const at = event => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * this.width, (event.clientY - box.top) / box.height * this.height];
    };
    canvas.addEventListener('pointerdown', event => {
      if (!this.paints) return;
      drawing = true;
      canvas.setPointerCapture(event.pointerId);
      this.paint(...at(event));
    });
    canvas.addEventListener('pointermove', event => { if (drawing) this.paint(...at(event)); });
    for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, () => { drawing = false; });
    // By keyboard: the arrows move the brush, the space bar paints.
    this.cursor = [14, 14];
    canvas.addEventListener('keydown', event => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (!this.paints || !(event.key in moves || event.key === ' ')) return;
      event.preventDefault();
      const [x, y] = moves[event.key] ?? [0, 0];
      this.cursor = [Math.min(Math.max(this.cursor[0] + x, 0), this.width), Math.min(Math.max(this.cursor[1] + y, 0), this.height)];
      if (event.key === ' ') this.paint(...this.cursor); else this.show(true);
    });
  }

  resize(width, height) {
    [this.width, this.height] = [width, height];
    for (const canvas of [this.canvas, this.picture, this.mask]) [canvas.width, canvas.height] = [width, height];
    this.has = false;
    this.show();
  }

  /** Takes a picture, cropped to the model's shape. */
  take(element) {
    const context = this.picture.getContext('2d');
    const scale = Math.max(this.width / element.width, this.height / element.height);
    const [width, height] = [element.width * scale, element.height * scale];
    context.fillStyle = '#fff';
    context.fillRect(0, 0, this.width, this.height);
    context.imageSmoothingQuality = 'high';
    context.imageSmoothingEnabled = scale !== 1;
    context.drawImage(element, (this.width - width) / 2, (this.height - height) / 2, width, height);
    this.has = true;
    this.clear();
  }

  clear() {
    this.mask.getContext('2d').clearRect(0, 0, this.width, this.height);
    this.show();
  }

  /** Masks the lower half, without painting. */
  half() {
    const context = this.mask.getContext('2d');
    context.fillStyle = '#fff';
    context.fillRect(0, Math.floor(this.height / 2), this.width, Math.ceil(this.height / 2));
    this.show();
  }

  paint(x, y) {
    const context = this.mask.getContext('2d');
    const size = Number(this.brush.value) * this.width / 28;
    context.fillStyle = '#fff';
    // A mask consists of whole pixels.
    for (let row = Math.floor(y - size / 2); row < y + size / 2; row++) {
      for (let column = Math.floor(x - size / 2); column < x + size / 2; column++) {
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= size / 2 + 0.3) context.fillRect(column, row, 1, 1);
      }
    }
    this.show();
  }

  show(withCursor) {
    const context = this.canvas.getContext('2d');
    context.clearRect(0, 0, this.width, this.height);
    context.drawImage(this.picture, 0, 0);
    if (!this.paints) return;
    context.globalAlpha = 0.65;
    const tint = document.createElement('canvas');
    [tint.width, tint.height] = [this.width, this.height];
    const tinted = tint.getContext('2d');
    tinted.drawImage(this.mask, 0, 0);
    tinted.globalCompositeOperation = 'source-in';
    tinted.fillStyle = '#ff3b6b';
    tinted.fillRect(0, 0, this.width, this.height);
    context.drawImage(tint, 0, 0);
    context.globalAlpha = 1;
    if (withCursor) {
      context.strokeStyle = '#ff3b6b';
      context.strokeRect(this.cursor[0] - 1.5, this.cursor[1] - 1.5, 3, 3);
    }
  }

  /** The picture as a PNG, at a size. */
  url(width = this.width, height = this.height) {
    if (width === this.width && height === this.height) return this.picture.toDataURL('image/png');
    const small = document.createElement('canvas');
    [small.width, small.height] = [width, height];
    const context = small.getContext('2d');
    context.imageSmoothingQuality = 'high';
    context.drawImage(this.picture, 0, 0, width, height);
    return small.toDataURL('image/png');
  }

  /** The mask as a PNG: white on black. */
  maskUrl() {
    const whole = document.createElement('canvas');
    [whole.width, whole.height] = [this.width, this.height];
    const context = whole.getContext('2d');
    context.fillStyle = '#000';
    context.fillRect(0, 0, this.width, this.height);
    context.drawImage(this.mask, 0, 0);
    return whole.toDataURL('image/png');
  }
}
