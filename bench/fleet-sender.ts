/*
 * The process that sends as a fleet of up to millions of devices. Unlike sender.ts it keeps nothing for a device: it writes the
 * number of the device into its request (see enrollMany()).
 *
 * It is an open loop: each request has a time at which it is due, whatever happened to those before, and latency is counted from
 * that time. A request takes the connection that has been free for longest, and waits if none is. What is not acknowledged is sent
 * again, as a device does it: after 1, 2, 4 and then every 8 s, or after Retry-After if that is longer, each a random quarter
 * earlier or later. If it is not acknowledged within `patience`, it is lost.
 */
import { createHistogram, performance, type RecordableHistogram } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { generator } from '../testing/random.ts'
import { Connection } from './connection.ts'
import {
  ACKNOWLEDGED,
  DEVICE_TOKEN,
  GATEWAY_TOKEN,
  ITEM_MS,
  LOST,
  TOKEN_DIGITS,
  type FleetOrder,
  type FleetReport,
  type Latency,
  type Order,
} from './fleet-order.ts'
import { Queue } from './queue.ts'

/** This is longer than the server's own timeout for statements. */
const ANSWER_MS = 15_000
/**
 * While the port refuses connections, one request in this time tries it, and the others fail without a try. On real devices a
 * refused connection costs the server's machine nothing. Here it would take the processors from the server that starts.
 */
const PROBE_MS = 50
const SLOT_MS = 50
const BACKOFF_S = [1, 2, 4, 8]

const TS = '2026-01-01T00:00:00.000Z'
const FIELDS = '"network_type":"wifi","unity_running":true,"signal_dbm":-61,"agent_version":"3.1.0"}'

function single() {
  const body = `{"ts":"${TS}","battery_pct":50,${FIELDS}`
  const bytes = Buffer.from(`${head('heartbeat', DEVICE_TOKEN, body.length)}${body}`)
  return {
    bytes,
    device: bytes.indexOf(DEVICE_TOKEN) + DEVICE_TOKEN.length,
    ts: bytes.indexOf(TS),
    battery: bytes.indexOf('_pct":50') + 6,
  }
}

function head(path: string, prefix: string, length: number, number = 0) {
  const token = `${prefix}${number.toString(16).padStart(TOKEN_DIGITS, '0')}`
  return `POST /v1/${path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer ${token}\r\ncontent-type: application/json\r\ncontent-length: ${length}\r\n\r\n`
}

/** Sends the requests that it is given, one at a time. */
class Client {
  request = -1
  readonly connection: Connection
  #template = single()

  constructor(readonly run: Run) {
    this.connection = new Connection(run.order.port, (answer, problem) => {
      const { request } = this
      this.request = -1
      run.answered(request, answer, problem)
      run.free(this)
    })
  }

  send(request: number) {
    this.request = request
    const { order } = this.run
    const unit = this.run.unit[request]!
    const due = this.run.due[request]!
    if (unit >= order.singles) {
      this.connection.send(this.#batch(unit - order.singles, due))
      return
    }
    const { bytes, device, ts, battery } = this.#template
    const number = (unit + 1).toString(16)
    // The digits of another device that was longer must not stay.
    bytes.fill(0x30, device + TOKEN_DIGITS - 8, device + TOKEN_DIGITS)
    bytes.write(number, device + TOKEN_DIGITS - number.length, 'latin1')
    bytes.write(timestamp(this.run.startedAt + due), ts, 'latin1')
    bytes.write(String(batteryOf(unit, due)), battery, 'latin1')
    this.connection.send(bytes)
  }

  #batch(gateway: number, due: number) {
    const { order, startedAt } = this.run
    const first = order.singles + gateway * order.batch
    let items = ''
    for (let item = 0; item < order.batch; item++) {
      const ts = timestamp(startedAt + due - item * ITEM_MS)
      items += `${item > 0 ? ',' : '['}{"device_id":${first + item + 1},"ts":"${ts}","battery_pct":${batteryOf(first + item, due)},${FIELDS}`
    }
    items += ']'
    return head('heartbeats', GATEWAY_TOKEN, items.length, gateway + 1) + items
  }
}

class Run {
  readonly due: Int32Array
  readonly unit: Int32Array
  readonly state: Uint8Array
  readonly base = Math.ceil(performance.now()) + 100
  readonly startedAt = Math.round(performance.timeOrigin + this.base)

  #attempts: Uint8Array
  #unsettled: number
  /** Requests that are due and wait for a connection. */
  #waiting: Queue
  #clients: Client[]
  #free: Queue
  /** Requests by when they are sent again, in slots of SLOT_MS. */
  #again = new Map<number, number[]>()
  #slot = 0
  #refusedUntil = 0
  #parts: { name: string; from: number; offered: number; histogram: RecordableHistogram }[] = []
  #delay = histogram()
  #perSecond: Int32Array
  #refused: FleetReport['refused'] = []
  #acknowledged = 0
  #duplicates = 0
  #retries = 0
  #problems: Record<string, number> = {}
  #random = generator(7)

