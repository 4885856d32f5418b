import { execFile } from 'node:child_process'
import type { Hash } from 'node:crypto'
import { closeSync, constants, openSync } from 'node:fs'
import { Socket } from 'node:net'
import type { Readable, Writable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'

/**
 * Makes a named pipe, for use between Postgres's COPY and DuckDB's CSV reader and writer. While DuckDB waits for the other
 * end, it blocks and cannot be interrupted. Everything in this file makes sure that the other end is always opened and closed.
 */
export async function makePipe(path: string) {
  await promisify(execFile)('mkfifo', ['-m', '600', path])
}

/**
 * Opens the writing end once a reader has opened the other end or waits in open() for it. Until then, a non-blocking open
 * fails with ENXIO, so this function neither hangs nor leaves the reader waiting.
 * @param reader settles when the reading side has ended; the result is undefined then
 */
export async function openForWriting(path: string, reader: Promise<unknown>): Promise<Socket | undefined> {
  let gone = false
  const settled = () => void (gone = true)
  reader.then(settled, settled)
  while (!gone) {
    try {
      const fd = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
      return new Socket({ fd, readable: false, writable: true })
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'ENXIO')) throw error
      await sleep(2)
    }
  }
  return undefined
}

/**
 * Opens the reading end. `release` lets the stream end; call it when the writing side has ended, whether it ever opened the
 * pipe or not.
 */
export function openForReading(path: string) {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  // A pipe without a writer is at its end at once, so this is a writer until the real one has opened and closed the pipe.
  const keeper = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
  return { stream: new Socket({ fd, readable: true, writable: false }), release: () => closeSync(keeper) }
}

/**
 * Copies the stream of a COPY into a pipe and returns the number of chunks, which is COPY's own count of rows: the protocol
 * sends one CopyData message per row (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY), and
 * postgres.js one chunk per message. Measured over 2.88M rows, sorted into Parquet: 0.33M rows/s if each row is written
 * separately, 0.83M rows/s if rows are collected into 256 KiB.
 * @param options `hash` is given each byte in its order
 */
export function feed(
  rows: Readable,
  pipe: Writable,
  options: { hash?: Hash; onRows?: ((rows: number, bytes: number) => void) | undefined } = {},
): Promise<number> {
  const size = 256 * 1024
  let buffer: Buffer = Buffer.allocUnsafe(size)
  let used = 0
  let count = 0
  let bytes = 0
  // Buffers that were written are used again. Without that, those that wait for the garbage collector take 100 MB.
  const free: Buffer[] = []
  return new Promise((resolve, reject) => {
    const send = (chunk: Buffer, whenWritten?: () => void) => {
      options.hash?.update(chunk)
      bytes += chunk.length
      return pipe.write(chunk, whenWritten)
    }
    const flush = () => {
      if (used === 0) return true
      const whole = buffer
      const more = send(whole.subarray(0, used), () => void free.push(whole))
      options.onRows?.(count, bytes)
      buffer = free.pop() ?? Buffer.allocUnsafe(size)
      used = 0
      return more
    }
    rows.on('data', (chunk: Buffer) => {
      if (used + chunk.length > size && !flush()) rows.pause()
      if (chunk.length > size) {
        if (!send(Buffer.from(chunk))) rows.pause()
      } else {
        used += chunk.copy(buffer, used)
      }
      count++
    })
    pipe.on('drain', () => rows.resume())
    rows.on('end', () => {
      flush()
      pipe.end(() => resolve(count))
    })
    const fail = (error: Error) => {
      pipe.destroy()
      reject(error)
    }
    const cutOff = () => fail(rows.errored ?? new Error('the COPY ended before its last row'))
    rows.on('error', fail)
    rows.on('close', () => {
      if (!rows.readableEnded) cutOff()
    })
    // The COPY may have died before the reader opened the pipe. Then no further event comes.
    if (rows.destroyed) cutOff()
    pipe.on('error', fail)
    pipe.on('close', () => {
      if (!pipe.writableFinished) fail(new Error('the reader of the COPY went away'))
    })
  })
}
