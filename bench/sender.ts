// The process that sends heartbeats. It uses raw sockets and prepared requests, because it shares the processors with what is
// measured.
import { connect, type Socket } from 'node:net'
import { createHistogram, performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Schedule } from './schedule.ts'

/** A request that is sent again and again, each time with another `ts`: a device's heartbeat, or a gateway's batch. */
export interface Template {
  token: string
  /** The devices of the items, if it is a batch. */
  devices?: number[]
}

export type Order =
  | { kind: 'connect'; port: number; connections: number; templates: Template[] }
  /**
   * Sends each request at its time, no matter what happened to those before. What is sent in the first `warmup` seconds is not
   * measured.
   */
  | { kind: 'open'; schedule: Schedule; warmup: number; records: boolean }
  /**
   * Each connection sends its next request as soon as it has an answer. `ts` begins at `from` and advances by 10 s with each
   * pass. The warmup lasts at least until each request was sent once.
   */
  | { kind: 'closed'; seconds: number; warmup: number; from: number }
  | { kind: 'acknowledged' }
  | { kind: 'stop' }

/** A request that was answered with 2xx. */
export interface Acknowledged {
  /** Its index among the templates. */
  template: number
  /** The `ts` of its heartbeats, in ms. */
  ts: number
  status: number
  /** When it should have been sent, in ms since 1970. */
  due: number
  /** The time from then to its answer, in ms. */
  latency: number
}

/** The result of an order, without its warmup. Times are in ms. */
export interface Sent {
  requests: number
  /** The number of requests that were answered with 2xx. */
  ok: number
  errors: number
  /** The problems, and how often each occurred. */
  problems: Record<string, number>
  latency: { p50: number; p95: number; p99: number; p999: number; max: number }
  seconds: number
  /** The CPU seconds of this process. */
  cpuSeconds: number
  /** For `closed`: the first `ts` that was not used. */
  until: number
}

export type Report =
  | { kind: 'ready' }
  | { kind: 'progress'; seconds: number; sent: Sent }
  | { kind: 'acknowledged'; beats: Acknowledged[] }
  | { kind: 'done'; sent: Sent }

const TS = '2026-01-01T00:00:00.000Z'
/** This is longer than the server's own timeout for statements. */
const ANSWER_MS = 15_000
const BUCKET_MS = 10_000

interface Request {
  template: number
  bytes: Buffer
  /** The offsets of its `ts`. */
  stamps: number[]
  connection: Connection
  /** For `closed`: the `ts` of its next turn. */
  ts: number
}

interface Turn {
  request: Request
  /** The performance.now() at which it should have been sent. */
  due: number
  ts: number
}

class Connection {
  requests: Request[] = []
  /** The turns that wait for the answer to `turn`. */
  queue: Turn[] = []
  turn: Turn | undefined
  sentAt = 0
  #socket: Socket | undefined
  #head = ''
  #status = 0
  /** The bytes of the answer's body that have not arrived yet. */
  #rest = 0

  constructor(
    readonly port: number,
    readonly answered: (connection: Connection, turn: Turn, status: number | string) => void,
  ) {}

  send(turn: Turn) {
    if (this.turn) {
      this.queue.push(turn)
      return
    }
    this.turn = turn
    this.sentAt = performance.now()
    const { bytes, stamps } = turn.request
    const text = timestamp(turn.ts)
    for (const at of stamps) bytes.write(text, at, 'latin1')
    this.#open().write(bytes)
  }

  close(reason?: string) {
    this.#socket?.destroy()
    this.#ended(reason ?? 'closed')
  }