  constructor(readonly order: FleetOrder) {
    const { due, unit } = schedule(order)
    this.due = due
    this.unit = unit
    this.state = new Uint8Array(due.length)
    this.#attempts = new Uint8Array(due.length)
    this.#unsettled = due.length
    this.#waiting = new Queue(due.length)
    this.#clients = Array.from({ length: order.connections }, () => new Client(this))
    this.#free = new Queue(order.connections)
    for (let index = 0; index < order.connections; index++) this.#free.push(index)
    this.#numbers = new Map(this.#clients.map((client, index) => [client, index]))
    this.#perSecond = new Int32Array(Math.ceil(order.seconds + order.patience) + 2)
    this.part('warmup')
  }

  readonly #numbers: Map<Client, number>

  part(name: string) {
    this.#parts.push({ name, from: Math.max(0, this.#now()), offered: 0, histogram: histogram() })
  }

  async run(): Promise<FleetReport> {
    const cpu = process.cpuUsage()
    const watch = setInterval(() => this.#closeSlow(), 1000)
    for (let next = 0; this.#unsettled > 0;) {
      const now = this.#now()
      for (; next < this.due.length && this.due[next]! <= now; next++) {
        this.#waiting.push(next)
        this.#partOf(next).offered += this.#size(next)
        this.#delay.record(Math.max(1, Math.round((now - this.due[next]!) * 1000)))
      }
      this.#sendAgain(now)
      this.#dispatch()
      // Timers wait at least a millisecond. While many requests wait for a connection, answers send the next ones.
      await sleep(1)
    }
    const seconds = this.#now() / 1000
    clearInterval(watch)
    for (const { connection } of this.#clients) connection.close('done')
    const { user, system } = process.cpuUsage(cpu)
    const now = this.#now()
    return {
      kind: 'done',
      startedAt: this.startedAt,
      due: this.due,
      unit: this.unit,
      state: this.state,
      refused: this.#refused,
      acknowledged: this.#acknowledged,
      duplicates: this.#duplicates,
      lost: this.state.reduce((sum, state, request) => sum + (state === LOST ? this.#size(request) : 0), this.#refused.length),
      retries: this.#retries,
      problems: this.#problems,
      perSecond: this.#perSecond,
      parts: this.#parts.map(({ name, from, offered, histogram }, index) => ({
        name,
        seconds: ((this.#parts[index + 1]?.from ?? Math.min(now, this.order.seconds * 1000)) - from) / 1000,
        offered,
        latency: latencyOf(histogram),
      })),
      senderDelay: latencyOf(this.#delay),
      seconds,
      cpuSeconds: (user + system) / 1e6,
    }
  }

  free(client: Client) {
    this.#free.push(this.#numbers.get(client)!)
    this.#dispatch()
  }

  answered(request: number, answer: string, problem?: string) {
    const status = Number(answer.slice(9, 12))
    const size = this.#size(request)
    if (problem === undefined && this.unit[request]! < this.order.singles) {
      if (status === 201) return this.#acknowledge(request, 1, 0)
      if (status === 200 && answer.includes('"duplicate"')) return this.#acknowledge(request, 1, 1)
    } else if (problem === undefined && status === 200) {
      const [stored = 0, duplicates = 0] = /"stored":(\d+),"duplicate":(\d+)/.exec(answer)?.slice(1).map(Number) ?? []
      if (stored + duplicates < size) this.#refuse(request, answer)
      return this.#acknowledge(request, stored + duplicates, duplicates)
    }
    if (problem === 'ECONNREFUSED') this.#refusedUntil = performance.now() + PROBE_MS
    this.#fail(request, problem ?? `status ${status}`, Number(/\r\nretry-after: *(\d+)/i.exec(answer)?.[1] ?? 0))
  }

  #now() {
    return performance.now() - this.base
  }

  #size(request: number) {
    return this.unit[request]! < this.order.singles ? 1 : this.order.batch
  }

  #dispatch() {
    while (this.#waiting.length > 0) {
      const now = performance.now()
      if (now < this.#refusedUntil) {
        this.#fail(this.#waiting.shift(), 'ECONNREFUSED', 0)
        continue
      }
      if (this.#free.length === 0) return
      const request = this.#waiting.shift()
      if (this.#isTooOld(request, this.#now())) this.#lose(request)
      else this.#clients[this.#free.shift()]!.send(request)
    }
  }

  #isTooOld(request: number, now: number) {
    return now - this.due[request]! > this.order.patience * 1000
  }

  #acknowledge(request: number, heartbeats: number, duplicates: number) {
    const now = this.#now()
    this.state[request] = ACKNOWLEDGED
    this.#unsettled--
    this.#acknowledged += heartbeats
    this.#duplicates += duplicates
    const second = Math.min(Math.floor(now / 1000), this.#perSecond.length - 1)
    this.#perSecond[second]! += heartbeats
    this.#record(request, now)
  }

  #refuse(request: number, answer: string) {
    const { results } = JSON.parse(answer.slice(answer.indexOf('\r\n\r\n') + 4)) as { results: { result: string }[] }
    for (const [item, { result }] of results.entries()) {
      if (result === 'stored' || result === 'duplicate') continue
      this.#refused.push({ request, item })
      this.#count(`an item of a batch was ${result}`)
    }
  }

  #fail(request: number, problem: string, retryAfter: number) {
    this.#count(problem)
    const now = this.#now()
    const attempt = this.#attempts[request]!++
    const pause = Math.max(BACKOFF_S[attempt] ?? BACKOFF_S.at(-1)!, retryAfter) * 1000 * (0.75 + this.#random() / 2)
    if (this.#isTooOld(request, now + pause)) return this.#lose(request)
    this.#retries++
    const slot = Math.ceil((now + pause) / SLOT_MS)
    const list = this.#again.get(slot)
    if (list) list.push(request)
    else this.#again.set(slot, [request])
  }

  #lose(request: number) {
    this.state[request] = LOST
    this.#unsettled--
    this.#count('not acknowledged in time')
    this.#record(request, this.due[request]! + this.order.patience * 1000)
  }

  #sendAgain(now: number) {
    for (; this.#slot <= now / SLOT_MS; this.#slot++) {
      for (const request of this.#again.get(this.#slot) ?? []) this.#waiting.push(request)
      this.#again.delete(this.#slot)
    }
  }

  /** Every heartbeat of a batch counts, so that percentiles are of heartbeats. */
  #record(request: number, now: number) {
    const us = Math.max(1, Math.round((now - this.due[request]!) * 1000))
    const { histogram } = this.#partOf(request)
    for (let count = this.#size(request); count > 0; count--) histogram.record(us)
  }

  #partOf(request: number) {
    const due = this.due[request]!
    for (let index = this.#parts.length - 1; index > 0; index--) if (this.#parts[index]!.from <= due) return this.#parts[index]!
    return this.#parts[0]!
  }

  #count(problem: string) {
    this.#problems[problem] = (this.#problems[problem] ?? 0) + 1
  }

