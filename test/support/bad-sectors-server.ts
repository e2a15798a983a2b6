// Serves a file by the NBD protocol, with bad sectors: a write that touches one writes what stands before it, as disks do, and
// fails; a read that touches one fails; and some store a wrong byte and say nothing. A process of its own, for one client. (The servers at hand either mix up writes that are
// in flight together, or drop the connection when a read fails.)

import fs from 'node:fs'
import net from 'node:net'

/** What the process is told, as JSON in its first argument. */
export interface Service {
  socket: string
  content: string
  size: number
  /** Bytes of a sector. */
  sector: number
  /** Sectors that refuse to be written, and to be read; ascending. */
  writes: number[]
  reads: number[]
  /** Sectors of which the first byte is stored wrong, without a word. */
  flips: number[]
}

const EIO = 5
const HANDSHAKE_FLAGS = 3
/** Has flags, and can flush, FUA, trim, write zeroes. */
const TRANSMISSION_FLAGS = 1 | (1 << 2) | (1 << 3) | (1 << 5) | (1 << 6)
const OPTION = { exportName: 1, abort: 2, info: 6, go: 7 } as const
const REPLY = { ack: 1, info: 3, unsupported: 2 ** 31 + 1 } as const
const COMMAND = { read: 0, write: 1, disconnect: 2, flush: 3, trim: 4, writeZeroes: 6 } as const
const OPTION_MAGIC = 'IHAVEOPT'
const OPTION_REPLY_MAGIC = 0x3e889045565a9n
const REQUEST_MAGIC = 0x25609513
const REPLY_MAGIC = 0x67446698

const { socket, content, size, sector, writes, reads, flips } = JSON.parse(process.argv[2] ?? '') as Service
const file = fs.openSync(content, 'r+')

/** The first of some sectors within a range, as its place in bytes; -1: none. */
function firstBad(sectors: readonly number[], offset: number, length: number): number {
  const found = sectors.find((at) => (at + 1) * sector > offset && at * sector < offset + length)
  return found === undefined ? -1 : Math.max(found * sector, offset)
}

function carryOut(command: number, offset: number, length: number, data: Buffer): { error: number; data: Buffer } {
  const nothing = Buffer.alloc(0)
  switch (command) {
    case COMMAND.read: {
      if (firstBad(reads, offset, length) >= 0) return { error: EIO, data: nothing }
      const into = Buffer.alloc(length)
      fs.readSync(file, into, 0, length, offset)
      return { error: 0, data: into }
    }
    case COMMAND.write:
    case COMMAND.writeZeroes: {
      const bytes = command === COMMAND.write ? data : Buffer.alloc(length)
      for (const at of flips) {
        const place = at * sector - offset
        if (place >= 0 && place < length) bytes[place]! ^= 0x10
      }
      const bad = firstBad(writes, offset, length)
      const end = bad < 0 ? offset + length : bad
      if (end > offset) fs.writeSync(file, bytes, 0, end - offset, offset)
      return { error: bad < 0 ? 0 : EIO, data: nothing }
    }
    default:
      return { error: 0, data: nothing }
  }
}

/** Reads exactly so many bytes. */
class Reader {
  #chunks: AsyncIterator<Buffer>
  #left: Buffer = Buffer.alloc(0)

  constructor(stream: AsyncIterable<Buffer>) {
    this.#chunks = stream[Symbol.asyncIterator]()
  }

  async take(bytes: number): Promise<Buffer> {
    const parts = [this.#left]
    let have = this.#left.length
    while (have < bytes) {
      const { value, done } = await this.#chunks.next()
      if (done) process.exit(0)
      parts.push(value)
      have += value.length
    }
    const all = Buffer.concat(parts)
    this.#left = all.subarray(bytes)
    return all.subarray(0, bytes)
  }
}

async function shakeHands(client: net.Socket, reader: Reader): Promise<void> {
  const greeting = Buffer.from(`NBDMAGIC${OPTION_MAGIC}\0\0`, 'latin1')
  greeting.writeUInt16BE(HANDSHAKE_FLAGS, 16)
  client.write(greeting)
  await reader.take(4)
  for (;;) {
    const header = await reader.take(16)
    const option = header.readUInt32BE(8)
    await reader.take(header.readUInt32BE(12))
    const reply = (type: number, data: Buffer = Buffer.alloc(0)): void => {
      const head = Buffer.alloc(20)
      head.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0)
      head.writeUInt32BE(option, 8)
      head.writeUInt32BE(type, 12)
      head.writeUInt32BE(data.length, 16)
      client.write(Buffer.concat([head, data]))
    }
    // The export's size and flags, behind two bytes of kind.
    const info = Buffer.alloc(12)
    info.writeBigUInt64BE(BigInt(size), 2)
    info.writeUInt16BE(TRANSMISSION_FLAGS, 10)
    if (option === OPTION.exportName) {
      client.write(info.subarray(2))
      return
    }
    if (option === OPTION.go || option === OPTION.info) {
      reply(REPLY.info, info)
      reply(REPLY.ack)
      if (option === OPTION.go) return
    } else {
      reply(option === OPTION.abort ? REPLY.ack : REPLY.unsupported)
    }
  }
}

async function serve(client: net.Socket): Promise<void> {
  const reader = new Reader(client)
  await shakeHands(client, reader)
  for (;;) {
    const request = await reader.take(28)
    if (request.readUInt32BE(0) !== REQUEST_MAGIC) throw new Error('this is no request')
    const command = request.readUInt16BE(6)
    if (command === COMMAND.disconnect) process.exit(0)
    const offset = Number(request.readBigUInt64BE(16))
    const length = request.readUInt32BE(24)
    const handle = Buffer.from(request.subarray(8, 16))
    const written = command === COMMAND.write ? await reader.take(length) : Buffer.alloc(0)
    const { error, data } = carryOut(command, offset, length, written)
    const head = Buffer.alloc(16)
    head.writeUInt32BE(REPLY_MAGIC, 0)
    head.writeUInt32BE(error, 4)
    head.set(handle, 8)
    client.write(Buffer.concat([head, data]))
  }
}

const server = net.createServer((client) => {
  server.close()
  void serve(client)
})
server.listen(socket)