  #open() {
    if (this.#socket) return this.#socket
    const socket = connect({
      host: '127.0.0.1',
      port: this.port,
      noDelay: true,
      onread: {
        // A fixed buffer, so that an answer costs no allocation.
        buffer: Buffer.allocUnsafe(16 * 1024),
        callback: (size, buffer) => {
          this.#read(buffer as Buffer, size)
          return true
        },
      },
    })
    let problem = 'connection closed'
    socket.on('error', error => {
      problem = (error as NodeJS.ErrnoException).code ?? error.message
    })
    socket.on('close', () => {
      if (this.#socket === socket) this.#ended(problem)
    })
    this.#socket = socket
    return socket
  }

  #read(buffer: Buffer, size: number) {
    if (this.#rest > 0) {
      this.#rest -= size
    } else {
      this.#head += buffer.toString('latin1', 0, size)
      const end = this.#head.indexOf('\r\n\r\n')
      if (end < 0) return
      const length = /\r\ncontent-length: *(\d+)/i.exec(this.#head)?.[1]
      if (length === undefined) return this.close('an answer without content-length')
      this.#status = Number(this.#head.slice(9, 12))
      this.#rest = end + 4 + Number(length) - this.#head.length
      this.#head = ''
    }
    if (this.#rest > 0) return
    this.#settle(this.#status)
  }

  #ended(reason: string) {
    this.#socket = undefined
    this.#head = ''
    this.#rest = 0
    if (this.turn) this.#settle(reason)
  }

  #settle(status: number | string) {
    const turn = this.turn
    this.turn = undefined
    if (turn) this.answered(this, turn, status)
    const next = this.turn ? undefined : this.queue.shift()
    if (next) this.send(next)
  }
}

let connections: Connection[] = []
let requests: Request[] = []
let stopped = false
const acknowledged: Acknowledged[] = []

process.on('message', (order: Order) => {
  if (order.kind === 'stop') stopped = true
  else if (order.kind === 'acknowledged') report({ kind: 'acknowledged', beats: acknowledged.splice(0) })
  else if (order.kind === 'connect') prepare(order.port, order.connections, order.templates)
  else void (order.kind === 'open' ? sendOpen(order) : sendClosed(order)).then(sent => report({ kind: 'done', sent }))
})
process.on('disconnect', () => process.exit())

function prepare(port: number, count: number, templates: Template[]) {
  for (const connection of connections) connection.close()
  const used = Math.min(count, templates.length)
  connections = Array.from({ length: used }, () => new Connection(port, (...answer) => tally?.answered(...answer)))
  requests = templates.map((template, index) => {
    const connection = connections[index % used]!
    const request = { ...format(template), template: index, connection, ts: 0 }
    connection.requests.push(request)
    return request
  })
  report({ kind: 'ready' })
}

function format({ token, devices }: Template) {
  const beat = { ts: TS, battery_pct: 81, network_type: 'wifi', unity_running: true, signal_dbm: -61, agent_version: '3.1.0' }
  const body = JSON.stringify(devices?.map(device_id => ({ device_id, ...beat })) ?? beat)
  const bytes = Buffer.from(
    [
      `POST ${devices ? '/v1/heartbeats' : '/v1/heartbeat'} HTTP/1.1`,
      'host: 127.0.0.1',
      `authorization: Bearer ${token}`,
      'content-type: application/json',
      `content-length: ${Buffer.byteLength(body)}`,
      '',
      body,
    ].join('\r\n'),
  )
  const stamps: number[] = []
  for (let at = bytes.indexOf(TS); at >= 0; at = bytes.indexOf(TS, at + TS.length)) stamps.push(at)
  return { bytes, stamps }
}

async function sendOpen({ schedule: { at, device, ts }, warmup, records }: Extract<Order, { kind: 'open' }>) {
  const start = performance.now() + 100
  const startedAt = performance.timeOrigin + start
  stopped = false
  const measured = (tally = new Tally(start + warmup * 1000, () => {}, records))
  for (let next = 0; next < at.length && !stopped;) {
    const now = performance.now() - start
    for (; next < at.length && at[next]! <= now; next++) {
      const request = requests[device[next]!]!
      request.connection.send({ request, due: start + at[next]!, ts: startedAt + ts[next]! })
    }
    await sleep(1)
  }
  while (connections.some(connection => connection.turn)) await sleep(10)
  return measured.end()
}

