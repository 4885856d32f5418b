import { execFile } from 'node:child_process'
import { connect, type Socket } from 'node:net'
import { promisify } from 'node:util'
import type { Test } from 'tap'
import { withDatabase } from './database.ts'
import { enroll, withProcess } from './server.ts'

const run = promisify(execFile)

/** A server, its memory in MiB, and whether a device still gets its 201. */
export async function withVictim(t: Test) {
  const db = await withDatabase(t)
  const device = await enroll(db, 'a')
  const { server, call, url } = await withProcess(t, db)
  const port = Number(new URL(url).port)
  let next = Date.now()
  const beat = async () => {
    // Each in a bucket of its own.
    next -= 20_000
    return (await call('POST /v1/heartbeat', { token: device.token, body: { ts: new Date(next).toISOString() } })).status
  }
  for (let round = 0; round < 50; round++) await beat()
  const memory = async () => Number((await run('ps', ['-o', 'rss=', '-p', String(server.pid)])).stdout) / 1024
  const open = async () => {
    const socket = connect(port, '127.0.0.1').on('error', () => {})
    t.teardown(() => socket.destroy())
    await new Promise(resolve => socket.once('connect', resolve).once('close', resolve))
    return socket
  }
  const head = (path: string, more: string) =>
    `POST ${path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${device.token}\r\nContent-Type: application/json\r\n${more}\r\n`
  return { call, device, beat, memory, open, head }
}

/** All that came until the end. */
export async function answer(socket: Socket) {
  let text = ''
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString()
  })
  if (!socket.closed) await new Promise(resolve => socket.once('close', resolve))
  return text
}
