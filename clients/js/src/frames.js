// Frames: a JSON header with bytes behind it, as the server speaks them (clients/README.md).
//
// The length of the header comes first, in 4 bytes, little endian. A value in the header is `{type, bytes: [offset,
// length]}`, counted from where the header ends.

export const FRAME = "application/vnd.session-store.frame";

/** Collects the bytes of a frame. */
export class Writer {
  #chunks = [];
  #size = 0;

  /** A value, as it stands in the header. */
  value(type, data) {
    const place = { type, bytes: [this.#size, data.length] };
    this.#chunks.push(data);
    this.#size += data.length;
    return place;
  }

  frame(document) {
    const header = new TextEncoder().encode(JSON.stringify(document));
    const frame = new Uint8Array(4 + header.length + this.#size);
    new DataView(frame.buffer).setUint32(0, header.length, true);
    frame.set(header, 4);
    let at = 4 + header.length;
    for (const chunk of this.#chunks) {
      frame.set(chunk, at);
      at += chunk.length;
    }
    return frame;
  }
}

/** A frame taken apart. */
export class Reader {
  #bytes;

  /** Throws when it is none. */
  constructor(frame) {
    const end = 4 + new DataView(frame.buffer, frame.byteOffset).getUint32(0, true);
    if (end > frame.length) throw new RangeError("not a frame");
    this.document = JSON.parse(new TextDecoder().decode(frame.subarray(4, end)));
    this.#bytes = frame.subarray(end);
  }

  /** The bytes of a value. */
  data({ bytes: [at, length] }) {
    return this.#bytes.slice(at, at + length);
  }
}