async function sendClosed({ seconds, warmup, from }: { seconds: number; warmup: number; from: number }) {
  const start = performance.now()
  let end = Infinity
  const next = (connection: Connection) => {
    const now = performance.now()
    if (now < end) turn(connection, now)
  }
  for (const request of requests) request.ts = from
  const warming = (tally = new Tally(start, next))
  for (const connection of connections) turn(connection, start)
  await sleep(warmup * 1000)
  // Wait until the server has seen each token. Looking them up in the database happens only once and should not be measured.
  while (!requests.every(({ ts }) => ts > from)) await sleep(20)
  warming.end()
  const measured = (tally = new Tally(performance.now(), next))
  end = measured.measureFrom + seconds * 1000
  await sleep(seconds * 1000)
  const sent = measured.end()
  while (connections.some(connection => connection.turn)) await sleep(10)
  return { ...sent, until: requests.reduce((latest, { ts }) => Math.max(latest, ts), from) }
}

/** Takes a connection's requests in turn. Each heartbeat is in the bucket after its device's last one. */
function turn(connection: Connection, due: number) {
  const request = connection.requests.shift()!
  connection.requests.push(request)
  connection.send({ request, due, ts: request.ts })
  request.ts += BUCKET_MS
}

class Tally {
  #histogram = createHistogram({ lowest: 1, highest: 3_600_000_000, figures: 3 }) // in µs
  #ok = 0
  #errors = 0
  #problems: Record<string, number> = {}
  #cpu = process.cpuUsage()
  #watch: NodeJS.Timeout

  constructor(
    readonly measureFrom: number,
    readonly next: (connection: Connection) => void = () => {},
    readonly records = false,
  ) {
    setTimeout(() => {
      this.#cpu = process.cpuUsage()
    }, measureFrom - performance.now())
    this.#watch = setInterval(() => {
      const late = performance.now() - ANSWER_MS
      for (const connection of connections) if (connection.turn && connection.sentAt < late) connection.close('no answer')
      report({ kind: 'progress', seconds: (performance.now() - this.measureFrom) / 1000, sent: this.sent() })
    }, 1000)
  }

  /**
   * Latency is measured from the time at which the request should have been sent, so it includes the time that the request waited
   * for its turn.
   */
  answered(connection: Connection, { due, request, ts }: Turn, status: number | string) {
    const isOk = typeof status === 'number' && status >= 200 && status < 300
    if (isOk && this.records) {
      acknowledged.push({
        template: request.template,
        ts: Math.floor(ts),
        status,
        due: performance.timeOrigin + due,
        latency: performance.now() - due,
      })
    }
    if (due >= this.measureFrom) {
      if (isOk) this.#ok++
      else {
        this.#errors++
        this.#problems[status] = (this.#problems[status] ?? 0) + 1
      }
      this.#histogram.record(Math.max(1, Math.round((performance.now() - due) * 1000)))
    }
    this.next(connection)
  }

  sent(): Sent {
    const at = (percent: number) => this.#histogram.percentile(percent) / 1000
    const { user, system } = process.cpuUsage(this.#cpu)
    const any = this.#histogram.count > 0
    return {
      requests: this.#ok + this.#errors,
      ok: this.#ok,
      errors: this.#errors,
      problems: this.#problems,
      latency: { p50: at(50), p95: at(95), p99: at(99), p999: at(99.9), max: any ? this.#histogram.max / 1000 : 0 },
      seconds: (performance.now() - this.measureFrom) / 1000,
      cpuSeconds: (user + system) / 1e6,
      until: 0,
    }
  }

  end() {
    clearInterval(this.#watch)
    tally = undefined
    return this.sent()
  }
}

let tally: Tally | undefined

let lastMs = NaN
let lastText = ''
function timestamp(ms: number) {
  const whole = Math.floor(ms)
  if (whole !== lastMs) {
    lastMs = whole
    lastText = new Date(whole).toISOString()
  }
  return lastText
}

function report(message: Report) {
  process.send?.(message)
}