  #closeSlow() {
    const late = performance.now() - ANSWER_MS
    for (const { connection } of this.#clients) if (connection.sentAt < late) connection.close('no answer')
  }
}

/** The requests in the order in which they are due. It is always the same for the same order. */
function schedule({ singles, gateways, interval, jitter, seconds }: FleetOrder) {
  const units = singles + gateways
  const end = Math.round(seconds * 1000)
  if (interval === 0) return { due: new Int32Array(units), unit: Int32Array.from({ length: units }, (_, index) => index) }
  // Twice the same times: the first pass counts the requests of each millisecond, the second puts them there.
  const each = (visit: (unit: number, at: number) => void) => {
    const random = generator(42)
    for (let unit = 0; unit < units; unit++) {
      for (let at = random() * interval * 1000; at < end; at += (interval + (2 * random() - 1) * jitter) * 1000)
        visit(unit, Math.floor(at))
    }
  }
  const places = new Int32Array(end + 1)
  each((_, at) => {
    places[at + 1]!++
  })
  for (let at = 1; at <= end; at++) places[at]! += places[at - 1]!
  const due = new Int32Array(places[end]!)
  const unit = new Int32Array(places[end]!)
  each((who, at) => {
    const place = places[at]!++
    due[place] = at
    unit[place] = who
  })
  return { due, unit }
}

function batteryOf(unit: number, due: number) {
  return 10 + ((unit + Math.floor(due / 60_000)) % 90)
}

function histogram() {
  return createHistogram({ lowest: 1, highest: 3_600_000_000, figures: 3 }) // in µs
}

function latencyOf(values: RecordableHistogram): Latency {
  const at = (percent: number) => (values.count > 0 ? values.percentile(percent) / 1000 : 0)
  return { p50: at(50), p99: at(99), p999: at(99.9), max: values.count > 0 ? values.max / 1000 : 0 }
}

let lastMs = NaN
let lastText = ''
function timestamp(ms: number) {
  if (ms !== lastMs) {
    lastMs = ms
    lastText = new Date(ms).toISOString()
  }
  return lastText
}

let current: Run | undefined
process.on('message', (order: Order) => {
  if (order.kind === 'part') {
    current?.part(order.name)
    return
  }
  current = new Run(order)
  void current.run().then(report => process.send?.(report))
})
process.on('disconnect', () => process.exit())
