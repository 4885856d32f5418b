import { execFile } from 'node:child_process'
import { closeSync, constants, openSync } from 'node:fs'
import { Socket } from 'node:net'
import type { Readable, Writable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'

/**
 * Named pipes between Postgres's COPY and DuckDB's CSV reader and writer. DuckDB blocks, beyond interruption,
 * while it waits for the other end; everything here is arranged so that the other end always comes, and goes.
 */
export async function makePipe(path: string) {
  await promisify(execFile)('mkfifo', ['-m', '600', path])
}

/**
 * Opens the writing end once a reader has opened the other, or waits in open() for it. A non-blocking open
 * fails with ENXIO until then, so this neither hangs nor leaves the reader waiting.
 * @param reader settles when the reading side has ended; then undefined is returned
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
 * Opens the reading end. `release` lets the end of the file through; call it when the writing side has ended,
 * whether it ever opened the pipe or not.
 */
export function openForReading(path: string) {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  // Without a writer a pipe is at its end at once: be the writer until the real one has come and gone.
  const keeper = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
  return { stream: new Socket({ fd, readable: true, writable: false }), release: () => closeSync(keeper) }
}

/**
 * Copies a COPY's stream into a pipe and returns the number of chunks, which is COPY's own count of rows:
 * the protocol sends one CopyData message a row
 * (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY), postgres.js one chunk a message.
 * Measured over 2.88M rows, sorted into Parquet: 0.33M rows/s written one by one, 0.83M rows/s gathered into 256 KiB.
 */
export function feed(rows: Readable, pipe: Writable, onRows?: (rows: number, bytes: number) => void): Promise<number> {
  const size = 256 * 1024
  let buffer = Buffer.allocUnsafe(size)
  let used = 0
  let count = 0
  let bytes = 0
  return new Promise((resolve, reject) => {
    const flush = () => {
      if (used === 0) return true
      const more = pipe.write(buffer.subarray(0, used))
      bytes += used
      onRows?.(count, bytes)
      buffer = Buffer.allocUnsafe(size)
      used = 0
      return more
    }
    rows.on('data', (chunk: Buffer) => {
      if (used + chunk.length > size && !flush()) rows.pause()
      if (chunk.length > size) {
        if (!pipe.write(Buffer.from(chunk))) rows.pause()
        bytes += chunk.length
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
    // It may have died while the reader of the pipe was awaited; then no event comes any more.
    if (rows.destroyed) cutOff()
    pipe.on('error', fail)
    pipe.on('close', () => {
      if (!pipe.writableFinished) fail(new Error('the reader of the COPY went away'))
    })
  })
}
