// Reads a PNG as browsers write them (8 bits, RGB or RGBA, not interlaced), for tests that look at a picture.
// See https://www.w3.org/TR/png-3/, sections 9 (filters) and 11 (chunks).

import { inflateSync } from 'node:zlib'

export interface Picture {
  width: number
  height: number
  /** `#rrggbb`. */
  colourAt(x: number, y: number): string
  /** How many pixels have each colour. */
  colours: Map<string, number>
}

export function readPng(file: Buffer): Picture {
  const data: Buffer[] = []
  let [width, height, channels] = [0, 0, 0]
  for (let at = 8; at < file.length; ) {
    const length = file.readUInt32BE(at)
    const type = file.toString('latin1', at + 4, at + 8)
    const chunk = file.subarray(at + 8, at + 8 + length)
    if (type === 'IHDR') {
      width = chunk.readUInt32BE(0)
      height = chunk.readUInt32BE(4)
      const [depth, colourType, , , interlace] = chunk.subarray(8)
      if (depth !== 8 || interlace !== 0) throw new Error('a kind of PNG that is not read here')
      channels = colourType === 6 ? 4 : 3
    } else if (type === 'IDAT') {
      data.push(chunk)
    }
    at += length + 12
  }
  const pixels = unfilter(inflateSync(Buffer.concat(data)), width * channels, height, channels)
  const colourAt = (x: number, y: number): string =>
    `#${pixels.toString('hex', (y * width + x) * channels, (y * width + x) * channels + 3)}`
  const colours = new Map<string, number>()
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const colour = colourAt(x, y)
      colours.set(colour, (colours.get(colour) ?? 0) + 1)
    }
  }
  return { width, height, colourAt, colours }
}

/** Each row begins with the number of the filter that predicts its bytes from those to the left and above. */
function unfilter(rows: Buffer, rowBytes: number, height: number, step: number): Buffer {
  const pixels = Buffer.alloc(rowBytes * height)
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (rowBytes + 1)]!
    for (let x = 0; x < rowBytes; x++) {
      const at = y * rowBytes + x
      const left = x >= step ? pixels[at - step]! : 0
      const above = y > 0 ? pixels[at - rowBytes]! : 0
      const corner = x >= step && y > 0 ? pixels[at - rowBytes - step]! : 0
      const predicted = [0, left, above, (left + above) >> 1, paeth(left, above, corner)][filter]!
      pixels[at] = (rows[y * (rowBytes + 1) + 1 + x]! + predicted) & 0xff
    }
  }
  return pixels
}

function paeth(left: number, above: number, corner: number): number {
  const estimate = left + above - corner
  const [a, b, c] = [left, above, corner].map((each) => Math.abs(estimate - each)) as [number, number, number]
  return a <= b && a <= c ? left : b <= c ? above : corner
}
